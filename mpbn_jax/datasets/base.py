"""Data sets, their splits, and the storage of their examples."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from mpbn_jax.datasets import checks
from mpbn_jax.datasets.augment import Augmentation
from mpbn_jax.errors import InputError


class Examples(Protocol):
  """The examples of a split, read in batches wherever they are stored.

  Attributes:
    labels: int32 [N]. May take long to compute; `read` does not need it.
    shape: shape of an example, (H, W, C) or (T, H, W, C).
    unreadable: names of the images that this host could not decode.
  """

  @property
  def labels(self) -> np.ndarray: ...

  @property
  def shape(self) -> tuple[int, ...]: ...

  @property
  def unreadable(self) -> Iterable[str]: ...

  def __len__(self) -> int:
    """Returns N."""
    ...

  def read(
    self, indices: np.ndarray, crops: np.ndarray | None = None
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns (images uint8 [B, *shape], labels int32 [B]).

    Args:
      indices: [B].
      crops: [B], drawn by `resized_crop.random_resized_crop`; None uses the
        whole image, or its centre if images have different sizes.
    """


class Source(Protocol):
  """Examples as they are stored, one file or record each.

  Attributes:
    labels: int32 [N]. May take long to compute; `read` does not need it.
  """

  labels: np.ndarray

  def __len__(self) -> int:
    """Returns N."""

  def read(self, index: int) -> tuple[Any, int]:
    """Returns (the encoded image or the events, the label)."""

  def name(self, index: int) -> str:
    """Returns the path or the number of an example, for messages."""


def fetch(source: Source, index: int) -> tuple[Any, int]:
  """Returns `source.read(index)`; any failure becomes a one-line error.

  Raises:
    InputError: the example cannot be read, or its label is unknown.
  """
  try:
    content, label = source.read(index)
  except (KeyboardInterrupt, SystemExit):
    raise
  # Readers may raise anything: a panic in `aedat`, which is written in Rust, is
  # not an `Exception`.
  except BaseException as error:
    raise not_read(source.name(index), error) from error
  if label < 0:  # tensorflow_datasets' marker for labels that are not public
    raise InputError(
      f'expected the label of {source.name(index)}, got {label}: use a split '
      'whose labels are known'
    )
  return content, label


def not_read(name: str, error: BaseException) -> InputError:
  """Returns the error for an example that cannot be read."""
  reason = getattr(error, 'strerror', None) or str(error)
  reason = ' '.join(reason.split()) or type(error).__name__
  return InputError(
    f'expected to read {name}, got {reason}: fix that or restore the data '
    '(only images that cannot be decoded are ever skipped)'
  )


@dataclasses.dataclass(frozen=True)
class Split:
  """`Examples` held in arrays, in memory or mapped from a file.

  Attributes:
    images: uint8 [N, H, W, C], or frames [N, T, H, W, C].
    labels: integers [N]; `read` returns int32.
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
    images = np.asarray(self.images[indices])  # reads a memory map
    if crops is not None:
      from mpbn_jax.datasets import resized_crop  # needs Pillow

      images = resized_crop.apply(images, crops)
    return images, self.labels[indices].astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Subset:
  """A selection of other `Examples`.

  Attributes:
    examples: the examples to select from.
    indices: [N], indices of the selected examples.
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
  """The description of a data set, known before any data are read.

  Attributes:
    name: name in the configuration.
    image_shape: (H, W, C).
    class_names: one per label.
    max_value: the pixel value that represents 1.0.
    mean: mean per channel of the training images scaled to [0, 1].
    std: likewise for the standard deviation.
    frames: whether an example is T frames [T, H, W, C], one per step, rather
      than one image [H, W, C].

  Raises:
    InputError: the values do not describe valid images.

  Example:
    >>> spec = Spec(
    ...   name='gray',
    ...   image_shape=(8, 8, 1),
    ...   class_names=('a', 'b'),
    ...   max_value=255,
    ...   mean=(0.5,),
    ...   std=(0.25,),
    ... )
    >>> spec.num_classes, spec.normalize(jnp.array([255]))
    (2, Array([2.], dtype=float32))
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
    """Returns (H, W, C), or (T, H, W, C) for frames."""
    return ((num_steps,) if self.frames else ()) + self.image_shape

  def normalize(self, images: jax.Array) -> jax.Array:
    """Returns (images / max_value - mean) / std as float32.

    Runs on the device: images are transferred as uint8, a quarter of the bytes.
    """
    mean = jnp.asarray(self.mean, jnp.float32)
    std = jnp.asarray(self.std, jnp.float32)
    return (images.astype(jnp.float32) / self.max_value - mean) / std


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A data set, ready to be read.

  Attributes:
    spec: its description.
    splits: 'train', 'test', and optionally 'validation'.
    augmentations: augmentations of the training images, in this order.
    mixup: alpha of the mixup that follows them; 0 disables it.
    checksum: identifies data that their name does not identify, or None.

  Raises:
    InputError: the arrays do not match `Split`, or the examples `spec`.
  """

  spec: Spec
  splits: Mapping[str, Examples]
  augmentations: tuple[Augmentation, ...] = ()
  mixup: float = 0.0
  checksum: str | None = None

  def __post_init__(self):
    checked: set[int] = set()
    for name, split in self.splits.items():
      if not len(split):
        raise InputError(
          f'expected at least one example in the split {name!r} of '
          f'{self.spec.name!r}, got none: add some'
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
    """Names of the images that this host could not decode."""
    return set().union(*(s.unreadable for s in self.splits.values()))


def fake(spec: Spec, *, num_steps: int, count: int) -> dict[str, Split]:
  """Returns random examples of the right shape and type, for dry runs.

  Args:
    spec: specification of the data set that they replace.
    num_steps: T, for frames.
    count: number of training examples, and of test examples.
  """
  rng = np.random.default_rng(0)  # the same data for every training seed

  def split():
    # Most pixels of an event frame are empty.
    top = 4 if spec.frames else spec.max_value + 1
    images = rng.integers(
      0, top, (count, *spec.example_shape(num_steps)), np.uint8
    )
    labels = np.arange(count, dtype=np.int32) % spec.num_classes
    return Split(images, labels)

  return {name: split() for name in ('train', 'test')}
