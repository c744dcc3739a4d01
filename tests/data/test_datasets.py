"""Data that are the same for everyone, and batches that follow the step."""

import functools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpbn_jax.configs.default import get_config
from registered import CLASSES, IMAGE_SHAPES, known
from runs import ROOT
from sklearn.datasets import load_digits

from mpbn_jax import InputError
from mpbn_jax.datasets import (
  DATASETS,
  augment,
  augmentations,
  get_spec,
  load_dataset,
)
from mpbn_jax.datasets.batches import TrainingBatches
from mpbn_jax.datasets.embedded import digits
from mpbn_jax.datasets.splits import split_stratified

OFF = {k: v for k, v in get_config().data.items() if k != 'name'}
EMBEDDED = ('digits', 'photo_digits')  # they come with a library: no download
# Converted once, by --mode=prepare.
PREPARED = ('cifar10', 'cifar100', 'cifar10_dvs', 'dvs_gesture', 'nmnist')


@functools.cache
def _dataset(name='digits', num_steps=3, **data):
  config = {'name': name, **OFF, 'shift': 1, **data}
  return load_dataset(config, num_steps=num_steps)


def _read(split):
  """Returns all images and labels of a split."""
  return split.read(np.arange(len(split)))


def _check_splits(dataset):
  assert set(dataset.splits) >= {'train', 'test'}
  for split in dataset.splits.values():
    images, labels = _read(split)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int32
    assert len(images) == len(labels) == len(split)
    assert images.shape[1:] == dataset.example_shape
    assert labels.min() == 0
    assert labels.max() < dataset.spec.num_classes


@pytest.mark.parametrize('name', DATASETS)
def test_registered_name_is_the_specs(name):
  spec = get_spec(name)
  assert spec.name == name
  assert len(set(spec.class_names)) == spec.num_classes
  assert len(spec.mean) == len(spec.std) == spec.image_shape[-1]


@pytest.mark.parametrize('name', known('data sets'))
def test_shapes_and_classes_are_the_papers(name):
  spec = get_spec(name)
  assert spec.image_shape == IMAGE_SHAPES[name]
  assert spec.num_classes == CLASSES[name]


@pytest.mark.parametrize('name', EMBEDDED)
def test_splits_are_complete_and_of_one_kind(name):
  dataset = _dataset(name)
  _check_splits(dataset)
  for split in dataset.splits.values():
    assert set(split.labels) == set(range(dataset.spec.num_classes))
    assert _read(split)[0].max() <= dataset.spec.max_value


@pytest.mark.parametrize('name', EMBEDDED)
def test_constants_normalize_the_training_images(name):
  dataset = _dataset(name)
  images, _ = _read(dataset.splits['train'])
  x = np.asarray(dataset.spec.normalize(images))
  axes = tuple(range(x.ndim - 1))
  # A sum of 20 million squares has no place in float32.
  np.testing.assert_allclose(x.mean(axes, np.float64), 0, atol=1e-3)
  np.testing.assert_allclose(x.std(axes, np.float64), 1, atol=1e-3)


@pytest.mark.parametrize('name', DATASETS)
def test_fake_examples_have_the_true_shape_and_are_always_the_same(name):
  dataset = _dataset(name, fake=7)
  _check_splits(dataset)
  spec = dataset.spec
  frames = (3,) if spec.frames else ()
  assert set(dataset.splits) == {'train', 'test'}
  assert _read(dataset.splits['test'])[0].shape == (
    (7,) + frames + spec.image_shape
  )
  again = load_dataset({'name': name, **OFF, 'fake': 7}, num_steps=3)
  for part, split in dataset.splits.items():
    np.testing.assert_array_equal(_read(split)[0], _read(again.splits[part])[0])


@pytest.mark.parametrize('name', PREPARED)
def test_data_set_that_is_not_prepared_says_what_to_run(name, tmp_path):
  with pytest.raises(
    InputError, match=f'run python main.py --mode=prepare .*{name}'
  ):
    _dataset(name, dir=str(tmp_path))


def test_digits_are_split_60_20_20_in_every_class():
  splits = _dataset().splits
  counts = {k: np.bincount(s.labels) for k, s in splits.items()}
  total = sum(counts.values())
  assert total.sum() == 1797
  for name, share in (('train', 0.6), ('validation', 0.2), ('test', 0.2)):
    assert np.abs(counts[name] - share * total).max() <= 1


