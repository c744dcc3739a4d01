"""What is a data set, and how do batches come out of it?"""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from mpbn_jax.errors import InputError

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Split:
  """Images uint8 [N, H, W, C] (or frames [N, T, H, W, C]), labels int32 [N]."""

  images: np.ndarray
  labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A data set in memory.

  Attributes:
    name: as in the configuration.
    class_names: one per label.
    max_value: the integer that stands for 1.0.
    mean: of the training images in [0, 1], per channel.
    std: likewise.
    splits: 'train', 'validation', 'test'.
    draw: (rng, count) -> parameters of the augmentation, each [count, ...].
    augment: (images, parameters) -> images; parameters of those images.
  """

  name: str
  class_names: tuple[str, ...]
  max_value: int
  mean: tuple[float, ...]
  std: tuple[float, ...]
  splits: dict[str, Split]
  draw: Callable[[np.random.Generator, int], np.ndarray] | None = None
  augment: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None

  @property
  def image_shape(self) -> tuple[int, ...]:
    return self.splits['train'].images.shape[1:]

  def normalize(self, images: jax.Array) -> jax.Array:
    """Returns (images / max_value - mean) / std, float32, on the device.

    Images travel as uint8, a quarter of the bytes.
    """
    mean = jnp.asarray(self.mean, jnp.float32)
    std = jnp.asarray(self.std, jnp.float32)
    return (images.astype(jnp.float32) / self.max_value - mean) / std


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
        f'examples of {dataset.name!r}, got {batch_size}'
      )
    self.steps_per_epoch = count // batch_size
    # A memo of a pure function: the order of an epoch serves many steps.
    self._epoch = functools.lru_cache(maxsize=2)(self._draw_epoch)

  def _draw_epoch(self, epoch):
    rng = np.random.default_rng([self._seed, epoch])
    count = len(self._split.labels)
    order = rng.permutation(count)
    draw = self._dataset.draw
    return order, None if draw is None else draw(rng, count)

  def batch(self, step: int) -> Batch:
    """Returns {'image' [B, ...] uint8, 'label' [B] int32} of a step."""
    epoch, index = divmod(step, self.steps_per_epoch)
    order, parameters = self._epoch(epoch)
    start = index * self._batch_size
    chosen = order[start : start + self._batch_size]
    images = self._split.images[chosen]
    if parameters is not None:
      images = self._dataset.augment(images, parameters[chosen])
    return {'image': images, 'label': self._split.labels[chosen]}


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
