"""Times of functions that take turns, and the records of results."""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks run from a checkout
# JAX takes three quarters of a GPU's memory otherwise, and peers need some.
os.environ.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.45')
RECORDS = ROOT / 'benchmarks' / 'records.jsonl'
# float32: products of 24-bit mantissas. tf32: of 11 bits, where a GPU has them.
# split: ours of 24 bits on tensor cores; peers as with float32.
PRECISIONS = ('float32', 'split', 'tf32', 'bfloat16')
SIDE = 32  # of the images
SHAPE = ('network', 'precision', 'batch', 'steps', 'width')


def parser(document: str, *, rounds: int) -> argparse.ArgumentParser:
  """Returns a parser of the size of a network and what of it is measured."""
  result = argparse.ArgumentParser(description=document.splitlines()[0])
  result.add_argument('--batch', type=int, default=16)
  result.add_argument('--steps', type=int, default=4)
  result.add_argument('--width', type=int, default=64)
  result.add_argument('--network', default='resnet20', help='or resnet19')
  result.add_argument('--precision', default='float32', choices=PRECISIONS)
  result.add_argument(
    '--repeats', type=int, default=1, help='steps before waiting for them'
  )
  result.add_argument('--rounds', type=int, default=rounds)
  result.add_argument('--peers', action='store_true')
  result.add_argument('--only', help='comma-separated names of the table')
  return result


