"""Bad data, refused when they are loaded and not trained on."""

import dataclasses
import pathlib

import numpy as np
import pytest
from mpbn_jax.configs.default import get_config

from mpbn_jax import InputError
from mpbn_jax.datasets import augmentations, get_spec, load_dataset
from mpbn_jax.datasets.base import Dataset, Spec, Split, Subset, fetch
from mpbn_jax.datasets.batches import TrainingBatches, evaluation_batches
from mpbn_jax.datasets.embedded import digits

COUNT = 30
OFF = get_config().data
SPEC = Spec('mine', (4, 5, 3), tuple('abc'), 255, (0.5,) * 3, (0.25,) * 3)
FRAMES = dataclasses.replace(SPEC, name='films', max_value=1, frames=True)


def _images(shape=SPEC.image_shape, count=COUNT):
  return np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)


def _labels(count=COUNT):
  return (np.arange(count) % 3).astype(np.int32)


def _dataset(images=None, labels=None, *, split='test', spec=SPEC):
  """Returns a data set, one of whose splits has these arrays."""
  shape = (2, *spec.image_shape) if spec.frames else spec.image_shape
  good = Split(_images(shape), _labels())
  images = good.images if images is None else images
  labels = good.labels if labels is None else labels
  splits = {'train': good, 'test': good, split: Split(images, labels)}
  return Dataset(spec, splits)


def _mapped(images, directory):
  path = pathlib.Path(directory) / 'images.npy'
  np.save(path, images)
  return np.load(path, mmap_mode='r')


# Name to (images, labels or None, what the line must say).
BAD_ARRAYS = {
  'labels from 1': (
    None,
    _labels() + 1,
    ['labels 0 to 2', 'got 1 to 3', 'subtract 1'],
  ),
  'labels too large': (None, _labels() * 2, ['got 0 to 4', 'from 0']),
  'labels negative': (None, _labels() - 1, ['got -1 to 1']),
  'labels unsigned and huge': (
    None,
    np.full(COUNT, 2**64 - 1, np.uint64),
    ['got 18446744073709551615'],
  ),
  'labels as numbers with a point': (
    None,
    _labels().astype(float),
    ['integers [N], got float64 [30]'],
  ),
  'labels with NaN': (None, np.full(COUNT, np.nan), ['got float64']),
  'labels as vectors': (
    None,
    np.eye(3, dtype=int)[_labels()],
    ['integers [N], got int64 [30, 3]'],
  ),
  'labels as truth': (None, _labels() > 0, ['got bool']),
  'images in [0, 1]': (
    _images().astype(np.float32) / 255,
    None,
    ['uint8, 0 to 255, got float32 from 0 to 1: multiply by 255'],
  ),
  'images that are normalized': (
    _images() / 64 - 2,
    None,
    ['got float64 from -2 to ', 'clip, round'],
  ),
  'images with NaN': (
    np.full((COUNT, 4, 5, 3), np.nan, np.float32),
    None,
    ['got float32 from nan', 'where the NaN come from'],
  ),
  'images of 16 bits': (
    _images().astype(np.uint16) * 257,
    None,
    ['got uint16 from 0 to 65535'],
  ),
  'images that are truth': (_images() > 9, None, ['got bool']),
  'images that were cut to 0 and 1': (
    _images() // 255,
    None,
    ['none above 1', 'multiply by 255', 'max_value to 1'],
  ),
  'more images': (
    _images(count=31),
    None,
    ['got 31 images and 30 labels'],
  ),
  'more labels': (
    _images(count=29),
    None,
    ['got 29 images and 30 labels'],
  ),
  'no example': (
    _images(count=0),
    _labels(count=0),
    ['at least one example', 'got none'],
  ),
  'channels first': (
    _images((3, 4, 5)),
    None,
    ['shape 4x5x3', 'got 3x4x5'],
  ),
  'grey': (_images((4, 5)), None, ['shape 4x5x3', 'got 4x5']),
  'another size': (_images((5, 4, 3)), None, ['got 5x4x3']),
  'a side of 0': (_images((0, 5, 3)), None, ['got 0x5x3']),
  'frames where images are due': (
    _images((2, 4, 5, 3)),
    None,
    ['shape 4x5x3', 'got 2x4x5x3'],
  ),
}


