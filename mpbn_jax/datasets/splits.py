"""Splits of a data set, identical for every training run."""

from collections.abc import Mapping

import numpy as np

from mpbn_jax.datasets.base import Examples, Subset
from mpbn_jax.errors import InputError

_VALIDATION_SEED = 1
_TRAIN_SEED = 2


def divide(
  splits: Mapping[str, Examples],
  *,
  name: str,
  validation_size: int,
  train_size: int,
) -> dict[str, Examples]:
  """Returns the splits with validation held out and training reduced.

  Both selections are stratified. Validation examples are taken from the
  training examples first; `train_size` then selects from the rest.

  Args:
    splits: splits of the data set.
    name: name of the data set.
    validation_size: how many examples to hold out; 0 holds out none.
    train_size: how many examples to train on; 0 uses all.

  Raises:
    InputError: a size exceeds the number of examples, or the data set has its
      own validation split.
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
      f'data.{key} must be at most {available} of the training examples of '
      f'{name!r}, got {size}: set --config.data.{key}={available} or less'
    )


def sample_stratified(
  labels: np.ndarray, *, size: int, seed: int
) -> np.ndarray:
  """Returns `size` sorted indices, with the same fraction of each class.

  Fractions are equal up to one example: the largest remainders are rounded up.

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
  """Returns the sorted indices of disjoint parts, stratified by class.

  Args:
    labels: [N].
    shares: fractions of the parts, summing to 1. Within each class the parts
      end at the rounded cumulative fractions.
    seed: fixed by the data set, not by the training run.
  """
  rng = np.random.default_rng(seed)
  parts: list[list[np.ndarray]] = [[] for _ in shares]
  for label in np.unique(labels):
    members = rng.permutation(np.flatnonzero(labels == label))
    ends = np.rint(np.cumsum(shares) * len(members)).astype(int)
    for part, piece in zip(parts, np.split(members, ends[:-1]), strict=True):
      part.append(piece)
  return tuple(np.sort(np.concatenate(part)) for part in parts)
