"""Does a run survive every damage to the files of its checkpoints?"""

import json
import pathlib
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from mpbn_jax import checkpoint, report
from mpbn_jax.checkpoint import Checkpoints
from mpbn_jax.errors import InputError


def tree(value):
  return {
    'params': {'kernel': np.full((3, 4), value, np.float32)},
    'step': np.int32(value),
  }


def items(value):
  return {'state': tree(value), 'window': {'loss': np.float32(value)}}


def write(directory, accuracies):
  """Saves a checkpoint for each {step: validation accuracy}."""
  with Checkpoints(directory) as checkpoints:
    for step, accuracy in accuracies.items():
      checkpoints.save(step, items(step), validation_accuracy=accuracy)
  return directory


def value_of(restored):
  step, found = restored
  np.testing.assert_array_equal(
    found['state']['params']['kernel'], tree(step)['params']['kernel']
  )
  assert found['window']['loss'] == step
  return step


# ---- which checkpoints are kept


@pytest.mark.parametrize(
  ('accuracies', 'kept', 'best'),
  [
    ({1: 0.5, 2: 0.6, 3: 0.1, 4: 0.2, 5: 0.05}, [2, 4, 5], 2),
    ({1: 0.5, 2: 0.6, 3: 0.7}, [2, 3], 3),
    ({1: 0.5, 2: 0.5, 3: 0.5}, [2, 3], 3),
    ({1: 0.5, 2: 0.1, 3: None, 4: None}, [1, 3, 4], 1),
    ({1: None, 2: None, 3: None}, [2, 3], None),
  ],
)
def test_keeps_the_last_two_and_the_best(tmp_path, accuracies, kept, best):
  directory = write(tmp_path / 'c', accuracies)
  with Checkpoints(directory, read_only=True) as checkpoints:
    assert checkpoints.steps() == kept
    assert checkpoints.best_step() == best


def test_the_best_is_kept_by_the_next_process(tmp_path):
  directory = write(tmp_path / 'c', {1: 0.9, 2: 0.1})
  write(directory, {3: 0.2})
  write(directory, {4: 0.3, 5: 0.4})
  with Checkpoints(directory) as checkpoints:
    assert checkpoints.steps() == [1, 4, 5]
    assert checkpoints.best_step() == 1


def test_saving_a_step_again_leaves_it(tmp_path):
  directory = write(tmp_path / 'c', {1: 0.5})
  before = runs.snapshot(directory)
  write(directory, {1: 0.9})
  assert runs.snapshot(directory) == before


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
  directory = write(tmp_path / 'c', {1: 0.5})
  leftover = directory / '2.orbax-checkpoint-tmp'
  shutil.copytree(directory / '1', leftover)
  with Checkpoints(directory, read_only=True) as checkpoints:
    assert checkpoints.steps() == [1]
  assert leftover.exists()
  write(directory, {2: 0.6})
  assert not leftover.exists()
  with Checkpoints(directory) as checkpoints:
    assert value_of(checkpoints.restore_latest(items(0))) == 2


def test_restoring_from_nothing_is_none(tmp_path):
  with Checkpoints(tmp_path / 'c') as checkpoints:
    assert checkpoints.restore_latest(items(0)) is None
    assert checkpoints.best_step() is None


# ---- damage