@pytest.mark.parametrize('split', ['train', 'validation', 'test'])
@pytest.mark.parametrize('name', BAD_ARRAYS)
def test_bad_arrays_are_refused_in_every_split(name, split):
  images, labels, fragments = BAD_ARRAYS[name]
  with pytest.raises(InputError) as error:
    _dataset(images, labels, split=split)
  message = str(error.value)
  assert f"'{split}'" in message
  assert "'mine'" in message
  assert '\n' not in message
  for fragment in fragments:
    assert fragment in message


def test_good_arrays_are_taken():
  _dataset()
  _dataset(labels=_labels().astype(np.int64), split='validation')
  _dataset(labels=_labels().astype(np.uint8), split='validation')
  grey = dataclasses.replace(SPEC, max_value=1)
  zeros_and_ones = Split(_images() // 255, _labels())
  Dataset(grey, {'train': zeros_and_ones, 'test': zeros_and_ones})


def test_labels_of_every_kind_of_integer_are_read_as_int32():
  dataset = _dataset(labels=_labels().astype(np.uint8), split='train')
  batch = TrainingBatches(dataset, batch_size=4, seed=0).batch(0)
  assert batch['label'].dtype == np.int32


def test_what_is_no_array_is_refused_by_its_type():
  with pytest.raises(TypeError, match='images .* NumPy array, got list'):
    _dataset(_images().tolist())


@pytest.mark.parametrize('bad', ['range', 'none'])
def test_arrays_mapped_into_memory_are_checked(bad, tmp_path):
  spec = dataclasses.replace(SPEC, max_value=16)
  images = _images() // 17 + (200 if bad == 'range' else 0)
  images = _mapped(images.astype(np.uint8), tmp_path)
  splits = {'train': Split(images, _labels()), 'test': Split(images, _labels())}
  if bad == 'none':
    Dataset(spec, splits)
    return
  with pytest.raises(InputError, match='at most 16 .* got 215'):
    Dataset(spec, splits)


def test_the_last_image_alone_can_be_too_bright(monkeypatch):
  monkeypatch.setattr('mpbn_jax.datasets.checks._CHUNK', 100)
  images = _images() // 16
  spec = dataclasses.replace(SPEC, max_value=16)
  split = Split(images, _labels())
  Dataset(spec, {'train': split, 'test': split})
  images[-1, -1, -1, -1] = 17
  with pytest.raises(InputError, match='at most 16 .* got 17'):
    Dataset(spec, {'train': split, 'test': split})


def test_part_of_a_split_is_checked_with_the_whole():
  bad = Split(_images(), _labels() + 1)
  part = Subset(bad, np.flatnonzero(bad.labels < 3))
  with pytest.raises(InputError, match='got 1 to 3'):
    Dataset(SPEC, {'train': part, 'test': part})


def test_empty_part_of_a_split_is_refused():
  whole = Split(_images(), _labels())
  empty = Subset(whole, np.arange(0))
  with pytest.raises(InputError, match="at least one .* 'test' of 'mine'"):
    Dataset(SPEC, {'train': whole, 'test': empty})


def test_events_are_counted_up_to_255_and_framed_alike():
  _dataset(spec=FRAMES)
  with pytest.raises(InputError, match='one shape in all splits .*3, 4, 5, 3'):
    _dataset(_images((3, 4, 5, 3)), spec=FRAMES)
  with pytest.raises(InputError, match='shape Tx4x5x3 .* got 4x5x3'):
    _dataset(_images((4, 5, 3)), spec=FRAMES)
  with pytest.raises(InputError, match='got 0x4x5x3'):
    _dataset(_images((0, 4, 5, 3)), spec=FRAMES)


def test_frames_of_another_number_of_steps_are_refused(monkeypatch):
  images = _images((2, 16, 16, 2))
  splits = {k: Split(images, _labels()) for k in ('train', 'test')}
  monkeypatch.setattr(
    'mpbn_jax.datasets.embedded.event_digits.load', lambda *_, **__: splits
  )
  config = {**OFF, 'name': 'event_digits', 'roll': 0}
  load_dataset(config, num_steps=2)
  with pytest.raises(InputError, match='in 5 frames, got 2: set'):
    load_dataset(config, num_steps=5)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (dict(image_shape=(0, 5, 3)), r'at least 1, got \(0, 5, 3\)'),
    (dict(image_shape=(4, 5)), r'at least 1, got \(4, 5\)'),
    (dict(mean=(0.5,)), 'a finite mean for each of the 3 channels'),
    (dict(std=(0.2, np.nan, 0.2)), 'a finite std for each'),
    (dict(std=(0.2, 0.0, 0.2)), 'positive deviations std'),
    (dict(max_value=1000), 'max_value .* 1 to 255.* got 1000'),
    (dict(max_value=0), 'max_value'),
    (dict(class_names=()), 'class names'),
    (dict(class_names=('a', 'a', 'b')), 'got 3, of which 2 are distinct'),
  ],
)
def test_spec_that_describes_no_images_is_refused(change, message):
  with pytest.raises(InputError, match=message):
    dataclasses.replace(SPEC, **change)


