"""Training that is killed again and again, at random moments, and goes on.

    pytest -m job tests/program/test_killed.py

kills five runs ten times each, half of the times while a checkpoint is written,
in about seven minutes on one core.
"""

import itertools
import random
import signal
import statistics
import time

import jax
import pytest
import runs

from mpbn_jax import training
from mpbn_jax.checkpoint import Checkpoints, steps_in
from mpbn_jax.record import CHECKPOINTS

KILLS = 10  # of a run
EPOCHS = 40  # more than ten lives train
LAST = EPOCHS * runs.STEPS_PER_EPOCH
LONG = (f'--config.num_epochs={EPOCHS}', '--config.log.every_steps=8')


@pytest.fixture(scope='module')
def unharmed(tmp_path_factory):
  """Returns (a run that nobody killed, {step: its arrays}, durations)."""
  workdir = tmp_path_factory.mktemp('unharmed') / 'run'
  arrays, began, took = {}, [], []

  class Watched(Checkpoints):
    def save(self, step, state, **options):
      began.append(time.monotonic())
      path = super().save(step, state, **options)
      took.append(time.monotonic() - began[-1])
      arrays[step] = runs.arrays_of(workdir, step)
      return path

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(training, 'Checkpoints', Watched)
    assert runs.run(workdir, *LONG) == 0
  epochs = [after - before for before, after in itertools.pairwise(began)]
  seconds = {
    'epoch': statistics.median(epochs),
    'saving': statistics.median(took),
  }
  return workdir, arrays, seconds


def unfinished(directory):
  """Returns whether files are being written, or were when a process died."""
  return any(directory.glob('.*.tmp'))


def wait(process):
  """Waits for a moment in which a process must not end."""
  assert process.poll() is None, 'raise EPOCHS'
  time.sleep(0.001)


def kill(process, directory, rng, *, epoch, saving):
  """Kills a process while it trains, or while it saves; returns its output.

  Args:
    process: it has just been started.
    directory: its checkpoints.
    rng: decides about the moment.
    epoch: seconds of an epoch.
    saving: seconds that saving a checkpoint takes.
  """
  said = ''
  while f'/{LAST}  ' not in said:  # the first line of the log
    said += process.stdout.readline()
    assert process.poll() is None, process.stderr.read()
  last = max(steps_in(directory), default=0)
  last += runs.STEPS_PER_EPOCH * rng.randrange(3)
  while max(steps_in(directory), default=0) < last:
    wait(process)
  if rng.random() < 0.5:
    while not unfinished(directory):
      wait(process)
    time.sleep(rng.uniform(0, 1.5 * saving))
  else:
    time.sleep(rng.uniform(0, 2 * epoch))
  process.kill()
  process.communicate()
  assert process.returncode == -signal.SIGKILL, 'raise EPOCHS'
  return said


@pytest.mark.slow
@pytest.mark.job
@pytest.mark.parametrize('seed', range(5))
def test_run_that_is_killed_ten_times_ends_with_the_same_bits(
  seed, unharmed, tmp_path
):
  alone, arrays, seconds = unharmed
  workdir, rng = tmp_path / 'run', random.Random(seed)
  directory = workdir / CHECKPOINTS
  devices, done, writing = jax.device_count(), [], 0
  for _ in range(KILLS):
    process = runs.start(workdir, *LONG, devices=devices)
    said = kill(process, directory, rng, **seconds)
    if done and done[-1]:
      assert f'continues: step {done[-1]} of {LAST}' in said
    writing += unfinished(directory)
    for step in steps_in(directory):
      runs.check_same_bits(runs.arrays_of(workdir, step), arrays[step])
    done.append(max(steps_in(directory), default=0))
  print(f'killed after saving {done}, {writing} times while writing')
  said, err = runs.start(workdir, *LONG, devices=devices).communicate()
  assert err == ''
  assert f'continues: step {done[-1]} of {LAST}' in said
  runs.check_equal(workdir, alone, step=LAST)
  assert not list(tmp_path.rglob('*_damaged'))