def data(batch: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns random (images [B, 32, 32, 3], labels)."""
  rng = np.random.default_rng(0)
  images = rng.normal(size=(batch, SIDE, SIDE, 3)).astype(np.float32)
  return images, rng.integers(0, 10, batch)


def shape(options: argparse.Namespace) -> dict:
  """Returns the arguments of `networks.model` and of `peers.functions`."""
  return {
    'network': options.network,
    'precision': options.precision,
    'num_steps': options.steps,
    'width': options.width,
  }


def flags(options: argparse.Namespace) -> list[str]:
  """Returns the arguments of `parser` that name a network and its data."""
  return [f'--{name}={getattr(options, name)}' for name in SHAPE]


def settings(options: argparse.Namespace) -> dict:
  """Returns the arguments of `parser` that a record keeps."""
  return {k: vars(options)[k] for k in (*SHAPE, 'rounds', 'repeats')}


def chosen(only: str | None, names: Sequence[str], *, base: str) -> list[str]:
  """Returns the names to measure; `base`, which others are compared with, too.

  Exits with a message if one is unknown.
  """
  if only is None:
    return list(names)
  wanted = [base, *(name for name in only.split(',') if name != base)]
  if unknown := [name for name in wanted if name not in names]:
    known = ', '.join(names)
    sys.exit(f'--only: expected names of {known}, got {", ".join(unknown)}')
  return wanted


def in_turns(
  functions: Mapping[str, Callable],
  *,
  rounds: int,
  repeats: int = 1,
  warm_up: int = 2,
) -> dict[str, list[float]]:
  """Returns {name: seconds of each round} of functions that take turns.

  A function may return before its result is there; what it returns waits for
  it. In its turn it is called `repeats` times, and then waited for: the seconds
  are those of one call. Every round runs all functions, so that whatever else
  the machine does slows down all alike.
  """
  times: dict[str, list[float]] = {name: [] for name in functions}
  for turn in range(-warm_up, rounds):
    for name, function in functions.items():
      start = time.perf_counter()
      for _ in range(repeats):
        wait = function()
      wait()
      if turn >= 0:
        times[name].append((time.perf_counter() - start) / repeats)
  return times


def medians(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
  """Returns {name: median seconds}."""
  return {name: statistics.median(values) for name, values in times.items()}


def resampled(rounds: np.ndarray, *, samples: int = 10_000) -> np.ndarray:
  """Returns medians over rounds [R, ...] that are drawn again: [samples, ...].

  What was measured in one round stays together. The bootstrap's interval of a
  number is that of its quantiles over the samples.
  """
  drawn = np.random.default_rng(0).integers(
    0, len(rounds), (samples, len(rounds))
  )
  return np.median(rounds[drawn], 1)


def interval(values: np.ndarray) -> tuple[float, float]:
  """Returns the 95 % interval of values of `resampled` rounds."""
  low, high = np.quantile(values, (0.025, 0.975))
  return float(low), float(high)


def ratio(
  times: Sequence[float], others: Sequence[float]
) -> tuple[float, float, float]:
  """Returns median(times) / median(others) and its 95 % bootstrap interval.

  Rounds are drawn in pairs, as they were measured.
  """
  a, b = resampled(np.stack([times, others], 1)).T
  return float(np.median(times) / np.median(others)), *interval(a / b)


def peak_memory() -> float:
  """Returns the largest resident set of this process so far, in MiB."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak / (2**20 if sys.platform == 'darwin' else 2**10)


def elsewhere(script: str, *arguments: str) -> Callable:
  """Returns a function, see `in_turns`, that a script runs in its own process.

  Libraries in one process share threads and memory: each then behaves as it
  does not for its users. The script passes its function to `serve`.
  """
  process = subprocess.Popen(
    [sys.executable, script, *arguments],
    cwd=ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
    bufsize=1,
  )

  def wait():
    process.stdin.write('wait\n')
    while (line := process.stdout.readline()) != 'waited\n':
      if not line:
        sys.exit(f'{script} {" ".join(arguments)} stopped')
      print(line, end='')  # what the script says besides

  def run():
    process.stdin.write('run\n')
    return wait

  wait()  # until it is built
  return run


def serve(function: Callable) -> None:
  """Runs a function whenever `elsewhere` asks for it, until that ends."""
  wait = None
  for line in sys.stdin:
    if line == 'run\n':
      wait = function()
    else:
      if wait is not None:
        wait()
      print('waited', flush=True)


def in_a_process(script: str, *arguments: str) -> dict:
  """Returns what a script prints as JSON on its last line, when run alone."""
  done = subprocess.run(
    [sys.executable, script, *arguments],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  result: dict = json.loads(done.stdout.splitlines()[-1])
  return result


def conditions() -> dict:
  """Returns device, versions, commit and date of a measurement.

  The commit is that of the variable GIT_COMMIT where the checkout is a copy
  without its history.
  """
  import jax

  names = ('jax', 'flax', 'numpy', 'torch', 'spikingjelly')
  versions = {'python': platform.python_version()}
  for name in names:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  commit = os.environ.get('GIT_COMMIT')
  if not commit:
    commit = _git('rev-parse', '--short', 'HEAD')
    # The records themselves are no change of the code.
    others = f':!{RECORDS.relative_to(ROOT)}'
    commit += '-dirty' * bool(_git('status', '--porcelain', '--', '.', others))
  device = jax.devices()[0]
  return {
    'device': f'{device.platform} {device.device_kind}',
    'devices': jax.device_count(),
    'cores': len(os.sched_getaffinity(0)),
    'machine': platform.machine(),
    'versions': versions,
    'commit': commit,
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
  }


def _git(*arguments):
  done = subprocess.run(
    ['git', *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
  )
  return done.stdout.strip()


def record(script: str, settings: Mapping, results: Mapping) -> None:
  """Appends a measurement to `records.jsonl`, and prints its conditions."""
  entry = {
    'script': pathlib.Path(script).name,
    **conditions(),
    'settings': dict(settings),
    'results': dict(results),
  }
  with RECORDS.open('a') as file:
    file.write(json.dumps(entry) + '\n')
  versions = ', '.join(f'{k} {v}' for k, v in entry['versions'].items())
  print(
    f'{entry["device"]}, {entry["cores"]} cores, {versions}, commit '
    f'{entry["commit"]}, {entry["date"]}'
  )
