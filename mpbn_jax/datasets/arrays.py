"""Data sets made of a user's NumPy arrays."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpbn_jax.datasets.base import Dataset, Spec, Split
from mpbn_jax.datasets.checks import chunks
from mpbn_jax.datasets.registry import DATASETS
from mpbn_jax.errors import InputError

# (images, labels)
Arrays = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Registered:
  """An entry of the registry whose splits are in memory."""

  spec: Spec
  splits: Mapping[str, Split]

  @property
  def checksum(self) -> str:
    """The sha256 of all arrays and of what they mean.

    A name alone does not identify them, and an array can change in place.
    """
    spec = self.spec
    scale = [spec.max_value, *map(float, spec.mean), *map(float, spec.std)]
    digest = hashlib.sha256(f'{scale} {spec.class_names}'.encode())
    for name, split in self.splits.items():
      digest.update(f'{name} {split.images.shape}'.encode())
      for array in (*chunks(split.images), split.labels.astype(np.int32)):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()

  def load(self, spec: Spec, config: Mapping, *, num_steps: int):
    del spec, config, num_steps  # the splits are fixed
    return self.splits


def from_arrays(
  name: str,
  *,
  train: Arrays,
  test: Arrays,
  class_names: Sequence[str],
  validation: Arrays | None = None,
  max_value: int | None = None,
  mean: Sequence[float] | None = None,
  std: Sequence[float] | None = None,
  frames: bool = False,
) -> Spec:
  """Registers a data set made of NumPy arrays; returns its description.

  The data set is then available to `--config.data.name` and `load_dataset` in
  this process. To use it on the command line, call this
  function in the configuration file. A second call with the same name replaces
  the first; a run is not resumed on data other than those that it started with:
  neither on other arrays, nor with another scale or other classes. The arrays
  are not copied and may be memory maps.

  Args:
    name: name of the data set; must not be one of the package's own.
    train: training (images, labels). Images are uint8 [N, H, W, C], or
      [N, T, H, W, C] with `frames`. Labels are integers [N], starting at 0.
    test: test (images, labels).
    class_names: one name per label.
    validation: validation (images, labels); None holds out
      `data.validation_size` training examples.
    max_value: the pixel value that represents 1.0. None uses 255, or 1 with
      `frames`, so that event counts are not rescaled.
    mean: mean per channel of images scaled to [0, 1]. None computes it from the
      training images, or uses 0 with `frames`.
    std: likewise for the standard deviation, or 1 with `frames`.
    frames: whether an example is T frames, one per step, rather than one image.

  Raises:
    TypeError: images or labels are not NumPy arrays.
    InputError: the name is taken, or shapes, types or values are invalid.

  Example:
    >>> import numpy as np
    >>> from mpbn_jax import datasets
    >>> rng = np.random.default_rng(0)
    >>> def noise(count):
    ...   labels = np.arange(count) % 2
    ...   images = rng.integers(0, 128, (count, 8, 8, 1), np.uint8)
    ...   images[labels == 1] += 128
    ...   return images, labels
    >>> spec = datasets.from_arrays(
    ...   'noise',
    ...   train=noise(100),
    ...   test=noise(20),
    ...   class_names=('dark', 'bright'),
    ... )
    >>> spec.image_shape, spec.num_classes
    ((8, 8, 1), 2)
    >>> datasets.get_spec('noise') == spec
    True
  """
  if not isinstance(name, str) or not name:
    raise InputError(f'expected a name for the data set, got {name!r}')
  if not isinstance(DATASETS.get(name), _Registered | None):
    raise InputError(
      f'expected a name that no data set of the package has, got {name!r}: '
      'choose another one'
    )
  given = {'train': train, 'validation': validation, 'test': test}
  splits = {
    split: _split(pair, name=name, split=split, frames=frames)
    for split, pair in given.items()
    if pair is not None
  }
  images = splits['train'].images
  channels = images.shape[-1]
  spec = Spec(
    name=name,
    image_shape=images.shape[-3:],
    class_names=tuple(class_names),
    max_value=(1 if frames else 255) if max_value is None else max_value,
    mean=(0.0,) * channels if mean is None else tuple(mean),
    std=(1.0,) * channels if std is None else tuple(std),
    frames=frames,
  )
  Dataset(spec, splits)  # checks the arrays
  if not frames and (mean is None or std is None):
    found_mean, found_std = _statistics(images, max_value=spec.max_value)
    spec = dataclasses.replace(
      spec,
      mean=found_mean if mean is None else spec.mean,
      std=found_std if std is None else spec.std,
    )
  DATASETS[name] = _Registered(spec, splits)
  return spec


def _split(pair: Any, *, name, split, frames):
  if not isinstance(pair, tuple | list) or len(pair) != 2:
    raise InputError(
      f'expected (images, labels) as {split} of {name!r}, got '
      f'{type(pair).__name__}: pass a pair of arrays'
    )
  images, labels = pair
  axes = '[N, T, H, W, C]' if frames else '[N, H, W, C]'
  if isinstance(images, np.ndarray) and images.ndim != (5 if frames else 4):
    raise InputError(
      f'expected images {axes} in the split {split!r} of {name!r}, got '
      f'{list(images.shape)}: give them that shape, for example with '
      'images[..., None] if they lack the channel axis'
    )
  for what, array in (('images', images), ('labels', labels)):
    if not isinstance(array, np.ndarray):
      raise TypeError(
        f'expected the {what} of the split {split!r} of {name!r} as a NumPy '
        f'array, got {type(array).__name__}: use numpy.asarray'
      )
  return Split(images, labels)


def _statistics(images, *, max_value):
  """Returns the (mean, std) per channel of images scaled to [0, 1]."""
  total = np.zeros(images.shape[-1], np.int64)
  squares = np.zeros(images.shape[-1], np.int64)
  for chunk in chunks(images):
    pixels = chunk.reshape(-1, images.shape[-1])
    # Sums of integers are exact in any order.
    total += pixels.sum(0, dtype=np.int64)
    squares += np.square(pixels, dtype=np.int64).sum(0)
  count = images.size // images.shape[-1]
  mean = total / count
  variance = np.maximum(squares / count - mean**2, 0)
  std = np.sqrt(variance)
  return tuple((mean / max_value).tolist()), tuple((std / max_value).tolist())
