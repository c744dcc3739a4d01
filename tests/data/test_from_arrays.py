"""Data sets of a user's NumPy arrays."""

import numpy as np
import pytest
import runs

from mpbn_jax import InputError, command_line, datasets, experiment
from mpbn_jax.datasets import from_arrays, load_dataset

CLASSES = tuple('abc')


@pytest.fixture(autouse=True)
def _registry():
  """Removes after a test what it registered."""
  yield
  datasets.DATASETS.pop('mine', None)


def _pair(count, shape=(4, 5, 2), seed=0):
  rng = np.random.default_rng(seed)
  images = rng.integers(0, 256, (count, *shape), np.uint8)
  return images, np.arange(count) % len(CLASSES)


def _register(**changes):
  given = dict(train=_pair(30), test=_pair(9, seed=1), class_names=CLASSES)
  return from_arrays('mine', **{**given, **changes})


def _config(*options):
  return command_line.parse(['--config.data.name=mine', *options]).config


def test_registered_data_set_is_loaded_by_its_name():
  train, test = _pair(30), _pair(9, seed=1)
  spec = _register()
  dataset = load_dataset(_config().data, num_steps=1)
  assert dataset.spec == spec == datasets.get_spec('mine')
  assert set(dataset.splits) == {'train', 'test'}
  for name, (images, labels) in (('train', train), ('test', test)):
    found = dataset.splits[name].read(np.arange(len(labels)))
    np.testing.assert_array_equal(found[0], images)
    np.testing.assert_array_equal(found[1], labels)
    assert found[1].dtype == np.int32


def test_command_line_trains_on_it():
  _register()
  options = ['--config.data.batch_size=8', '--config.model.num_classes=3']
  built = experiment.build(_config(*options, '--config.data.validation_size=3'))
  assert built.batches.batch(0)['image'].shape == (8, 4, 5, 2)
  assert len(built.dataset.splits['validation']) == 3


def _trains(workdir):
  options = ['--config.data.name=mine', '--config.data.batch_size=8']
  options += ['--config.model.num_classes=3', '--config.num_epochs=1']
  return runs.run(workdir, *options)


def test_run_is_not_resumed_or_evaluated_on_other_data(tmp_path, capsys):
  _register()
  assert _trains(tmp_path / 'run') == 0
  assert _trains(tmp_path / 'run') == 0
  capsys.readouterr()
  images, labels = _pair(30)
  images[3, 2, 1, 0] ^= 1
  for changes in (
    {'train': (images, labels)},
    {'std': (0.5, 0.5)},
    {'class_names': CLASSES[::-1]},
  ):
    _register(**changes)
    assert _trains(tmp_path / 'run') == 2
    message = runs.the_error(capsys.readouterr())
    assert 'was saved by a run on other data (sha256' in message
    assert 'register with from_arrays what it was trained on' in message
  workdir = f'--workdir={tmp_path / "run"}'
  assert runs.program.main(['--mode=evaluate', workdir]) == 2
  assert 'on other data' in runs.the_error(capsys.readouterr())


def test_preparing_says_that_nothing_is_needed(capsys):
  _register()
  datasets.prepare_dataset(_config().data, num_steps=1)
  assert capsys.readouterr().out.startswith('mine needs no preparation')


def test_validation_is_a_split_of_its_own():
  _register(validation=_pair(6, seed=2))
  dataset = load_dataset(_config().data, num_steps=1)
  assert len(dataset.splits['validation']) == 6
  with pytest.raises(InputError, match='a validation split of its own'):
    load_dataset(_config('--config.data.validation_size=3').data, num_steps=1)


def test_mean_and_std_are_of_the_training_images():
  images, labels = _pair(30)
  images //= 16
  images[0] = 15
  spec = _register(train=(images, labels), test=(images, labels), max_value=15)
  scaled = images.astype(np.float64) / 15
  np.testing.assert_allclose(spec.mean, scaled.mean((0, 1, 2)), rtol=1e-12)
  np.testing.assert_allclose(spec.std, scaled.std((0, 1, 2)), rtol=1e-12)


def test_mean_and_std_can_be_given():
  spec = _register(mean=(0.5, 0.25), std=(1, 2))
  assert (spec.mean, spec.std) == ((0.5, 0.25), (1, 2))
  assert _register(mean=(0.5, 0.25)).std != (1, 2)


def test_frames_stay_counts():
  shape = (3, 4, 5, 2)
  spec = _register(train=_pair(30, shape), test=_pair(9, shape), frames=True)
  assert (spec.max_value, spec.mean, spec.std) == (1, (0, 0), (1, 1))
  assert spec.image_shape == (4, 5, 2)
  assert load_dataset(_config().data, num_steps=3).example_shape == shape
  with pytest.raises(InputError, match='in 2 frames, got 3'):
    load_dataset(_config().data, num_steps=2)


def test_second_registration_replaces_the_first():
  _register()
  _register(class_names=tuple('abcd'))
  assert datasets.get_spec('mine').num_classes == 4


def test_registered_name_is_listed_for_an_unknown_one():
  _register()
  with pytest.raises(InputError, match=r"'mime': .*mine.*did you mean 'mine'"):
    datasets.get_spec('mime')


@pytest.mark.parametrize('name', ['digits', 'imagenet'])
def test_names_of_the_package_are_taken(name):
  before = datasets.DATASETS[name]
  with pytest.raises(InputError, match=f'no data set .* has, got {name!r}'):
    from_arrays(name, train=_pair(9), test=_pair(9), class_names=CLASSES)
  assert datasets.DATASETS[name] == before


IMAGES, LABELS = _pair(9)
REFUSED = {
  'no pair': (dict(train=IMAGES), r'expected \(images, labels\) as train'),
  'grey': (
    dict(train=(IMAGES[..., 0], LABELS)),
    r'images \[N, H, W, C\] .* got \[9, 4, 5\]: .*images\[\.\.\., None\]',
  ),
  'no frames': (dict(frames=True), r'images \[N, T, H, W, C\] .*\[30, 4, 5, 2'),
  'floats': (
    dict(train=(IMAGES / np.float32(255), LABELS)),
    'as uint8, 0 to 255, got float32 .*: multiply by 255',
  ),
  'labels': (dict(test=(IMAGES, LABELS + 1)), 'labels 0 to 2 .* subtract 1'),
  'lengths': (dict(test=(IMAGES, LABELS[1:])), '9 images and 8 labels'),
  'shapes': (dict(test=_pair(9, (5, 4, 2))), "the split 'test' of 'mine', got"),
  'classes': (
    dict(class_names='aab'),
    'distinct class names for .*, of which . are dist',
  ),
  'constant': (
    dict(train=(np.full_like(IMAGES, 7), LABELS)),
    'positive deviations std',
  ),
  'max_value': (dict(max_value=100), 'image values of at most 100'),
  'mean': (dict(mean=(0.5,)), 'a finite mean for each of the 2 channels'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_arrays_that_do_not_fit_are_refused(case):
  changes, message = REFUSED[case]
  with pytest.raises(InputError, match=message) as caught:
    _register(**changes)
  assert '\n' not in str(caught.value)
  assert 'mine' not in datasets.DATASETS


@pytest.mark.parametrize('name', ['', 3])
def test_name_must_be_a_text(name):
  with pytest.raises(InputError, match='expected a name for the data set'):
    from_arrays(name, train=_pair(9), test=_pair(9), class_names=CLASSES)


def test_lists_are_no_arrays():
  with pytest.raises(TypeError, match='labels of the split .*numpy.asarray'):
    _register(train=(IMAGES, LABELS.tolist()))
