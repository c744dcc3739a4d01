"""Checkpoints: which are kept, whole, and of which run."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from checkpoint_items import tree, value_of, write
from mpbn_jax.configs.default import get_config

from mpbn_jax import arrays
from mpbn_jax.checkpoint import Checkpoints
from mpbn_jax.errors import InputError
from mpbn_jax.files import NotWrittenError

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
  checkpoints = Checkpoints(directory, read_only=True)
  assert checkpoints.steps() == kept
  assert checkpoints.best_step() == best
  names = {path.name for path in directory.iterdir()}
  assert names == {'index.json', *(f'{step}' for step in kept)}


def test_the_best_is_kept_by_the_next_process(tmp_path):
  directory = write(tmp_path / 'c', {1: 0.9, 2: 0.1})
  write(directory, {3: 0.2})
  write(directory, {4: 0.3, 5: 0.4})
  checkpoints = Checkpoints(directory)
  assert checkpoints.steps() == [1, 4, 5]
  assert value_of(checkpoints.restore_best(tree(0))) == 1


def test_saving_a_step_again_leaves_it(tmp_path):
  directory = write(tmp_path / 'c', {1: 0.5})
  before = runs.snapshot(directory)
  write(directory, {1: 0.9})
  assert runs.snapshot(directory) == before


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
  directory = write(tmp_path / 'c', {1: 0.5})
  leftover = directory / '.2.77-ab.tmp'
  shutil.copytree(directory / '1', leftover)
  assert Checkpoints(directory, read_only=True).steps() == [1]
  assert leftover.exists()
  write(directory, {2: 0.6})
  assert not leftover.exists()
  assert value_of(Checkpoints(directory).restore_latest(tree(0))) == 2


def test_restoring_from_nothing_is_none(tmp_path):
  checkpoints = Checkpoints(tmp_path / 'c')
  assert checkpoints.restore_latest(tree(0)) is None
  assert checkpoints.best_step() is None


def test_other_arrays_than_the_run_has_are_refused(tmp_path):
  directory = write(tmp_path / 'c', {1: 0.5})
  checkpoints = Checkpoints(directory, read_only=True)
  like = {**tree(0), 'more': np.float32(0)}
  with pytest.raises(InputError, match='state/more is missing'):
    checkpoints.restore(like, step=1)
  with pytest.raises(InputError, match='state/step is not expected'):
    checkpoints.restore({'params': tree(0)['params']}, step=1)
  like = {**tree(0), 'step': np.int16(0)}
  with pytest.raises(InputError, match=r'int32\[\], expected int16\[\]'):
    checkpoints.restore(like, step=1)


def test_double_precision_is_not_rounded_in_silence(tmp_path):
  arrays.save(tmp_path / 'x.npz', {'a': np.ones(2)}, notes={})
  with pytest.raises(arrays.UnreadableError, match='set jax_enable_x64'):
    arrays.read(tmp_path / 'x.npz')


def test_checkpoint_of_another_configuration_is_refused(tmp_path):
  config = get_config()
  Checkpoints(tmp_path, config=config).save(1, tree(1))
  config.num_epochs += 1  # may differ
  Checkpoints(tmp_path, config=config).restore_latest(tree(0))
  config.model.tau = 0.5
  with pytest.raises(InputError, match='1 .*model.tau: 0.25 -> 0.5'):
    Checkpoints(tmp_path, config=config).restore_latest(tree(0))


def test_checkpoint_of_a_newer_format_is_refused_and_stays(tmp_path):
  directory = write(tmp_path / 'c', {1: 0.5})
  notes = {'format': 4, 'step': 2}
  arrays.save(directory / '2', {'state': tree(2)}, notes=notes)
  with pytest.raises(InputError, match='expected .* format 3 .* got 4'):
    Checkpoints(directory).restore_latest(tree(0))
  assert (directory / '2').exists()


def test_sharding_of_what_is_restored_is_that_of_the_run(tmp_path):
  directory = write(tmp_path / 'c', {1: 0.5})
  devices = jax.devices()[:2]
  everywhere = jax.sharding.NamedSharding(
    jax.sharding.Mesh(np.array(devices), ('data',)),
    jax.sharding.PartitionSpec(),
  )
  like = jax.device_put(jax.tree.map(jnp.asarray, tree(0)), everywhere)
  _, restored = Checkpoints(directory).restore_latest(like)
  assert restored['params']['kernel'].sharding == everywhere


# ---- writing


def test_whatever_moment_a_process_is_killed_at_leaves_a_whole(tmp_path):
  directory = write(tmp_path / 'c', {1: 0.5, 2: 0.1, 3: 0.2})
  checkpoints = Checkpoints(directory)
  moments = runs.moments(
    directory,
    lambda: checkpoints.save(4, tree(4), validation_accuracy=0.3),
    into=tmp_path,
  )
  assert len(moments) >= 5
  seen = set()
  for moment in moments:
    for read_only in (True, False):
      there = Checkpoints(moment, read_only=read_only)
      step = value_of(there.restore_latest(tree(0)))
      assert there.best_step() == 1
    there.save(5, tree(5), validation_accuracy=0.1)
    assert there.steps() == [1, step, 5]
    seen.add(step)
  assert seen == {3, 4}


def test_failing_to_save_leaves_the_one_before(tmp_path, monkeypatch):
  directory = write(tmp_path / 'c', {1: 0.5})
  before = runs.snapshot(directory)

  def full(*_, **__):
    raise ValueError('Writing "x": No space left on device [errno 28]')

  checkpoints = Checkpoints(directory)
  with monkeypatch.context() as patch:
    patch.setattr(arrays.ocp.Checkpointer, 'save', full)
    with pytest.raises(NotWrittenError, match='2.*No space .* free some space'):
      checkpoints.save(2, tree(2))
  assert runs.snapshot(directory) == before
  checkpoints.save(2, tree(2))
  assert value_of(Checkpoints(directory).restore_latest(tree(0))) == 2


def test_directory_that_vanished_is_one_line(tmp_path):
  checkpoints = Checkpoints(tmp_path / 'c')
  checkpoints.save(1, tree(1))
  shutil.rmtree(tmp_path / 'c')
  with pytest.raises(NotWrittenError, match='removed or replaced') as error:
    checkpoints.save(2, tree(2))
  assert '\n' not in str(error.value)
  assert not (tmp_path / 'c').exists()


def test_place_that_cannot_be_written_is_an_input_error(tmp_path):
  (tmp_path / 'taken').write_text('mine')
  with pytest.raises(InputError, match='expected to write .*taken'):
    Checkpoints(tmp_path / 'taken')
  assert (tmp_path / 'taken').read_text() == 'mine'


def test_checkpoint_of_version_0_1_0_is_named_and_stays(tmp_path):
  directory = tmp_path / 'c'
  (directory / '7').mkdir(parents=True)
  (directory / '7' / 'files.json').write_text('{}')
  (directory / 'index.json').write_text('{"steps": [7]}')
  with pytest.raises(InputError, match='expected .* format 3 .*c/7, got 1'):
    Checkpoints(directory).restore_latest(tree(0))
  assert (directory / '7' / 'files.json').exists()