@settings(max_examples=30, deadline=None)
@given(st.integers(10, 300), st.integers(0, 5))
def test_split_parts_are_disjoint_and_complete(count, seed):
  labels = np.random.default_rng(seed).integers(0, 4, count)
  parts = split_stratified(labels, shares=(0.6, 0.2, 0.2), seed=seed)
  together = np.concatenate(parts)
  np.testing.assert_array_equal(np.sort(together), np.arange(count))


def test_digits_split_does_not_depend_on_the_process_or_seed():
  # Sums over the images of each part: any other split gives others.
  sums = {
    name: int(_read(split)[0].sum())
    for name, split in _dataset().splits.items()
  }
  assert sums == {'train': 336076, 'validation': 113843, 'test': 111799}


def test_digits_are_those_of_scikit_learn(monkeypatch, tmp_path):
  expected, target = load_digits(return_X_y=True)

  def check():
    images, labels = digits.read()
    assert images.dtype == np.uint8
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(images, expected.reshape(-1, 8, 8))
    np.testing.assert_array_equal(labels, target)

  with monkeypatch.context() as patch:  # the file is read without it
    patch.setattr('sklearn.datasets.load_digits', None)
    check()
  # Its file may move, or lie in an archive.
  monkeypatch.setattr(digits, '_folder', lambda: tmp_path)
  check()


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch):
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  with pytest.raises(ModuleNotFoundError, match='pip install scikit-learn'):
    digits.read()


def _batches(seed=3, batch_size=100):
  return TrainingBatches(_dataset(), batch_size=batch_size, seed=seed)


def test_batch_is_a_function_of_seed_and_step():
  one, other = _batches(), _batches()
  for step in (25, 3, 0, 25):  # any order, any epoch
    other.batch(step + 1)
    for name, value in one.batch(step).items():
      np.testing.assert_array_equal(value, other.batch(step)[name])
  assert (_batches(seed=4).batch(0)['label'] != one.batch(0)['label']).any()


def test_epoch_visits_no_example_twice():
  plain = TrainingBatches(_dataset(shift=0), batch_size=100, seed=0)
  images = [plain.batch(step)['image'] for step in range(plain.steps_per_epoch)]
  images = np.concatenate(images).reshape((1000, -1))
  train = _read(_dataset().splits['train'])[0].reshape((-1, 64))
  assert len(np.unique(images, axis=0)) >= len(np.unique(train, axis=0)) - 78


def test_batch_size_does_not_change_an_examples_augmentation():
  small, large = _batches(batch_size=50), _batches(batch_size=100)
  halves = [small.batch(step)['image'] for step in (0, 1)]
  np.testing.assert_array_equal(np.concatenate(halves), large.batch(0)['image'])


def _random_images(shape=(40, 6, 6, 3)):
  return np.random.default_rng(0).integers(1, 256, shape, np.uint8)


def test_shift_moves_images_and_zeros_move_in():
  images = np.arange(1, 17, dtype=np.uint8).reshape((1, 4, 4, 1))
  moved = augment.shift(images, np.array([[1, -1]]))[0, ..., 0]
  expected = np.zeros((4, 4), np.uint8)
  expected[1:, :3] = images[0, :3, 1:, 0]
  np.testing.assert_array_equal(moved, expected)


def test_shifts_cover_their_range_evenly():
  shifts = augment.random_shift(1).draw(np.random.default_rng(0), 9000)
  pairs, counts = np.unique(shifts, axis=0, return_counts=True)
  assert len(pairs) == 9
  assert counts.min() > 850


def test_flip_mirrors_every_other_image():
  flip = augment.random_flip()
  images = _random_images()
  flips = flip.draw(np.random.default_rng(0), 40)
  flipped = flip.apply(images, flips)
  assert 10 < flips.sum() < 30
  np.testing.assert_array_equal(flipped[flips], images[flips, :, ::-1])
  np.testing.assert_array_equal(flipped[~flips], images[~flips])