# ---- decoded when it is read


class Lazy:
  """Examples whose arrays are only there when they are read."""

  unreadable = ()
  shape = SPEC.image_shape

  def __init__(self, images, labels):
    self.images, self.labels = images, labels

  def __len__(self):
    return len(self.labels)

  def read(self, indices, crops=None):
    return self.images[indices], self.labels[indices]


@pytest.mark.parametrize(
  ('images', 'labels', 'message'),
  [
    (_images(), _labels() + 1, 'labels 0 to 2 in a batch .* got 1 to 3'),
    (_images(), _labels() - 2, 'got -2 to 0'),
    (_images(), _labels() / 1, 'integers as labels .* got float64'),
    (_images() / 255, _labels(), r'uint8 \[30, 4, 5, 3\] .* got float64'),
    (_images((4, 5, 1)), _labels(), r'got uint8 \[30, 4, 5, 1\]'),
  ],
)
def test_what_is_decoded_later_is_checked_in_every_batch(
  images, labels, message
):
  examples = Lazy(images, labels)
  dataset = Dataset(SPEC, {'train': examples, 'test': examples})
  with pytest.raises(InputError, match=message):
    TrainingBatches(dataset, batch_size=COUNT, seed=0).batch(0)
  with pytest.raises(InputError, match=message):
    next(evaluation_batches(dataset, 'test', batch_size=COUNT))


def test_label_that_is_not_public_is_not_taken_for_a_bad_image():
  class Source:
    def read(self, index):
      return b'', -1

    def name(self, index):
      return f'record {index}'

  with pytest.raises(InputError, match='label of record 5, got -1: use a'):
    fetch(Source(), 5)


def test_unknown_split_lists_the_known_ones():
  with pytest.raises(InputError, match="split of 'mine' 'valid'.*test, train"):
    next(evaluation_batches(_dataset(), 'valid', batch_size=4))


# ---- the data sets themselves


def test_damaged_digits_are_refused(monkeypatch):
  splits = digits.load(digits.SPEC, {}, num_steps=1)
  splits['test'].images[0] = 17
  monkeypatch.setattr(digits, 'load', lambda *_, **__: splits)
  with pytest.raises(InputError, match="at most 16 .*'test' of 'digits'"):
    load_dataset({**OFF, 'name': 'digits'}, num_steps=1)


# ---- augmentation


@pytest.mark.parametrize(
  'asked', [{'auto_augment': True}, {'rand_augment': 2}], ids=str
)
def test_operations_for_255_shades_are_refused_for_others(asked):
  spec = dataclasses.replace(SPEC, max_value=16)
  with pytest.raises(InputError, match='up to 255, got 3 with values up to 16'):
    augmentations({**OFF, **asked}, spec=spec)


def test_mixing_images_of_two_shades_is_refused():
  spec = dataclasses.replace(SPEC, max_value=1)
  with pytest.raises(
    InputError, match='whole numbers, .* only 2 different values'
  ):
    augmentations({**OFF, 'mixup': 0.2}, spec=spec)
  augmentations({**OFF, 'mixup': 0.2}, spec=get_spec('digits'))