def truncate(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
  path.write_bytes(b'')


def flip(path):
  content = bytearray(path.read_bytes() or b' ')
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def delete(path):
  path.unlink()


# At the top of a checkpoint; written last, and not needed.
NOT_NEEDED = ('commit_success.txt', '_CHECKPOINT_METADATA')
DAMAGES = {'truncate': truncate, 'empty': empty, 'flip': flip, 'delete': delete}


def every_file(step_directory):
  """Returns the files of a checkpoint; names of data files are random."""
  return sorted(p for p in step_directory.rglob('*') if p.is_file())


@pytest.mark.parametrize('damage', DAMAGES)
def test_every_damaged_file_restores_or_falls_back(damage, tmp_path, caplog):
  pristine = write(tmp_path / 'pristine', {1: 0.5, 2: 0.6})
  files = every_file(pristine / '2')
  assert len(files) > 10
  for i, file in enumerate(files):
    directory = tmp_path / str(i) / 'c'
    shutil.copytree(pristine, directory)
    DAMAGES[damage](directory / file.relative_to(pristine))
    caplog.clear()
    with Checkpoints(directory) as checkpoints:
      step = value_of(checkpoints.restore_latest(items(0)))
      # Training goes on, and saves the same step and the next again.
      for again in range(step + 1, 4):
        checkpoints.save(again, items(again), validation_accuracy=0.7)
    needed = file.name not in NOT_NEEDED or file.parent != pristine / '2'
    assert step == (1 if needed else 2), file
    aside = directory.with_name('c_damaged')
    if step == 1:
      assert f'{directory}/2 cannot be read' in caplog.text
      assert f'moved to {aside}/2' in caplog.text
      assert (aside / '2').is_dir()
    else:
      assert 'cannot be read' not in caplog.text
      assert not aside.exists()
    with Checkpoints(directory) as checkpoints:
      assert checkpoints.steps()[-2:] == [2, 3]
      assert value_of(checkpoints.restore_latest(items(0))) == 3


def test_damaged_twice_keeps_both_damaged(tmp_path):
  directory = write(tmp_path / 'c', {1: 0.5, 2: 0.6})
  for _ in range(2):
    delete(directory / '2' / 'state' / '_METADATA')
    with Checkpoints(directory) as checkpoints:
      assert value_of(checkpoints.restore_latest(items(0))) == 1
      checkpoints.save(2, items(2), validation_accuracy=0.6)
  aside = sorted(p.name for p in tmp_path.joinpath('c_damaged').iterdir())
  assert aside == ['2', '2.1']


def test_half_deleted_old_checkpoint_is_no_obstacle(tmp_path):
  # A process was killed while it removed a checkpoint that is not kept.
  directory = write(tmp_path / 'c', {1: 0.5, 2: 0.6})
  shutil.rmtree(directory / '1')
  (directory / '1').mkdir()
  with Checkpoints(directory) as checkpoints:
    assert value_of(checkpoints.restore_latest(items(0))) == 2
    assert checkpoints.best_step() == 2
    checkpoints.save(3, items(3), validation_accuracy=0.1)
    checkpoints.wait()
    assert checkpoints.steps() == [2, 3]


def test_all_damaged_is_one_error_and_nothing_moves(tmp_path):
  directory = write(tmp_path / 'c', {1: 0.5, 2: 0.6})
  for step in '12':
    truncate(directory / step / 'state' / '_METADATA')
  before = runs.snapshot(tmp_path)
  with (
    Checkpoints(directory) as checkpoints,
    pytest.raises(InputError, match='none of .*/2, .*/1 can be read') as error,
  ):
    checkpoints.restore_latest(items(0))
  assert 'train into another --workdir' in str(error.value)
  assert '\n' not in str(error.value)
  assert runs.snapshot(tmp_path) == before


def test_read_only_falls_back_and_moves_nothing(tmp_path, caplog):
  directory = write(tmp_path / 'c', {1: 0.5, 2: 0.6})
  truncate(directory / '2' / 'state' / '_METADATA')
  before = runs.snapshot(tmp_path)
  with Checkpoints(directory, read_only=True) as checkpoints:
    assert value_of(checkpoints.restore_latest(items(0))) == 1
  assert 'cannot be read' in caplog.text
  assert 'moved' not in caplog.text
  assert runs.snapshot(tmp_path) == before


def test_damaged_step_that_was_asked_for_is_an_input_error(tmp_path):
  directory = write(tmp_path / 'c', {1: 0.5, 2: 0.6})
  delete(directory / '1' / 'state' / '_METADATA')
  with (
    Checkpoints(directory, read_only=True) as checkpoints,
    pytest.raises(InputError, match='expected a readable checkpoint in .*/1'),
  ):
    checkpoints.restore(items(0), step=1)


# ---- folded variables


def test_variables_come_back_as_they_were(tmp_path):
  variables = {'params': {'a': np.arange(3.0, dtype=np.float32)}}
  checkpoint.save_variables(tmp_path / 'x' / '1', variables)
  checkpoint.save_variables(tmp_path / 'x' / '1', variables)
  loaded = checkpoint.load_variables(tmp_path / 'x' / '1')
  jax.tree.map(np.testing.assert_array_equal, loaded, variables)


@pytest.mark.parametrize('damage', ['missing', 'truncated'])
def test_unreadable_variables_are_an_input_error(damage, tmp_path):
  path = tmp_path / '1'
  if damage == 'truncated':
    checkpoint.save_variables(path, {'a': np.ones(3, np.float32)})
    truncate(path / '_METADATA')
  with pytest.raises(InputError, match='run --mode=fold again'):
    checkpoint.load_variables(path)


# ---- the same through main.py


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """Returns the work directory of a finished run; not to be changed."""
  workdir = tmp_path_factory.mktemp('trained') / 'run'
  assert runs.run(workdir) == 0
  return workdir


@pytest.fixture
def workdir(trained, tmp_path) -> pathlib.Path:
  return shutil.copytree(trained, tmp_path / 'run')


def test_training_falls_back_and_repeats_the_lost_epoch(
  trained, workdir, capsys
):
  truncate(workdir / 'checkpoints' / '32' / 'state' / 'manifest.ocdbt')
  assert runs.run(workdir) == 0
  out, err = capsys.readouterr()
  assert err.startswith('warning: checkpoint ')
  assert err.count('\n') == 1
  assert 'continues: step 16 of 32' in out
  assert (workdir / 'checkpoints_damaged' / '32').is_dir()
  ours, theirs = map(report.read_summary, (workdir, trained))
  assert ours['firing_rate'] == theirs['firing_rate']
  assert ours['thresholds'] == theirs['thresholds']


@pytest.mark.parametrize('mode', ['evaluate', 'fold'])
def test_reading_modes_fall_back_and_move_nothing(mode, workdir, capsys):
  checkpoints = workdir / 'checkpoints'
  truncate(checkpoints / '32' / 'state' / 'manifest.ocdbt')
  before = runs.snapshot(checkpoints)
  assert runs.run(workdir, f'--mode={mode}') == 0
  _, err = capsys.readouterr()
  assert err.startswith('warning: checkpoint ')
  assert err.count('\n') == 1
  assert report.read_summary(workdir)['step'] == 16
  assert runs.snapshot(checkpoints) == before


def test_falling_back_is_one_line_in_a_process_of_its_own(workdir):
  truncate(workdir / 'checkpoints' / '32' / 'state' / 'manifest.ocdbt')
  process = runs.start(workdir, '--mode=evaluate')
  _, err = process.communicate()
  assert process.returncode == 0
  assert err.startswith('warning: checkpoint ')
  assert err.count('\n') == 1


@pytest.mark.parametrize('mode', ['train', 'evaluate', 'fold'])
def test_all_damaged_is_one_line_and_nothing_changes(mode, workdir, capsys):
  for step in ('16', '32'):
    truncate(workdir / 'checkpoints' / step / 'state' / 'manifest.ocdbt')
  before = runs.snapshot(workdir)
  arguments = [f'--mode={mode}', '--config.num_epochs=3']
  assert runs.run(workdir, *arguments) == 2
  out, err = capsys.readouterr()
  assert out == ''
  assert err.startswith('error: expected a readable checkpoint, but none of')
  assert err.count('\n') == 1
  assert runs.snapshot(workdir) == before


def test_damaged_best_is_one_line(workdir, capsys):
  with Checkpoints(workdir / 'checkpoints', read_only=True) as checkpoints:
    best = checkpoints.best_step()
  truncate(workdir / 'checkpoints' / str(best) / 'state' / 'manifest.ocdbt')
  before = runs.snapshot(workdir)
  best = '--config.evaluation.checkpoint=best'
  assert runs.run(workdir, '--mode=evaluate', best) == 2
  _, err = capsys.readouterr()
  assert 'expected a readable checkpoint' in err
  assert err.count('\n') == 1
  assert runs.snapshot(workdir) == before


def test_no_best_is_one_line(workdir, capsys):
  for path in (workdir / 'checkpoints').glob('*/validation/metadata'):
    path.write_text(json.dumps({'accuracy': None}))
  best = '--config.evaluation.checkpoint=best'
  assert runs.run(workdir, '--mode=evaluate', best) == 2
  _, err = capsys.readouterr()
  assert 'a checkpoint that was measured on validation, got none' in err
  assert err.count('\n') == 1


def test_a_place_that_cannot_be_written_leaves_no_waiting_thread(tmp_path):
  """Orbax's threads would hold the process for ten minutes."""
  (tmp_path / 'taken').write_text('mine')
  before = set(threading.enumerate())
  with pytest.raises(InputError, match='expected to write in .*taken'):
    checkpoint.save_variables(tmp_path / 'taken' / '7', {'a': jnp.ones(3)})
  with pytest.raises(InputError, match='expected to write in .*taken'):
    checkpoint.Checkpoints(tmp_path / 'taken')
  assert set(threading.enumerate()) == before
