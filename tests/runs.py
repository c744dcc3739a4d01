"""How do tests train the smallest network, here and in another process?"""

import os
import pathlib
import subprocess
import sys

import main as program

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Those that go on with a run; tests/test_import.py has the other.
MODES = ('train', 'evaluate', 'fold')
EPOCHS = 2
STEPS_PER_EPOCH = 16
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


def start(workdir: pathlib.Path, *arguments: str) -> subprocess.Popen:
  """Starts main.py in a process of its own, with one device."""
  environment = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  return subprocess.Popen(
    [sys.executable, 'main.py', *TINY, f'--workdir={workdir}', *arguments],
    cwd=ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def snapshot(directory: pathlib.Path) -> dict[str, bytes]:
  """Returns {relative path: content} of every file below."""
  return {
    str(path.relative_to(directory)): path.read_bytes()
    for path in sorted(directory.rglob('*'))
    if path.is_file()
  }


def the_error(streams: tuple[str, str]) -> str:
  """Returns the one line that a failed command wrote, (stdout, stderr)."""
  out, err = streams
  assert out == ''
  assert err.startswith('error: ')
  assert err.count('\n') == 1
  assert 'Traceback' not in err
  return err