def test_roll_brings_back_what_leaves():
  images = _random_images()
  rolls = augment.random_roll(5).draw(np.random.default_rng(0), 40)
  assert np.abs(rolls).max() == 5
  rolled = augment.roll(images, rolls)
  for image, result, by in zip(images, rolled, rolls, strict=True):
    np.testing.assert_array_equal(np.roll(image, tuple(by), (0, 1)), result)


def test_cutout_blackens_a_square_that_may_stick_out():
  images = _random_images((3, 6, 6, 3))
  centres = np.array([[0.5, 0.5], [0.0, 0.0], [0.99, 0.5]])
  cut = augment.cutout(images, centres, side=4) == 0
  squares = [((1, 5), (1, 5)), ((0, 2), (0, 2)), ((3, 6), (1, 5))]
  for black, ((top, bottom), (left, right)) in zip(cut, squares, strict=True):
    expected = np.zeros((6, 6, 3), bool)
    expected[top:bottom, left:right] = True
    np.testing.assert_array_equal(black, expected)


# ---- every augmentation, from the key of the configuration

AUGMENTATIONS = {
  'resized_crop': dict(resized_crop=True),
  'shift': dict(shift=2),
  'roll': dict(roll=2),
  'flip': dict(flip=True),
  'auto_augment': dict(auto_augment=True),
  'rand_augment': dict(rand_augment=2),
  'cutout': dict(cutout=3),
  'random_erasing': dict(random_erasing=0.7),
  'mixup': dict(mixup=0.4),
}
ALTERNATIVES = ('auto_augment', 'rand_augment')  # they exclude each other
ALL = functools.reduce(
  dict.__or__,
  [keys for name, keys in AUGMENTATIONS.items() if name not in ALTERNATIVES],
)
OTHER_KEYS = {
  'name',
  'batch_size',
  'last_batch',
  'dir',
  'fake',
  'train_size',
  'validation_size',
  'framing',
  'on_bad_image',
  'workers',
  'prefetch',
  'rand_augment_magnitude',  # of 'rand_augment'
}
# Their rows of parameters change images alone.
OF_IMAGES = sorted(set(AUGMENTATIONS) - {'mixup'})
OF_FRAMES = sorted(set(OF_IMAGES) - set(ALTERNATIVES))  # need 3 channels


def test_every_key_of_an_augmentation_is_tried():
  assert set(AUGMENTATIONS) == set(get_config().data) - OTHER_KEYS


@pytest.mark.parametrize('name', ALTERNATIVES)
def test_augmentations_come_in_the_order_of_the_keys(name):
  tried = ALL | AUGMENTATIONS[name]
  asked = augmentations(OFF | tried, spec=get_spec('cifar10'))
  names = [augmentation.name for augmentation in asked]
  text = (ROOT / 'configs' / 'default.py').read_text()
  keys = re.findall(r'^  data\.(\w+) = ', text, re.MULTILINE)
  assert [*names, 'mixup'] == [key for key in keys if key in tried]


def _augmentation(name, dataset='cifar10'):
  (augmentation,) = augmentations(
    OFF | AUGMENTATIONS[name], spec=get_spec(dataset)
  )
  return augmentation


@pytest.mark.parametrize('name', OF_IMAGES)
def test_augmentation_of_an_example_does_not_depend_on_its_batch(name):
  augmentation = _augmentation(name)
  images = _random_images((40, 32, 32, 3))
  parameters = augmentation.draw(np.random.default_rng(1), 40)
  before = images.copy()
  whole = augmentation.apply(images, parameters)
  np.testing.assert_array_equal(images, before)
  assert whole.shape == images.shape
  assert whole.dtype == np.uint8
  assert (whole != images).any()
  for i in (0, 17, 39):
    alone = augmentation.apply(images[i : i + 1], parameters[i : i + 1])
    np.testing.assert_array_equal(alone[0], whole[i])


@pytest.mark.parametrize('name', OF_FRAMES)
def test_augmentation_changes_every_frame_alike(name):
  augmentation = _augmentation(name, 'cifar10_dvs')
  frames = _random_images((20, 3, 48, 48, 2))
  parameters = augmentation.draw(np.random.default_rng(1), 20)
  together = augmentation.apply(frames, parameters)
  assert (together != frames).any()
  for step in range(3):
    np.testing.assert_array_equal(
      together[:, step], augmentation.apply(frames[:, step], parameters)
    )


