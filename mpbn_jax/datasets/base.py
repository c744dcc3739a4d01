"""What is a data set, and how do batches come out of it?"""

import dataclasses
import functools
import zlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from mpbn_jax.datasets.augment import Augmentation
from mpbn_jax.errors import InputError

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Split:
  """Images uint8 [N, H, W, C] (or frames [N, T, H, W, C]), labels int32 [N]."""

  images: np.ndarray
  labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Spec:
  """What is known of a data set before it is read.

  Attributes:
    name: as in the configuration.
    image_shape: (H, W, C).
    class_names: one per label.
    max_value: the integer that stands for 1.0.
    mean: of the training images in [0, 1], per channel.
    std: likewise.
    frames: whether an example is T frames [T, H, W, C], one a step, and not
      one image [H, W, C].
  """

  name: str
  image_shape: tuple[int, int, int]
  class_names: tuple[str, ...]
  max_value: int
  mean: tuple[float, ...]
  std: tuple[float, ...]
  frames: bool = False

  @property
  def num_classes(self) -> int:
    return len(self.class_names)

  def example_shape(self, num_steps: int) -> tuple[int, ...]:
    """Returns (H, W, C), or (T, H, W, C) of frames."""
    return ((num_steps,) if self.frames else ()) + self.image_shape

  def normalize(self, images: jax.Array) -> jax.Array:
    """Returns (images / max_value - mean) / std, float32, on the device.

    Images travel as uint8, a quarter of the bytes.
    """
    mean = jnp.asarray(self.mean, jnp.float32)
    std = jnp.asarray(self.std, jnp.float32)
    return (images.astype(jnp.float32) / self.max_value - mean) / std


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A data set in memory.

  Attributes:
    spec: what it is.
    splits: 'train', 'validation', 'test'.
    augmentations: of the training images, in this order.
  """

  spec: Spec
  splits: dict[str, Split]
  augmentations: tuple[Augmentation, ...] = ()

  @property
  def example_shape(self) -> tuple[int, ...]:
    """(H, W, C), or (T, H, W, C)."""
    return self.splits['train'].images.shape[1:]


def fake(
  spec: Spec,
  *,
  num_steps: int,
  count: int,
  augmentations: tuple[Augmentation, ...] = (),
) -> Dataset:
  """Returns random examples of the true shape and type, for trying things.

  Args:
    spec: whose shape, classes and constants they have.
    num_steps: T, of frames.
    count: examples in each split.
    augmentations: of the training images.
  """
  rng = np.random.default_rng(0)  # data, not training: one for all seeds

  def split():
    # Event frames are mostly empty.
    top = 4 if spec.frames else spec.max_value + 1
    images = rng.integers(
      0, top, (count, *spec.example_shape(num_steps)), np.uint8
    )
    labels = np.arange(count, dtype=np.int32) % spec.num_classes
    return Split(images, labels)

  splits = {name: split() for name in ('train', 'validation', 'test')}
  return Dataset(spec, splits, augmentations)


class TrainingBatches:
  """Shuffled, augmented batches; `batch(step)` is a pure function.

  Of the seed and the step alone: to resume, only the step is needed. An
  epoch visits every example at most once; the last, incomplete batch is
  dropped.

  Attributes:
    steps_per_epoch: batches in an epoch.
  """

  def __init__(self, dataset: Dataset, *, batch_size: int, seed: int):
    self._dataset = dataset
    self._split = dataset.splits['train']
    self._seed = seed
    self._batch_size = batch_size
    count = len(self._split.labels)
    if not 1 <= batch_size <= count:
      raise InputError(
        f'data.batch_size must be between 1 and the {count} training '
        f'examples of {dataset.spec.name!r}, got {batch_size}'
      )
    self.steps_per_epoch = count // batch_size
    # A memo of a pure function: the order of an epoch serves many steps.
    self._epoch = functools.lru_cache(maxsize=2)(self._draw_epoch)

  def _draw_epoch(self, epoch):
    count = len(self._split.labels)
    order = np.random.default_rng([self._seed, epoch]).permutation(count)
    drawn = [
      augmentation.draw(_generator(self._seed, epoch, augmentation.name), count)
      for augmentation in self._dataset.augmentations
    ]
    return order, drawn

  def batch(self, step: int) -> Batch:
    """Returns {'image' [B, ...] uint8, 'label' [B] int32} of a step."""
    epoch, index = divmod(step, self.steps_per_epoch)
    order, drawn = self._epoch(epoch)
    start = index * self._batch_size
    chosen = order[start : start + self._batch_size]
    images = self._split.images[chosen]
    pairs = zip(self._dataset.augmentations, drawn, strict=True)
    for augmentation, parameters in pairs:
      images = augmentation.apply(images, parameters[chosen])
    return {'image': images, 'label': self._split.labels[chosen]}


def _generator(seed, epoch, name):
  # One for each augmentation: leaving one out changes no other.
  return np.random.default_rng([seed, epoch, zlib.crc32(name.encode())])


def evaluation_batches(
  dataset: Dataset, split: str, *, batch_size: int
) -> Iterator[Batch]:
  """Yields every example of a split once, in order, in equal batches.

  The last batch is padded; 'mask' [B] is False on the padding.
  """
  images, labels = dataset.splits[split].images, dataset.splits[split].labels
  for start in range(0, len(labels), batch_size):
    image = images[start : start + batch_size]
    label = labels[start : start + batch_size]
    padding = batch_size - len(label)
    sides = [(0, padding)] + [(0, 0)] * (image.ndim - 1)
    yield {
      'image': np.pad(image, sides),
      'label': np.pad(label, (0, padding)),
      'mask': np.arange(batch_size) < len(label),
    }


def split_stratified(
  labels: np.ndarray, *, shares: tuple[float, ...], seed: int
) -> tuple[np.ndarray, ...]:
  """Returns sorted indices of disjoint parts with equal shares of each class.

  Args:
    labels: [N].
    shares: of the parts; they sum to 1. Within each class the parts end at
      the rounded cumulative shares.
    seed: fixed by the data set, not by the training run.
  """
  rng = np.random.default_rng(seed)
  parts = [[] for _ in shares]
  for label in np.unique(labels):
    members = rng.permutation(np.flatnonzero(labels == label))
    ends = np.rint(np.cumsum(shares) * len(members)).astype(int)
    for part, piece in zip(parts, np.split(members, ends[:-1]), strict=True):
      part.append(piece)
  return tuple(np.sort(np.concatenate(part)) for part in parts)
