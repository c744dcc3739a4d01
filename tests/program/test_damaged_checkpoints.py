"""Damaged checkpoints: set aside in training, refused in evaluation.

Every kind of damage in every file is in test_damage.py.
"""

import pathlib
import shutil

import pytest
import runs
from checkpoint_items import damage, tree, value_of, write
from runs import the_error

from mpbn_jax import arrays, checkpoint
from mpbn_jax.checkpoint import Checkpoints
from mpbn_jax.errors import InputError

BEST = '--config.evaluation.checkpoint=best'


def test_training_goes_on_from_the_one_before_the_damaged(tmp_path, caplog):
  directory = write(tmp_path / 'c', {1: 0.5, 2: 0.6})
  for again in ('2', '2.1'):
    damage(directory / '2')
    caplog.clear()
    checkpoints = Checkpoints(directory)
    assert value_of(checkpoints.restore_latest(tree(0))) == 1
    aside = tmp_path / 'c_damaged' / again
    assert f'{directory}/2 cannot be read (' in caplog.text
    assert f'from 1, the one before it; moved to {aside}' in caplog.text
    assert aside.exists()
    checkpoints.save(2, tree(2), validation_accuracy=0.6)
  assert value_of(Checkpoints(directory).restore_latest(tree(0))) == 2


def test_evaluation_takes_no_other_checkpoint_than_the_last(tmp_path):
  directory = write(tmp_path / 'c', {1: 0.5, 2: 0.6})
  damage(directory / '2')
  before = runs.snapshot(tmp_path)
  checkpoints = Checkpoints(directory, read_only=True)
  with pytest.raises(InputError, match='2 cannot be read .*run --mode=tra'):
    checkpoints.restore_latest(tree(0))
  assert runs.snapshot(tmp_path) == before


def test_all_damaged_is_one_error_and_nothing_moves(tmp_path):
  directory = write(tmp_path / 'c', {1: 0.5, 2: 0.6})
  for step in '12':
    damage(directory / f'{step}')
  before = runs.snapshot(tmp_path)
  with pytest.raises(InputError, match=r'2 cannot .*1 cannot') as error:
    Checkpoints(directory).restore_latest(tree(0))
  assert 'train into another --workdir' in str(error.value)
  assert '\n' not in str(error.value)
  assert runs.snapshot(tmp_path) == before


def test_missing_checkpoint_is_missed(tmp_path, caplog):
  directory = write(tmp_path / 'c', {1: 0.9, 2: 0.5, 3: 0.6})
  shutil.rmtree(directory / '3')
  reader = Checkpoints(directory, read_only=True)
  for restore in (reader.restore_latest, reader.restore_best):
    with pytest.raises(InputError, match=r'3 cannot be read \(it is missi'):
      restore(tree(0))
  assert value_of(Checkpoints(directory).restore_latest(tree(0))) == 2
  assert '3 cannot be read (it is missing)' in caplog.text
  shutil.rmtree(directory / '1')
  assert value_of(Checkpoints(directory).restore_latest(tree(0))) == 2
  assert '1 is missing, and may have been the best one' in caplog.text
  caplog.clear()  # it is said once
  assert value_of(Checkpoints(directory).restore_latest(tree(0))) == 2
  assert caplog.text == ''


def test_missing_or_damaged_index_is_one_error(tmp_path):
  directory = write(tmp_path / 'c', {1: 0.5, 2: 0.6})
  for content in (None, b'', b'[]', b'{"steps": [1.5]}', b'\xff'):
    (directory / 'index.json').unlink()
    if content is not None:
      (directory / 'index.json').write_bytes(content)
    for read_only in (True, False):
      with pytest.raises(InputError, match='index.json.*"steps": .1, 2.'):
        Checkpoints(directory, read_only=read_only).restore_latest(tree(0))
    (directory / 'index.json').write_text('{"steps": [1, 2]}')
    assert value_of(Checkpoints(directory).restore_latest(tree(0))) == 2


