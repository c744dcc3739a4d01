"""One training of a study, in a process of its own.

    python -m mpbn_jax.studies.worker --config=FILE --workdir=DIR --kind=report

`runner` starts it. At the end it writes result.json into the work directory.
"""

import argparse
import datetime
import importlib.metadata
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

from mpbn_jax.studies.study import REPORT, TUNE

RESULT = 'result.json'
_CURVE = ('loss', 'accuracy', 'validation_loss', 'validation_accuracy')


def main(argv: list[str] | None = None) -> int:
  """Trains, measures and writes the result; returns the exit code."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--config', required=True)
  parser.add_argument('--workdir', required=True, type=pathlib.Path)
  parser.add_argument('--kind', required=True, choices=(TUNE, REPORT))
  parser.add_argument('--parent', type=int, default=os.getppid())
  parser.add_argument('--core', type=int, help='the only one to use')
  options = parser.parse_args(argv)
  if options.core is not None:  # before XLA counts the cores
    os.sched_setaffinity(0, {options.core})
  _end_with(options.parent)

  from mpbn_jax import config_files, lock, process, record
  from mpbn_jax.errors import InputError
  from mpbn_jax.interrupt import Interrupted, raise_on_signals

  process.say_warnings()
  try:
    with raise_on_signals():
      config = config_files.load(options.config)
      process.prepare(config)
      # A runner that was killed leaves processes that are about to end.
      lock.wait_until_free(options.workdir, seconds=60)
      result = measure(config, options.workdir, kind=options.kind)
      record.write_json(options.workdir / RESULT, result)
  except InputError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  except Interrupted as stop:
    return 128 + stop.signum
  except KeyboardInterrupt:
    return 128 + signal.SIGTERM
  return 0


def measure(config, workdir: pathlib.Path, *, kind: str) -> dict:
  """Returns the result of a training, see `results.Results`.

  Args:
    config: the whole configuration.
    workdir: the work directory; a training that was stopped is resumed.
    kind: study.TUNE only validates, study.REPORT reads the test split.

  Raises:
    InputError: TUNE without a validation split.
  """
  from mpbn_jax import config as config_lib
  from mpbn_jax import training
  from mpbn_jax.errors import InputError
  from mpbn_jax.evaluation import evaluate

  start = time.monotonic()
  conditions = {
    'config': config_lib.plain(config),
    'commit': commit(),
    **_machine(),
    'date': datetime.datetime.now(datetime.UTC).isoformat('T', 'seconds'),
  }
  try:
    experiment, state = training.train(config, workdir=workdir)
  except FloatingPointError as error:
    empty = {'validation_accuracy': None} if kind == TUNE else {}
    if kind == TUNE:
      del conditions['config']
    return {**empty, 'failed': str(error), **conditions}
  if kind == TUNE:
    if 'validation' not in experiment.dataset.splits:
      raise InputError(
        f'expected a validation split to choose settings on, got '
        f'{config.data.name!r} without one: set data.validation_size'
      )
    accuracy = evaluate(experiment, state.variables, split='validation')
    del conditions['config']
    return {
      'validation_accuracy': round(accuracy['accuracy'], 6),
      'seconds': round(time.monotonic() - start, 1),
      **conditions,
    }
  measured = _on_test(experiment, state, config, workdir, start)
  return {**measured, 'curve': _curve(workdir), **conditions}


def _on_test(experiment, state, config, workdir, start):
  from mpbn_jax import report
  from mpbn_jax.evaluation import evaluate

  summary = report.summarize(experiment, state, workdir=workdir, start=start)
  best = None
  if 'validation' in experiment.dataset.splits:
    of_best = config.copy_and_resolve_references()
    of_best.evaluation.checkpoint = 'best'
    experiment, other = report.restore(of_best, workdir=workdir)
    best = summary['test_accuracy']
    if int(other.step) != int(state.step):
      best = evaluate(experiment, other.variables, split='test')['accuracy']
  rates = {k: round(v, 5) for k, v in summary['firing_rate'].items()}
  return {
    'test_accuracy': summary['test_accuracy'],
    'best_accuracy': best,
    'folded_test_accuracy': summary['folded_test_accuracy'],
    'spikes_compared': summary['spikes_compared'],
    'spikes_differing': summary['spikes_differing'],
    'firing_rate': rates,
    'seconds': round(time.monotonic() - start, 1),
  }


def _curve(workdir):
  """Returns {metric: [[step, value], ...]}."""
  from mpbn_jax import record

  curve: dict[str, list] = {}
  for line in record.read_metrics(workdir):
    for name in _CURVE:
      if name in line:
        point = [line['step'], round(line[name], 4)]
        curve.setdefault(name, []).append(point)
  return curve


def commit() -> str | None:
  """Returns the commit of the checkout, with '-dirty' if it differs.

  The variable GIT_COMMIT names it where the checkout has no history.
  """
  root = pathlib.Path(__file__).resolve().parents[2]

  def git(*arguments):
    done = subprocess.run(
      ['git', *arguments], cwd=root, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()

  try:
    changed = git('status', '--porcelain', '--', 'mpbn_jax', 'configs')
    return git('rev-parse', '--short', 'HEAD') + '-dirty' * bool(changed)
  except (OSError, subprocess.CalledProcessError):
    return os.environ.get('GIT_COMMIT')


def _machine():
  import jax

  device = jax.devices()[0]
  names = ('jax', 'flax', 'numpy')
  return {
    'device': f'{len(jax.devices())} x {device.device_kind}',
    'versions': {name: importlib.metadata.version(name) for name in names},
  }


def _end_with(parent: int) -> None:
  """Stops this process, as SIGTERM does, once its parent has gone."""

  def watch():
    while os.getppid() == parent:
      time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=watch, daemon=True).start()


if __name__ == '__main__':
  sys.exit(main())
