"""Runs of the smallest network, in this process and in others."""

import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import jax
import numpy as np
import pytest

import main as program
from mpbn_jax import arrays, command_line, record, report

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Those that go on with a run; tests/models/test_import.py has the other.
MODES = ('train', 'evaluate', 'fold')
EPOCHS = 2
STEPS_PER_EPOCH = 16
LAST = EPOCHS * STEPS_PER_EPOCH
# 368 parameters, 16 steps an epoch.
TINY = (
  '--config.model.width=2',
  '--config.model.num_steps=2',
  '--config.model.unroll=false',
  f'--config.num_epochs={EPOCHS}',
  '--config.log.every_steps=5',
  '--config.log.tensorboard=false',
)


def run(workdir: pathlib.Path, *arguments: str) -> int:
  """Runs main.py in this process; returns its exit code."""
  return program.main([*TINY, f'--workdir={workdir}', *arguments])


@functools.cache
def finished() -> pathlib.Path:
  """Returns the work directory of a finished run; not to be changed.

  One for all the test files that a process runs.
  """
  directory = tempfile.TemporaryDirectory(prefix='mpbn_jax_run_')
  _kept.append(directory)  # removed when the process ends
  workdir = pathlib.Path(directory.name) / 'run'
  assert run(workdir, '--config.log.tensorboard=true') == 0
  return workdir


_kept = []


def half(workdir: pathlib.Path) -> pathlib.Path:
  """Makes a copy of the finished run that was killed in its second epoch."""
  shutil.copytree(finished(), workdir)
  shutil.rmtree(workdir / 'checkpoints' / '32')
  (workdir / 'checkpoints' / 'index.json').write_text('{"steps": [16]}')
  return workdir


def config(*arguments: str):
  """Returns the configuration of these runs."""
  return command_line.parse([*TINY, *arguments]).config


def at_step(monkeypatch, step: int, function) -> None:
  """Has a function called once, when training reports a step."""
  say = record.Progress.say

  def and_call(self, at, text):
    say(self, at, text)
    if at == step:
      monkeypatch.setattr(record.Progress, 'say', say)
      function()

  monkeypatch.setattr(record.Progress, 'say', and_call)


def start(
  workdir: pathlib.Path, *arguments: str, devices: int = 1
) -> subprocess.Popen:
  """Starts main.py in a process of its own."""
  return subprocess.Popen(
    [sys.executable, 'main.py', *TINY, f'--workdir={workdir}', *arguments],
    cwd=ROOT,
    env={**os.environ, 'JAX_NUM_CPU_DEVICES': str(devices)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def snapshot(directory: pathlib.Path) -> dict[str, bytes]:
  """Returns {relative path: content} of every file below but the locks."""
  return {
    str(path.relative_to(directory)): path.read_bytes()
    for path in sorted(directory.rglob('*'))
    if path.is_file() and path.name != '.lock'
  }


def arrays_of(workdir, step=LAST):
  """Returns every array of a checkpoint, state and metrics."""
  tree, _ = arrays.read(workdir / 'checkpoints' / str(step))
  return {
    jax.tree_util.keystr(key): np.asarray(leaf)
    for key, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def metrics(workdir):
  """Returns the lines of metrics.jsonl without what a clock decides."""
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  found = [json.loads(line) for line in lines]
  for line in found:
    for name in ('steps_per_second', 'data_wait'):
      line.pop(name, None)
  return found


def check_same_bits(ours, theirs):
  """Compares the arrays of two checkpoints."""
  assert ours.keys() == theirs.keys()
  for name, array in ours.items():
    assert array.dtype == theirs[name].dtype, name
    assert array.tobytes() == theirs[name].tobytes(), name


def check_equal(workdir, other, *, step=LAST):
  """Compares two runs: arrays, metrics and summaries."""
  check_same_bits(arrays_of(workdir, step), arrays_of(other, step))
  assert metrics(workdir) == metrics(other)
  summaries = [report.read_summary(path) for path in (workdir, other)]
  for summary in summaries:
    for key in ('seconds', 'date'):
      del summary[key]
  assert summaries[0] == summaries[1]


def the_error(streams: tuple[str, str]) -> str:
  """Returns the one line that a failed command wrote, (stdout, stderr)."""
  out, err = streams
  assert out == ''
  assert err.startswith('error: ')
  assert err.count('\n') == 1
  assert 'Traceback' not in err
  return err


def moments(directory: pathlib.Path, function, *, into: pathlib.Path):
  """Returns copies of a directory, of every state that function() leaves it in.

  A process that is killed leaves one of them. They are taken around the calls
  that rename, remove and flush files, where a directory or a JSON file
  changed.
  """
  copies, known = [], set()

  def look():
    # Files of arrays count once a JSON file names them.
    state = tuple(
      (str(path), path.read_bytes() if path.suffix == '.json' else b'')
      for path in sorted(directory.rglob('*'))
      if path.is_dir() or path.suffix == '.json'
    )
    if state not in known:
      known.add(state)
      copies.append(shutil.copytree(directory, into / f'moment{len(known)}'))

  def watched(call):
    def at(*args, **kwargs):
      look()
      result = call(*args, **kwargs)
      look()
      return result

    return at

  with pytest.MonkeyPatch.context() as patch:
    for name in ('replace', 'rename', 'fsync', 'unlink', 'rmdir'):
      patch.setattr(os, name, watched(getattr(os, name)))
    function()
  return copies
