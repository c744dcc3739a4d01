"""Data sets, and which of their examples are in which split."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from mpbn_jax.datasets import checks
from mpbn_jax.datasets.augment import Augmentation
from mpbn_jax.errors import InputError

# Of the examples that are held out or left out: the same for every training
# seed.
_VALIDATION_SEED = 1
_TRAIN_SEED = 2


class Examples(Protocol):
  """What a split is to those who read it, wherever its images lie.

  Attributes:
    labels: int32 [N]. May be slow to find out; `read` does not need it.
    shape: of an example, (H, W, C) or (T, H, W, C).
    unreadable: names of the images that could not be decoded so far, of those
      that this host reads.
  """

  labels: np.ndarray
  shape: tuple[int, ...]
  unreadable: Iterable[str]

  def __len__(self) -> int:
    """Returns N."""

  def read(
    self, indices: np.ndarray, crops: np.ndarray | None = None
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns (images uint8 [B, *shape], labels int32 [B]).

    Args:
      indices: [B].
      crops: [B], rows that `resized_crop.random_resized_crop` drew; None: the
        whole image, or its centre where images have many sizes.
    """


@dataclasses.dataclass(frozen=True)
class Split:
  """`Examples` in memory, or in a memory-mapped file.

  Attributes:
    images: uint8 [N, H, W, C], or frames [N, T, H, W, C].
    labels: integers [N], read as int32.
  """

  images: np.ndarray
  labels: np.ndarray
  unreadable = ()

  def __len__(self) -> int:
    return len(self.labels)

  @property
  def shape(self) -> tuple[int, ...]:
    return self.images.shape[1:]

  def read(self, indices, crops=None):
    """See `Examples`."""
    images = np.asarray(self.images[indices])  # of a memory map: read now
    if crops is not None:
      from mpbn_jax.datasets import resized_crop  # needs Pillow

      images = resized_crop.apply(images, crops)
    return images, self.labels[indices].astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Subset:
  """Some of other `Examples`, read where they lie.

  Attributes:
    examples: all of them.
    indices: [N], which.
  """

  examples: Examples
  indices: np.ndarray

  def __len__(self) -> int:
    return len(self.indices)

  @functools.cached_property
  def labels(self) -> np.ndarray:
    return self.examples.labels[self.indices]

  @property
  def shape(self) -> tuple[int, ...]:
    return self.examples.shape

  @property
  def unreadable(self) -> Iterable[str]:
    return self.examples.unreadable

  def read(self, indices, crops=None):
    """See `Examples`."""
    return self.examples.read(self.indices[indices], crops)


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

  Raises:
    InputError: no images can be like that.
  """

  name: str
  image_shape: tuple[int, int, int]
  class_names: tuple[str, ...]
  max_value: int
  mean: tuple[float, ...]
  std: tuple[float, ...]
  frames: bool = False

  def __post_init__(self):
    checks.check_spec(self)

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
  """A data set that can be read.

  Attributes:
    spec: what it is.
    splits: 'train', 'test', and 'validation' where there is one.
    augmentations: of the training images, in this order.
    mixup: alpha of the mixing that comes after them; 0 mixes nothing.

  Raises:
    InputError: arrays that are not what `Split` says, examples that are not
      what `spec` says.
  """

  spec: Spec
  splits: Mapping[str, Examples]
  augmentations: tuple[Augmentation, ...] = ()
  mixup: float = 0.0

  def __post_init__(self):
    checked: set[int] = set()
    for name, split in self.splits.items():
      if not len(split):
        raise InputError(
          f'expected at least one example in the split {name!r} of '
          f'{self.spec.name!r}, got none: give it some'
        )
      whole = split.examples if isinstance(split, Subset) else split
      if isinstance(whole, Split) and id(whole) not in checked:
        checked.add(id(whole))
        checks.check_arrays(
          whole.images, whole.labels, split=name, spec=self.spec
        )
    shapes = {name: split.shape for name, split in self.splits.items()}
    checks.check_shapes(shapes, spec=self.spec)

  @property
  def example_shape(self) -> tuple[int, ...]:
    """(H, W, C), or (T, H, W, C)."""
    return self.splits['train'].shape

  @property
  def unreadable(self) -> set[str]:
    """Names of the images that this host could not decode so far."""
    return set().union(*(s.unreadable for s in self.splits.values()))


def fake(spec: Spec, *, num_steps: int, count: int) -> dict[str, Split]:
  """Returns random examples of the true shape and type, for trying things.

  Args:
    spec: whose shape, classes and constants they have.
    num_steps: T, of frames.
    count: examples for training, and for the test.
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

  return {name: split() for name in ('train', 'test')}


# ---- which examples are in which split


def divide(
  splits: Mapping[str, Examples],
  *,
  name: str,
  validation_size: int,
  train_size: int,
) -> dict[str, Examples]:
  """Returns the splits with validation held out, and fewer to train on.

  Both are stratified, and the same for every training seed: first the
  validation examples are taken out of the training examples, then the
  training examples are chosen from what is left.

  Args:
    splits: as the data set has them.
    name: of the data set.
    validation_size: so many; 0: none.
    train_size: so many; 0: all.

  Raises:
    InputError: more than there are; a validation split of its own.
  """
  splits = dict(splits)
  if validation_size:
    if 'validation' in splits:
      raise InputError(
        f'{name!r} has a validation split of its own, got data.validation_size '
        f'= {validation_size}: set --config.data.validation_size=0'
      )
    train = splits['train']
    _check_size('validation_size', validation_size, len(train) - 1, name)
    chosen = sample_stratified(
      train.labels, size=validation_size, seed=_VALIDATION_SEED
    )
    splits['validation'] = Subset(train, chosen)
    rest = np.setdiff1d(np.arange(len(train)), chosen)
    splits['train'] = Subset(train, rest)
  if train_size:
    train = splits['train']
    _check_size('train_size', train_size, len(train), name)
    chosen = sample_stratified(train.labels, size=train_size, seed=_TRAIN_SEED)
    splits['train'] = Subset(train, chosen)
  return splits


def _check_size(key, size, available, name):
  if size > available:
    raise InputError(
      f'data.{key} must be at most {available}, of the training examples of '
      f'{name!r}, got {size}: set --config.data.{key}={available} or less'
    )


def sample_stratified(
  labels: np.ndarray, *, size: int, seed: int
) -> np.ndarray:
  """Returns `size` sorted indices with equal shares of each class.

  Up to one example: the largest fractions are rounded up.

  Args:
    labels: [N].
    size: at most N.
    seed: fixed by the data set, not by the training run.
  """
  rng = np.random.default_rng(seed)
  classes, counts = np.unique(labels, return_counts=True)
  whole, rest = np.divmod(size * counts.astype(np.int64), len(labels))
  first = np.argsort(-rest, kind='stable')[: size - whole.sum()]
  whole[first] += 1
  chosen = [
    rng.permutation(np.flatnonzero(labels == label))[:take]
    for label, take in zip(classes, whole, strict=True)
  ]
  return np.sort(np.concatenate(chosen))


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
