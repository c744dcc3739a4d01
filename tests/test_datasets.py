"""Are the data the same for everyone, and a batch a function of its step?"""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpbn_jax import InputError
from mpbn_jax.datasets import DATASETS, augment, load_dataset
from mpbn_jax.datasets.base import (
  TrainingBatches,
  evaluation_batches,
  split_stratified,
)


@functools.cache
def _dataset(name='digits', shift=1):
  return load_dataset({'name': name, 'shift': shift})


@pytest.mark.parametrize('name', DATASETS)
def test_splits_are_complete_and_of_one_kind(name):
  dataset = _dataset(name)
  assert set(dataset.splits) == {'train', 'validation', 'test'}
  for split in dataset.splits.values():
    assert split.images.dtype == np.uint8
    assert split.labels.dtype == np.int32
    assert len(split.images) == len(split.labels)
    assert split.images.shape[1:] == dataset.image_shape
    assert set(split.labels) == set(range(len(dataset.class_names)))
    assert split.images.max() <= dataset.max_value


@pytest.mark.parametrize('name', DATASETS)
def test_constants_normalize_the_training_images(name):
  dataset = _dataset(name)
  x = np.asarray(dataset.normalize(dataset.splits['train'].images))
  axes = tuple(range(x.ndim - 1))
  np.testing.assert_allclose(x.mean(axes), 0, atol=1e-3)
  np.testing.assert_allclose(x.std(axes), 1, atol=1e-3)


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
    name: int(split.images.sum()) for name, split in _dataset().splits.items()
  }
  assert sums == {'train': 336076, 'validation': 113843, 'test': 111799}


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
  train = _dataset().splits['train'].images.reshape((-1, 64))
  assert len(np.unique(images, axis=0)) >= len(np.unique(train, axis=0)) - 78


def test_batch_size_does_not_change_an_examples_augmentation():
  small, large = _batches(batch_size=50), _batches(batch_size=100)
  halves = [small.batch(step)['image'] for step in (0, 1)]
  np.testing.assert_array_equal(np.concatenate(halves), large.batch(0)['image'])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400), st.sampled_from(['validation', 'test']))
def test_evaluation_visits_every_example_once(batch_size, split):
  batches = list(evaluation_batches(_dataset(), split, batch_size=batch_size))
  expected = _dataset().splits[split]
  assert {len(b['label']) for b in batches} == {batch_size}
  images = np.concatenate([b['image'][b['mask']] for b in batches])
  labels = np.concatenate([b['label'][b['mask']] for b in batches])
  np.testing.assert_array_equal(images, expected.images)
  np.testing.assert_array_equal(labels, expected.labels)


def test_shift_moves_images_and_zeros_move_in():
  images = np.arange(1, 17, dtype=np.uint8).reshape((1, 4, 4, 1))
  moved = augment.shift(images, np.array([[1, -1]]))[0, ..., 0]
  expected = np.zeros((4, 4), np.uint8)
  expected[1:, :3] = images[0, :3, 1:, 0]
  np.testing.assert_array_equal(moved, expected)


def test_shifts_cover_their_range_evenly():
  shifts = augment.draw_shifts(np.random.default_rng(0), count=9000, pixels=1)
  pairs, counts = np.unique(shifts, axis=0, return_counts=True)
  assert len(pairs) == 9
  assert counts.min() > 850


def test_shift_moves_every_frame_alike():
  images = np.random.default_rng(0).integers(0, 9, (3, 2, 5, 5, 1), np.uint8)
  shifts = np.array([[1, 0], [0, 0], [-1, 1]])
  moved = augment.shift(images, shifts)
  for frame in range(2):
    np.testing.assert_array_equal(
      moved[:, frame], augment.shift(images[:, frame], shifts)
    )


def test_unknown_dataset_lists_the_known_ones():
  with pytest.raises(InputError, match="unknown dataset 'digit'.*digits"):
    load_dataset({'name': 'digit', 'shift': 0})


@pytest.mark.parametrize('batch_size', [0, 1079])
def test_batch_larger_than_the_split_is_refused(batch_size):
  with pytest.raises(InputError, match=f'1 and the 1078 .* got {batch_size}'):
    _batches(batch_size=batch_size)
