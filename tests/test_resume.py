"""Does a run that was stopped end with the bits of one that was not?"""

import json
import re
import shutil
import signal
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import runs

from mpbn_jax import report, train
from mpbn_jax.interrupt import SignalCatcher

LAST = runs.EPOCHS * runs.STEPS_PER_EPOCH
LINE = re.compile(r'step (\d+)/')


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
  """Returns the work directory of a run that nobody stopped."""
  workdir = tmp_path_factory.mktemp('uninterrupted') / 'run'
  process = runs.start(workdir)
  _, err = process.communicate()
  assert (process.returncode, err) == (0, '')
  return workdir


def arrays(workdir, step=LAST):
  """Returns every array of a checkpoint, state and metrics."""
  found = {}
  for item in ('state', 'window'):
    path = workdir.absolute() / 'checkpoints' / str(step) / item
    with ocp.StandardCheckpointer() as checkpointer:
      tree = checkpointer.restore(path)
    for key, leaf in jax.tree_util.tree_leaves_with_path(tree):
      found[item + jax.tree_util.keystr(key)] = np.asarray(leaf)
  return found


def metrics(workdir):
  """Returns the lines of metrics.jsonl without what a clock decides."""
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  found = [json.loads(line) for line in lines]
  for line in found:
    for name in ('steps_per_second', 'data_wait'):
      line.pop(name, None)
  return found


def check_equal(workdir, other):
  ours, theirs = arrays(workdir), arrays(other)
  assert ours.keys() == theirs.keys()
  for name, array in ours.items():
    assert array.dtype == theirs[name].dtype, name
    assert array.tobytes() == theirs[name].tobytes(), name
  assert metrics(workdir) == metrics(other)
  summaries = [report.read_summary(path) for path in (workdir, other)]
  for summary in summaries:
    for key in ('seconds', 'date'):
      del summary[key]
  assert summaries[0] == summaries[1]


def stop_at(workdir, step, signum):
  """Starts a run, stops it when it says a step; returns (code, out, err)."""
  process = runs.start(workdir)
  said = []
  for line in process.stdout:
    said.append(line)
    match = LINE.match(line)
    if match and int(match[1]) >= step:
      process.send_signal(signum)
      break
  out, err = process.communicate()
  return process.returncode, ''.join(said) + out, err


def finish(workdir):
  process = runs.start(workdir)
  out, err = process.communicate()
  assert (process.returncode, err) == (0, '')
  return out


@pytest.mark.slow
@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGINT])
def test_stopped_by_a_signal_saves_and_resumes_bit_for_bit(
  signum, uninterrupted, tmp_path
):
  workdir = tmp_path / 'run'
  code, _, err = stop_at(workdir, 5, signum)
  assert code == 128 + signum
  match = re.fullmatch(
    rf'stopped at step (\d+) of {LAST}, saved in (\S+): the same command '
    r'continues\n',
    err,
  )
  assert match, err
  step = int(match[1])
  assert 5 <= step <= LAST
  assert match[2] == str(workdir / 'checkpoints' / str(step))
  assert f'continues: step {step} of {LAST}' in finish(workdir)
  check_equal(workdir, uninterrupted)


@pytest.mark.slow
def test_killed_run_continues_from_the_last_checkpoint(uninterrupted, tmp_path):
  workdir = tmp_path / 'run'
  process = runs.start(workdir)
  while not (workdir / 'checkpoints' / '16').exists():
    assert process.poll() is None
    time.sleep(0.001)
  process.kill()
  process.communicate()
  assert process.returncode == -signal.SIGKILL
  # 32, if the machine was busy in between.
  assert re.search(rf'step (16|32) of {LAST}', finish(workdir))
  check_equal(workdir, uninterrupted)


