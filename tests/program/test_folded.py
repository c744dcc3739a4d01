"""Folded networks on the disk: whole, and with their own settings."""

import json
import os
import shutil

import common
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from runs import the_error

import mpbn_jax
from mpbn_jax import InputError, arrays, lock
from mpbn_jax.folded import folded_path, load_folded, save_folded
from mpbn_jax.layers import Factory
from mpbn_jax.models import settings_of

SETTINGS = {'name': 'spiking_cnn', 'width': 4, 'num_steps': 3}


@pytest.fixture(scope='module')
def variables():
  _, variables = common.small()
  return mpbn_jax.strip(mpbn_jax.fold(variables))


def save(path, variables, *, step=7, kernels=False, **settings):
  model = {**SETTINGS, **settings}
  save_folded(path, variables, model=model, step=step, kernels=kernels)
  return path


def test_network_and_variables_come_back_as_they_were(variables, tmp_path):
  path = save(tmp_path / 'folded' / '7', variables)
  model, loaded = mpbn_jax.load_folded(path)
  jax.tree.map(np.testing.assert_array_equal, loaded, variables)
  assert model == mpbn_jax.build_model(SETTINGS)
  x = common.images(2)
  np.testing.assert_array_equal(
    model.apply(loaded, x, train=False), model.apply(variables, x, train=False)
  )


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('tau', 0.5),
    ('num_steps', 2),
    ('width', 8),
    ('v_th', 1.0),
    ('reset', 'soft'),
    ('conv_norm', 'tdbn'),
    ('membrane_norm', 'mpbn_element'),
    ('spike_norm', 'psp_bn'),
    ('tau_s', 0.5),
    ('eps', 1e-3),
    ('dtype', 'bfloat16'),
    ('num_classes', 4),
  ],
)
def test_every_setting_that_counts_is_checked_by_name(
  name, value, variables, tmp_path
):
  path = save(tmp_path / '7', variables)
  other = mpbn_jax.build_model({**SETTINGS, name: value})
  stored = settings_of(mpbn_jax.build_model(SETTINGS))[name]
  with pytest.raises(InputError) as error:
    load_folded(path, model=other)
  assert f'({name}: {stored!r} -> {value!r})' in str(error.value)
  assert '\n' not in str(error.value)


def test_settings_of_training_may_differ(variables, tmp_path):
  path = save(tmp_path / '7', variables)
  other = mpbn_jax.build_model(
    dict(SETTINGS, surrogate='tanh', unroll=False, momentum=0.2, autodiff=True)
  )
  assert load_folded(path, model=other)[0] is other


def test_another_network_is_refused(variables, tmp_path):
  path = save(tmp_path / '7', variables)
  other = mpbn_jax.build_model({**SETTINGS, 'name': 'vgg16'})
  with pytest.raises(InputError, match="network: 'SpikingCNN' -> 'SpikingVGG"):
    load_folded(path, model=other)


@pytest.mark.parametrize(
  ('factory', 'setting', 'value'),
  [
    ('conv', 'padding', 0),
    ('conv', 'use_bias', True),
    ('dense', 'norm', 'tdbn'),
  ],
)
def test_what_a_factory_sets_besides_is_checked_too(
  factory, setting, value, variables, tmp_path
):
  path = save(tmp_path / '7', variables)
  model = mpbn_jax.build_model(SETTINGS)
  made = getattr(model, factory)
  other = Factory(made.func, **{**made.keywords, setting: value})
  message = rf'\({factory}\.{setting}: None -> {value!r}\)'
  with pytest.raises(InputError, match=message):
    load_folded(path, model=model.clone(**{factory: other}))


def test_file_without_settings_is_refused(variables, tmp_path):
  (tmp_path / '1').write_text('mine')
  arrays.save(tmp_path / '2', variables, notes={})
  (tmp_path / '3').mkdir()
  path = save(tmp_path / '4', variables, colour='red')
  for path, reason in {
    '1': 'Not a directory',
    '2': 'it has format None, expected 2',
    '3': 'notes.json is missing',
    '4': "unknown setting of 'spiking_cnn' 'colour'",
    '5': 'it is missing',
  }.items():
    with pytest.raises(InputError, match=reason) as error:
      load_folded(tmp_path / path)
    assert str(tmp_path / path) in str(error.value)
    assert '\n' not in str(error.value)


