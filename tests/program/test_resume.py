"""Runs that were stopped and end with the same bits."""

import re
import shutil
import signal
import sys
import time

import jax
import numpy as np
import pytest
import runs
from runs import LAST

from mpbn_jax import interrupt, report, tables, training
from mpbn_jax.checkpoint import steps_in
from mpbn_jax.interrupt import SignalCatcher


@pytest.fixture
def uninterrupted():
  """Returns the work directory of a run that nobody stopped."""
  return runs.finished()


def finish(workdir, capsys):
  assert runs.run(workdir) == 0
  out, err = capsys.readouterr()
  assert err == ''
  return out


@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGINT])
def test_stopped_by_a_signal_saves_and_resumes_bit_for_bit(
  signum, uninterrupted, tmp_path, capsys, monkeypatch
):
  workdir = tmp_path / 'run'
  runs.at_step(monkeypatch, 20, lambda: signal.raise_signal(signum))
  assert runs.run(workdir) == 128 + signum
  assert capsys.readouterr().err == (
    f'stopped at step 20 of {LAST}, saved in {workdir}/checkpoints/20: run the '
    'same command again to resume\n'
  )
  assert f'continues: step 20 of {LAST}' in finish(workdir, capsys)
  runs.check_equal(workdir, uninterrupted)


@pytest.mark.slow
def test_killed_run_continues_from_the_last_checkpoint(uninterrupted, tmp_path):
  workdir = tmp_path / 'run'
  process = runs.start(workdir, devices=jax.device_count())
  while not (workdir / 'checkpoints' / '16').exists():
    assert process.poll() is None
    time.sleep(0.001)
  process.kill()
  process.communicate()
  assert process.returncode == -signal.SIGKILL
  process = runs.start(workdir, devices=jax.device_count())
  said, err = process.communicate()
  assert (process.returncode, err) == (0, '')
  # 32, if the machine was busy in between.
  assert re.search(rf'step (16|32) of {LAST}', said)
  runs.check_equal(workdir, uninterrupted)


@pytest.mark.parametrize('kept', [(), (16,)])
def test_run_that_lost_what_came_after_a_checkpoint_is_completed(
  kept, uninterrupted, tmp_path, capsys
):
  # What kill -9 leaves at an exact place: metrics that are ahead, a half
  # written line, a half written checkpoint.
  workdir = runs.half(tmp_path / 'run')
  checkpoints = workdir / 'checkpoints'
  (workdir / 'summary.json').unlink()
  (checkpoints / f'.{LAST}.7-ab.tmp').mkdir()
  if not kept:
    shutil.rmtree(checkpoints / '16')
    (checkpoints / 'index.json').write_text('{"steps": []}')
  with (workdir / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 33, "lo')
  out = finish(workdir, capsys)
  assert (f'continues: step 16 of {LAST}' in out) == bool(kept)
  runs.check_equal(workdir, uninterrupted)


def test_run_that_fell_back_repeats_the_lost_epoch(
  uninterrupted, tmp_path, capsys
):
  workdir = shutil.copytree(uninterrupted, tmp_path / 'run')
  last = workdir / 'checkpoints' / str(LAST)
  notes = last / 'notes.json'
  notes.write_bytes(notes.read_bytes()[:-100])
  assert runs.run(workdir) == 0
  out, err = capsys.readouterr()
  assert err.startswith(f'warning: {last} cannot be read (')
  assert err.count('\n') == 1
  assert f'continues: step 16 of {LAST}' in out
  runs.check_equal(workdir, uninterrupted)


def test_signal_before_the_first_step_saves_the_initial_state(
  tmp_path, capsys, monkeypatch
):
  workdir = tmp_path / 'run'
  table = tables.parameters

  def signalled(params):
    signal.raise_signal(signal.SIGTERM)
    return table(params)

  monkeypatch.setattr(tables, 'parameters', signalled)
  assert runs.run(workdir) == 128 + signal.SIGTERM
  assert f'stopped at step 0 of {LAST}, saved in' in capsys.readouterr().err
  assert steps_in(workdir / 'checkpoints') == [0]


def test_signal_after_training_is_one_line(
  uninterrupted, tmp_path, capsys, monkeypatch
):
  workdir = shutil.copytree(uninterrupted, tmp_path / 'run')
  before = runs.snapshot(workdir)
  going_on = training._going_on

  def signalled(*args):
    signal.raise_signal(signal.SIGINT)
    return going_on(*args)

  monkeypatch.setattr(training, '_going_on', signalled)
  arguments = ('--config.log.tensorboard=true',)
  assert runs.run(workdir, *arguments) == 128 + signal.SIGINT
  assert capsys.readouterr().err.startswith(f'stopped at step {LAST} of {LAST}')
  assert runs.snapshot(workdir) == before


# ---- signals whose exception is lost


def lost(signum):
  """Sends a signal where Python drops exceptions, as in callbacks of JAX."""

  class Dropped:
    def __del__(self):
      signal.raise_signal(signum)

  Dropped()


@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGINT])
def test_signal_that_is_lost_while_starting_stops_before_the_first_step(
  signum, tmp_path, capsys, monkeypatch
):
  build = training.build

  def signalled(*args, **kwargs):
    lost(signum)
    return build(*args, **kwargs)

  monkeypatch.setattr(training, 'build', signalled)
  assert runs.run(tmp_path / 'run') == 128 + signum
  err = capsys.readouterr().err
  assert err.startswith(f'stopped at step 0 of {LAST}')
  assert err.count('\n') == 1