@pytest.mark.parametrize('kept', [(), (16,)])
def test_run_that_lost_what_came_after_a_checkpoint_is_completed(
  kept, uninterrupted, tmp_path
):
  # What kill -9 leaves at an exact place: metrics that are ahead, a half
  # written line, a half written checkpoint.
  workdir = shutil.copytree(uninterrupted, tmp_path / 'run')
  checkpoints = workdir / 'checkpoints'
  (workdir / 'summary.json').unlink()
  (checkpoints / str(LAST)).rename(checkpoints / f'{LAST}.orbax-checkpoint-tmp')
  (checkpoints / f'{LAST}.orbax-checkpoint-tmp' / 'files.json').unlink()
  if not kept:
    shutil.rmtree(checkpoints / '16')
  with (workdir / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 33, "lo')
  out = finish(workdir)
  assert (f'continues: step 16 of {LAST}' in out) == bool(kept)
  check_equal(workdir, uninterrupted)


def test_signal_before_the_first_step_saves_the_initial_state(
  uninterrupted, tmp_path
):
  workdir = tmp_path / 'run'
  process = runs.start(workdir)
  for line in process.stdout:
    if line.startswith('Total: '):  # the overview comes before training
      process.send_signal(signal.SIGTERM)
      break
  _, err = process.communicate()
  assert process.returncode == 128 + signal.SIGTERM
  assert re.match(rf'stopped at step [0-9]+ of {LAST}, saved in', err)
  finish(workdir)
  check_equal(workdir, uninterrupted)


def test_signal_after_training_is_one_line(uninterrupted, tmp_path):
  workdir = shutil.copytree(uninterrupted, tmp_path / 'run')
  before = runs.snapshot(workdir)
  process = runs.start(workdir)
  for line in process.stdout:
    if 'is trained' in line:
      process.send_signal(signal.SIGINT)
      break
  _, err = process.communicate()
  assert process.returncode == 128 + signal.SIGINT
  assert err.startswith('stopped')
  assert err.count('\n') == 1
  assert runs.snapshot(workdir) == before


@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGINT])
def test_signal_while_evaluating_is_one_line(
  signum, uninterrupted, tmp_path, capsys, monkeypatch
):
  workdir = shutil.copytree(uninterrupted, tmp_path / 'run')
  before = runs.snapshot(workdir)
  handler = signal.getsignal(signum)
  monkeypatch.setattr(
    report, 'compare', lambda *_, **__: signal.raise_signal(signum)
  )
  assert runs.run(workdir) == 128 + signum
  assert capsys.readouterr().err == (
    'stopped; the checkpoints written so far stay: the same command continues\n'
  )
  assert runs.snapshot(workdir) == before
  assert signal.getsignal(signum) == handler


def test_signal_while_importing_leaves_no_directory(tmp_path):
  workdir = tmp_path / 'run'
  file = tmp_path / 'slow.py'
  file.write_text('import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n')
  process = runs.start(workdir, f'--config={file}')
  _, err = process.communicate()
  assert process.returncode == 128 + signal.SIGTERM
  assert err.startswith('stopped')
  assert not workdir.exists()


def test_second_ctrl_c_stops_at_once_and_a_second_sigterm_does_not():
  before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
  with SignalCatcher() as signals:
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    assert signals.received == signal.SIGTERM
    with pytest.raises(KeyboardInterrupt):
      signal.raise_signal(signal.SIGINT)
  after = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
  assert after == before


# ---- NaN


def test_nan_names_metric_and_step_and_saves_nothing(tmp_path, capsys):
  workdir = tmp_path / 'run'
  assert runs.run(workdir, '--config.optimizer.learning_rate=1e30') == 1
  _, err = capsys.readouterr()
  assert re.match(
    r'error: expected finite metrics, got loss = nan at step \d+: lower '
    r'optimizer.learning_rate .*; nothing was saved\n$',
    err,
  )
  assert not list((workdir / 'checkpoints').iterdir())
  assert not (workdir / 'summary.json').exists()


def test_nan_leaves_the_checkpoint_before_it(
  uninterrupted, tmp_path, capsys, monkeypatch
):
  workdir = shutil.copytree(uninterrupted, tmp_path / 'run')
  before = runs.snapshot(workdir / 'checkpoints')
  # A NaN in a normalization's statistics gives NaN potentials, no spikes and
  # a finite loss.
  make = train.make_train_step

  def poisoned(experiment):
    step = make(experiment)

    def broken(state, window, batch):
      state, window, loss = step(state, window, batch)
      stats = jax.tree.map(lambda x: x * np.nan, state.batch_stats)
      return state.replace(batch_stats=stats), window, loss

    return broken

  monkeypatch.setattr(train, 'make_train_step', poisoned)
  assert runs.run(workdir, '--config.num_epochs=3') == 1
  _, err = capsys.readouterr()
  assert re.match(
    r'error: expected finite variables, got batch_stats/\S+ with NaN or '
    rf'infinity at step 48: lower .*; checkpoint {LAST} stays\n$',
    err,
  )
  assert runs.snapshot(workdir / 'checkpoints') == before
