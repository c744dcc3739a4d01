"""Batches of examples: shuffled, shared among hosts, augmented or padded."""

import functools
import math
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from mpbn_jax.datasets import augment
from mpbn_jax.datasets.base import Dataset
from mpbn_jax.datasets.checks import check_batch
from mpbn_jax.errors import InputError, unknown

Batch = dict[str, np.ndarray]
# What to do with the last examples of an epoch if they do not fill a batch.
LAST_BATCHES = ('keep', 'drop')
# (index of this host, number of hosts).
Host = tuple[int, int]


class TrainingBatches:
  """Shuffled, augmented training batches.

  `batch(step)` is a pure function of the seed and the step, so training can
  resume from the step alone. An epoch visits every example once; if the last
  examples do not fill a batch, they form a smaller one or are dropped. Every
  host reads an equal part of each batch; concatenated in the order of the
  hosts, the parts equal the batch that a single host would read.

  Args:
    dataset: data set whose training split is read.
    batch_size: batch size of all hosts together.
    seed: seed of the order and the augmentations.
    host: which part to read.
    last: 'keep' or 'drop' the last examples if they do not fill a batch.
    devices: number of devices of all hosts; each gets the same share of every
      batch.

  Attributes:
    steps_per_epoch: batches per epoch.
    sizes: global batch sizes: one, or two if the last batch is smaller.

  Raises:
    InputError: the split, the hosts or the devices do not allow the batch
      size, or `last` is unknown.
  """

  def __init__(
    self,
    dataset: Dataset,
    *,
    batch_size: int,
    seed: int,
    host: Host = (0, 1),
    last: str = 'drop',
    devices: int = 1,
  ):
    if last not in LAST_BATCHES:
      raise unknown('data.last_batch', last, LAST_BATCHES)
    self._dataset = dataset
    self._split = dataset.splits['train']
    self._seed = seed
    self._batch_size = batch_size
    count = len(self._split)
    if not 1 <= batch_size <= count:
      raise InputError(
        f'data.batch_size must be between 1 and the {count} training '
        f'examples of {dataset.spec.name!r}, got {batch_size}: set '
        f'--config.data.batch_size={count} or less'
      )
    self._part = _part('data.batch_size', batch_size, host)
    self._host = host
    self.steps_per_epoch, rest = divmod(count, batch_size)
    self.sizes: tuple[int, ...] = (batch_size,)
    if rest and last == 'keep':
      shares = math.lcm(devices, host[1])
      if rest % shares:
        raise InputError(
          f'data.last_batch=keep leaves {rest} of the {count:,} training '
          f'examples of {dataset.spec.name!r} for the last batch, which '
          f'{shares} devices cannot share: set --config.data.last_batch=drop, '
          'or another --config.data.batch_size'
        )
      self.steps_per_epoch += 1
      self.sizes += (rest,)
    # A cached pure function: all steps of an epoch share its random draws.
    self._epoch = functools.lru_cache(maxsize=1)(self._draw_epoch)

  def _draw_epoch(self, epoch):
    count = len(self._split)
    order = np.random.default_rng([self._seed, epoch]).permutation(count)
    drawn = {
      augmentation.name: augmentation.draw(
        _generator(self._seed, epoch, augmentation.name), count
      )
      for augmentation in self._dataset.augmentations
    }
    mixing = None
    if self._dataset.mixup:
      rng = _generator(self._seed, epoch, 'mixup')
      mixing = augment.draw_mixup(rng, count, alpha=self._dataset.mixup)
    return order, drawn, mixing

  def batch(self, step: int) -> Batch:
    """Returns {'image' uint8 [B, ...], 'label' int32 [B]} of a step.

    Mixup adds 'mix_label' int32 [B], the label of the partner image, and
    'mix_weight' float32 [B], the weight of 'label'. B is the size of this
    host's part.
    """
    epoch, index = divmod(step, self.steps_per_epoch)
    order, drawn, mixing = self._epoch(epoch)
    start = index * self._batch_size
    edges = self._part
    if start + self._batch_size > len(order):
      edges = _part('the last batch', self.sizes[-1], self._host)
    chosen = order[start + edges[0] : start + edges[1]]
    images, labels = self._augmented(chosen, drawn)
    if mixing is None:
      return {'image': images, 'label': labels}
    partners, weights = (values[chosen] for values in mixing)
    others, other_labels = self._augmented(partners, drawn)
    return {
      'image': augment.mix(images, others, weights),
      'label': labels,
      'mix_label': other_labels,
      'mix_weight': weights,
    }

  def _augmented(self, chosen, drawn):
    """Returns (images, labels) with the augmentations of the epoch."""
    rows = {name: values[chosen] for name, values in drawn.items()}
    asked = self._dataset.augmentations
    crops = next((rows[each.name] for each in asked if each.at_read), None)
    images, labels = _checked(self._dataset, 'train', chosen, crops)
    for each in asked:
      if not each.at_read:
        images = each.apply(images, rows[each.name])
    return images, labels

  def abstract(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes and dtypes of a global batch without reading data.

    Args:
      batch_size: one of `sizes`.
    """
    size = (batch_size,)
    shapes: dict[str, Any] = {
      'image': (size + self._dataset.example_shape, np.uint8),
      'label': (size, np.int32),
    }
    if self._dataset.mixup:
      shapes |= {
        'mix_label': (size, np.int32),
        'mix_weight': (size, np.float32),
      }
    return {k: jax.ShapeDtypeStruct(*shape) for k, shape in shapes.items()}


def _part(key, batch_size, host):
  """Returns (start, end) of a host's part of a batch."""
  index, count = host
  if batch_size % count:
    raise InputError(
      f'{key} must be divisible by the {count} hosts, got {batch_size}: use '
      f'{max(1, round(batch_size / count)) * count}'
    )
  share = batch_size // count
  return index * share, (index + 1) * share


def _checked(dataset, split, indices, crops=None):
  """Returns checked (images, labels) of a split."""
  examples = dataset.splits[split]
  images, labels = examples.read(indices, crops)
  check_batch(
    images, labels, shape=examples.shape, split=split, spec=dataset.spec
  )
  return images, labels


def _generator(seed, epoch, name):
  # One generator per augmentation: removing one does not change the others.
  return np.random.default_rng([seed, epoch, zlib.crc32(name.encode())])


def evaluation_batches(
  dataset: Dataset, split: str, *, batch_size: int, host: Host = (0, 1)
) -> Iterator[Batch]:
  """Yields every example of a split once, in order, in equal batches.

  The last batch is padded; 'mask' [B] is False on the padding. Hosts share
  each batch as in training.

  Args:
    dataset: data set to read.
    split: name of the split.
    batch_size: batch size of all hosts together.
    host: which part to read.

  Raises:
    InputError: the split does not exist (lists the existing ones).
  """
  if split not in dataset.splits:
    raise unknown(f'split of {dataset.spec.name!r}', split, dataset.splits)
  examples = dataset.splits[split]
  start, end = _part('evaluation.batch_size', batch_size, host)
  size = end - start
  for first in range(0, len(examples), batch_size):
    last = min(first + end, len(examples))
    chosen = np.arange(first + start, last)
    images, labels = _checked(dataset, split, chosen)
    padding = size - len(labels)
    sides = [(0, padding)] + [(0, 0)] * (images.ndim - 1)
    yield {
      'image': np.pad(images, sides),
      'label': np.pad(labels, (0, padding)),
      'mask': np.arange(size) < len(labels),
    }