@functools.cache
def _all_at_once(**data):
  """Returns 24 fake images, changed by all that `data` may be added to."""
  return _dataset('cifar10', fake=24, **(ALL | data))


def _first_epoch(dataset, batch_size, host=(0, 1)):
  batches = TrainingBatches(dataset, batch_size=batch_size, seed=7, host=host)
  return [batches.batch(step) for step in range(24 // batch_size)]


def _joined(batches):
  return {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}


@pytest.mark.parametrize('name', ALTERNATIVES)
@pytest.mark.parametrize('batch_size', [1, 6, 8])
def test_batch_size_changes_nothing_with_every_augmentation(batch_size, name):
  dataset = _all_at_once(**AUGMENTATIONS[name])
  whole = _joined(_first_epoch(dataset, 24))
  parts = _joined(_first_epoch(dataset, batch_size))
  assert whole.keys() == {'image', 'label', 'mix_label', 'mix_weight'}
  for key, value in whole.items():
    np.testing.assert_array_equal(value, parts[key])


def test_augmentation_of_an_epoch_is_not_that_of_the_next():
  dataset = _dataset('cifar10', fake=1, shift=0, resized_crop=True)
  batches = TrainingBatches(dataset, batch_size=1, seed=0)
  images = np.stack([batches.batch(epoch)['image'] for epoch in range(5)])
  assert len(np.unique(images.reshape(5, -1), axis=0)) == 5


def test_mixup_is_the_weighted_mean_of_two_augmented_images():
  # A large alpha: weights near 1/2 leave no doubt about the partner.
  mixed = _joined(_first_epoch(_all_at_once(mixup=5.0, auto_augment=True), 24))
  plain = _joined(_first_epoch(_all_at_once(mixup=0.0, auto_augment=True), 24))
  np.testing.assert_array_equal(mixed['label'], plain['label'])
  images = plain['image'].astype(float)
  partners = []
  for i, weight in enumerate(mixed['mix_weight'].astype(float)):
    means = weight * images[i] + (1 - weight) * images
    errors = np.abs(means - mixed['image'][i]).reshape(24, -1).max(1)
    assert errors.min() < 0.51  # rounded to the nearest
    partners.append(errors.argmin())
    assert mixed['mix_label'][i] == plain['label'][partners[-1]]
  assert sorted(partners) == list(range(24))


def test_leaving_one_augmentation_out_changes_no_other():
  def images(**data):
    dataset = _dataset('cifar10', fake=20, **{'shift': 0, **data})
    return TrainingBatches(dataset, batch_size=20, seed=5).batch(0)['image']

  flipped = images(flip=True)
  both = images(shift=2, flip=True)
  shifted = images(shift=2)
  # An image was mirrored in both runs or in none.
  plain = images()
  mirrored = (flipped != plain).any((1, 2, 3))
  # Where it was not, both runs shifted it alike.
  np.testing.assert_array_equal(both[~mirrored], shifted[~mirrored])
  np.testing.assert_array_equal(both[mirrored], shifted[mirrored, :, ::-1])


@pytest.mark.parametrize('name', ALTERNATIVES)
def test_operations_on_colours_are_refused_for_grey_images(name):
  with pytest.raises(
    InputError,
    match=f'{name} needs images of 3 channels with values up to 255, got 1 .*'
    f"'digits': set --config.data.{name}=",
  ):
    _dataset(**AUGMENTATIONS[name])


@pytest.mark.parametrize('name', ALTERNATIVES)
def test_operations_on_colours_are_refused_for_frames(name):
  with pytest.raises(
    InputError, match=f'data.{name} needs images .*, got frames of 2 with'
  ):
    augmentations(OFF | AUGMENTATIONS[name], spec=get_spec('cifar10_dvs'))


def test_unknown_dataset_lists_the_known_ones():
  with pytest.raises(InputError, match="unknown dataset 'digit'.*digits"):
    _dataset('digit')


@pytest.mark.parametrize('batch_size', [0, 1079])
def test_batch_larger_than_the_split_is_refused(batch_size):
  with pytest.raises(
    InputError,
    match=f'1 and the 1078 .* got {batch_size}: set .*batch_size=1078 or less',
  ):
    _batches(batch_size=batch_size)