def test_changed_settings_in_the_file_are_damage(variables, tmp_path):
  path = save(tmp_path / '7', variables, tau=0.25)
  content = (path / 'notes.json').read_text()
  assert content.count('"tau": 0.25') == 1
  content = content.replace('"tau": 0.25', '"tau": 0.35')
  (path / 'notes.json').write_text(content)
  with pytest.raises(InputError, match='notes.json has changed'):
    load_folded(path)


@pytest.mark.parametrize('change', ['missing', 'added', 'has changed'])
def test_arrays_are_those_that_the_notes_name(change, variables, tmp_path):
  path = save(tmp_path / '7', variables)
  file = max(path.glob('arrays-*/params/*.ocdbt'))
  if change == 'missing':
    file.unlink()
  elif change == 'added':
    shutil.copy(file, file.with_name('more'))
  else:
    file.write_bytes(file.read_bytes()[:-1] + b'?')
  with pytest.raises(InputError, match=change):
    load_folded(path)


def test_killed_at_any_moment_the_old_or_the_new_is_whole(variables, tmp_path):
  directory = tmp_path / 'folded'
  path = save(directory / '7', variables, step=1)
  new = jax.tree.map(lambda x: x + 1, variables)
  moments = runs.moments(
    directory, lambda: save(path, new, step=2), into=tmp_path
  )
  assert len(moments) >= 5
  found = []
  for moment in moments:
    _, loaded = load_folded(moment / '7')
    notes = arrays.read_notes(moment / '7')
    content = variables if notes['step'] == 1 else new
    jax.tree.map(np.testing.assert_array_equal, loaded, content)
    found.append(notes['step'])
  assert found == sorted(found)
  assert set(found) == {1, 2}


def test_leftover_of_a_killed_fold_is_removed(variables, tmp_path):
  (tmp_path / '.7.123-ab.tmp').mkdir()
  save(tmp_path / '7', variables)
  assert {p.name for p in tmp_path.iterdir()} == {'.lock', '7'}


def test_two_folds_at_once_are_refused(variables, tmp_path):
  with (
    lock.hold(tmp_path),
    pytest.raises(InputError, match=f'process {os.getpid()} on '),
  ):
    save(tmp_path / '7', variables)


# ---- through main.py


def test_thresholds_alone_and_kernels_too_have_two_names(tmp_path, capsys):
  workdir = shutil.copytree(runs.finished(), tmp_path / 'run')
  before = runs.snapshot(workdir / 'checkpoints')
  contents = {}
  for kernels in (False, True):
    fold = 'all' if kernels else 'thresholds'
    key = f'--config.evaluation.fold={fold}'
    assert runs.run(workdir, '--mode=fold', key) == 0
    out, err = capsys.readouterr()
    path = folded_path(workdir, step=32, kernels=kernels)
    assert err == ''
    assert f'folded variables: {path}' in out
    contents[path.name] = runs.snapshot(path)
    model, folded = load_folded(path)
    assert (model.width, model.num_steps) == (2, 2)
    logits = model.apply(folded, jnp.zeros((2, 8, 8, 1)), train=False)
    assert logits.shape == (2, 10)
    _, notes = arrays.read(path)
    assert notes['kernels_folded'] is kernels
  assert contents.keys() == {'32', '32_all'}
  path = folded_path(workdir, step=32, kernels=False)
  assert runs.snapshot(path) == contents['32']
  assert runs.snapshot(workdir / 'checkpoints') == before


def test_folder_that_cannot_take_the_folded_is_one_line(tmp_path, capsys):
  workdir = shutil.copytree(runs.finished(), tmp_path / 'run')
  (workdir / 'folded').write_text('mine')
  assert runs.run(workdir, '--mode=fold') == 2
  assert 'expected to write' in the_error(capsys.readouterr())
  assert (workdir / 'folded').read_text() == 'mine'


def test_notes_are_json_of_plain_values(variables, tmp_path):
  path = save(tmp_path / '7', variables)
  notes = json.loads((path / 'notes.json').read_text())['content']['notes']
  assert notes['model'] == SETTINGS
  assert notes['step'] == 7
  assert notes['mpbn_jax'] == mpbn_jax.__version__