def test_best_one_is_named_if_its_record_is_damaged(tmp_path):
  directory = write(tmp_path / 'c', {1: 0.9, 2: 0.1, 3: 0.2})
  damage_notes(directory / '1')
  checkpoints = Checkpoints(directory, read_only=True)
  with pytest.raises(InputError, match='1 cannot be read') as error:
    checkpoints.restore_best(tree(0))
  assert '--config.evaluation.checkpoint=latest' in str(error.value)
  assert '\n' not in str(error.value)
  with pytest.raises(InputError, match='1 cannot be read'):
    checkpoints.best_step()


def damage_notes(path):
  content = (path / 'notes.json').read_text()
  assert content.count('"validation_accuracy": 0.9') == 1
  content = content.replace('accuracy": 0.9', 'accuracy": 0.0')
  (path / 'notes.json').write_text(content)


def test_training_on_keeps_what_may_be_the_best(tmp_path):
  directory = write(tmp_path / 'c', {1: 0.9, 2: 0.1, 3: 0.2})
  damage_notes(directory / '1')
  write(directory, {4: 0.3, 5: 0.4, 6: 0.2})
  assert Checkpoints(directory, read_only=True).steps() == [1, 5, 6]


def test_checkpoint_under_another_name_is_no_checkpoint(tmp_path):
  directory = write(tmp_path / 'c', {1: 0.5, 2: 0.6})
  shutil.rmtree(directory / '2')
  shutil.copytree(directory / '1', directory / '2')
  checkpoints = Checkpoints(directory, read_only=True)
  with pytest.raises(InputError, match=r'2 cannot .*\(it holds step 1\)'):
    checkpoints.restore_latest(tree(0))


def test_unreadable_by_this_user_is_not_set_aside(tmp_path, monkeypatch):
  directory = write(tmp_path / 'c', {1: 0.5, 2: 0.6})
  read_text = pathlib.Path.read_text

  def forbidden(path, *args):
    if path.parent.name == '2':
      raise PermissionError(13, 'Permission denied')
    return read_text(path, *args)

  monkeypatch.setattr(pathlib.Path, 'read_text', forbidden)
  with pytest.raises(InputError, match=r'2 cannot .*\(Permission denied\)'):
    Checkpoints(directory).restore_latest(tree(0))
  assert (directory / '2').exists()


def test_reader_beside_a_writer_finds_what_is_there_now(tmp_path, monkeypatch):
  directory = write(tmp_path / 'c', {1: 0.9, 2: 0.1})
  reader = Checkpoints(directory, read_only=True)
  restore = Checkpoints._restore

  def overtaken(self, like, step):
    monkeypatch.undo()
    write(directory, {3: 0.95, 4: 0.2, 5: 0.3})
    return restore(self, like, step)

  monkeypatch.setattr(Checkpoints, '_restore', overtaken)
  assert value_of(reader.restore_best(tree(0))) == 3


# ---- the same through main.py


@pytest.fixture
def workdir(tmp_path):
  return shutil.copytree(runs.finished(), tmp_path / 'run')


@pytest.mark.parametrize('mode', ['train', 'evaluate', 'fold'])
def test_all_damaged_is_one_line_and_nothing_changes(mode, workdir, capsys):
  for step in ('16', '32'):
    damage(workdir / 'checkpoints' / f'{step}')
  before = runs.snapshot(workdir)
  arguments = [f'--mode={mode}', '--config.num_epochs=3']
  assert runs.run(workdir, *arguments) == 2
  assert '32 cannot be read' in the_error(capsys.readouterr())
  assert runs.snapshot(workdir) == before


def test_damaged_best_is_one_line(workdir, capsys):
  best = Checkpoints(workdir / 'checkpoints', read_only=True).best_step()
  damage(workdir / 'checkpoints' / f'{best}')
  before = runs.snapshot(workdir)
  assert runs.run(workdir, '--mode=evaluate', BEST) == 2
  assert f'{best} cannot be read' in the_error(capsys.readouterr())
  assert runs.snapshot(workdir) == before


def test_no_best_is_one_line(workdir, capsys):
  directory = workdir / 'checkpoints'
  for step in checkpoint.steps_in(directory):
    path = directory / f'{step}'
    tree, notes = arrays.read(path)
    arrays.save(path, tree, notes={**notes, 'validation_accuracy': None})
  assert runs.run(workdir, '--mode=evaluate', BEST) == 2
  message = the_error(capsys.readouterr())
  assert 'a checkpoint that was measured on validation, got none' in message