def test_signal_that_is_lost_while_evaluating_is_the_exit_code(
  uninterrupted, tmp_path, capsys, monkeypatch
):
  workdir = shutil.copytree(uninterrupted, tmp_path / 'run')
  monkeypatch.setattr(
    report, 'summarize', lambda *_, **__: lost(signal.SIGTERM)
  )
  code = runs.run(workdir, '--mode=evaluate')
  assert code == 128 + signal.SIGTERM
  assert capsys.readouterr().err == (
    'stopped; the checkpoints written so far are kept: run the same command '
    'again to resume\n'
  )


def test_error_that_a_signal_caused_is_not_told(
  uninterrupted, capsys, monkeypatch
):
  def broken(*_, **__):
    try:
      signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
      raise RuntimeError('a library makes this of it') from None

  monkeypatch.setattr(report, 'restore', broken)
  code = runs.run(uninterrupted, '--mode=evaluate')
  assert code == 128 + signal.SIGINT
  assert capsys.readouterr().err.startswith('stopped; ')


def test_other_exceptions_that_are_lost_are_still_shown(monkeypatch):
  shown = []
  monkeypatch.setattr(sys, 'unraisablehook', shown.append)

  class Broken:
    def __del__(self):
      raise ZeroDivisionError

  with interrupt.raise_on_signals():
    Broken()
  assert [found.exc_type for found in shown] == [ZeroDivisionError]


@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGINT])
def test_signal_while_importing_is_one_line(signum, tmp_path):
  workdir = tmp_path / 'run'
  file = tmp_path / 'slow.py'
  file.write_text(
    f'import signal, time\nsignal.raise_signal({int(signum)})\ntime.sleep(60)\n'
  )
  process = runs.start(workdir, f'--config={file}')
  _, err = process.communicate()
  assert process.returncode == 128 + signum
  assert err == (
    'stopped; the checkpoints written so far are kept: run the same command '
    'again to resume\n'
  )
  assert not workdir.exists()


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
  arguments = ('--config.log.tensorboard=true',)
  assert runs.run(workdir, *arguments) == 128 + signum
  assert capsys.readouterr().err == (
    'stopped; the checkpoints written so far are kept: run the same command '
    'again to resume\n'
  )
  assert runs.snapshot(workdir) == before
  assert signal.getsignal(signum) == handler


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
  assert steps_in(workdir / 'checkpoints') == []
  assert not (workdir / 'summary.json').exists()


def test_nan_leaves_the_checkpoint_before_it(
  uninterrupted, tmp_path, capsys, monkeypatch
):
  workdir = shutil.copytree(uninterrupted, tmp_path / 'run')
  before = runs.snapshot(workdir / 'checkpoints')
  # A NaN in a normalization's statistics gives NaN potentials, no spikes and
  # a finite loss.
  make = training.make_train_step

  def poisoned(experiment):
    step = make(experiment)

    def broken(state, batch):
      state, loss = step(state, batch)
      stats = jax.tree.map(lambda x: x * np.nan, state.batch_stats)
      return state.replace(batch_stats=stats), loss

    broken.lower, broken.eval_shape = step.lower, step.eval_shape
    return broken

  monkeypatch.setattr(training, 'make_train_step', poisoned)
  assert runs.run(workdir, '--config.num_epochs=3') == 1
  _, err = capsys.readouterr()
  assert re.match(
    r'error: expected finite variables, got batch_stats/\S+ with NaN or '
    rf'infinity at step 48: lower .*; checkpoint {LAST} is kept\n$',
    err,
  )
  assert runs.snapshot(workdir / 'checkpoints') == before
