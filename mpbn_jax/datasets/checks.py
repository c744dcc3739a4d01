"""Checks for bad data, on which a network would otherwise silently train.

Arrays are checked once when they are loaded; images that are decoded on reading
are checked in every batch.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from mpbn_jax.errors import InputError

_CHUNK = 2**24  # bytes of images checked at a time


def check_spec(spec: Any) -> None:
  """Rejects a `Spec` that does not describe images.

  Raises:
    InputError: a side is not a positive integer, the number of constants
      differs from that of channels, there are no classes, or the constants
      cannot normalize.
  """
  shape = spec.image_shape
  sides = [isinstance(side, int) and side > 0 for side in shape]
  if len(shape) != 3 or not all(sides):
    raise InputError(
      f'expected image_shape (height, width, channels) of {spec.name!r}, each '
      f'at least 1, got {shape}'
    )
  for name in ('mean', 'std'):
    values = getattr(spec, name)
    if len(values) != shape[-1] or not all(map(math.isfinite, values)):
      raise InputError(
        f'expected a finite {name} for each of the {shape[-1]} channels of '
        f'{spec.name!r}, got {values}'
      )
  if not all(value > 0 for value in spec.std):
    raise InputError(
      f'expected positive deviations std of {spec.name!r}, got {spec.std}: '
      'leave out a channel that never changes, or give it 1.0'
    )
  if not 1 <= spec.max_value <= 255:
    raise InputError(
      f'expected a max_value of {spec.name!r} from 1 to 255, since images are '
      f'uint8, got {spec.max_value}'
    )
  if not spec.class_names or len(set(spec.class_names)) != spec.num_classes:
    raise InputError(
      f'expected distinct class names for {spec.name!r}, got '
      f'{len(spec.class_names)}, of which {len(set(spec.class_names))} are '
      'distinct'
    )


def check_shapes(shapes: dict[str, tuple[int, ...]], *, spec: Any) -> None:
  """Rejects splits whose examples do not have the shape of the `Spec`.

  Args:
    shapes: {split: shape of an example}.
    spec: `base.Spec`.

  Raises:
    InputError: a shape differs from the spec's or from another split's.
  """
  expected = 'x'.join(map(str, spec.image_shape))
  if spec.frames:
    expected = f'Tx{expected}'
  for split, shape in shapes.items():
    frames = shape[:1] if spec.frames else ()
    if shape != (*frames, *spec.image_shape) or 0 in shape:
      raise InputError(
        f'expected examples of shape {expected} in the split {split!r} of '
        f'{spec.name!r}, got {"x".join(map(str, shape))}: give them that '
        "shape, or set the spec's image_shape to theirs"
      )
  if len(set(shapes.values())) > 1:
    told = ', '.join(f'{split} {shape}' for split, shape in shapes.items())
    raise InputError(
      f'expected examples of one shape in all splits of {spec.name!r}, got '
      f'{told}: convert all recordings to the same number of frames'
    )


def check_arrays(
  images: np.ndarray, labels: np.ndarray, *, split: str, spec: Any
) -> None:
  """Rejects images and labels that do not match `Split` and the spec.

  Reads no more images than needed: uint8 cannot exceed 255, and event counts
  may have any value.

  Args:
    images: uint8 [N, ...], possibly a memory map.
    labels: integers [N].
    split: its name.
    spec: `base.Spec`.

  Raises:
    TypeError: images or labels are not NumPy arrays.
    InputError: a type, length or value is invalid.
  """
  of = f'the split {split!r} of {spec.name!r}'
  for what, array in (('images', images), ('labels', labels)):
    if not isinstance(array, np.ndarray):
      raise TypeError(
        f'expected the {what} of {of} as a NumPy array, got '
        f'{type(array).__name__}: use numpy.asarray'
      )
  if images.dtype != np.uint8:
    raise InputError(_of_another_dtype(images, of, spec))
  if labels.dtype.kind not in 'iu' or labels.ndim != 1:
    raise InputError(
      f'expected the labels of {of} as integers [N], got {labels.dtype} '
      f'{list(labels.shape)}: give each example the number of its class'
    )
  if len(images) != len(labels):
    raise InputError(
      f'expected one label for each image of {of}, got {len(images):,} images '
      f'and {len(labels):,} labels: restore those that are missing'
    )
  if not len(labels):
    raise InputError(
      f'expected at least one example in {of}, got none: add some'
    )
  low, high = int(labels.min()), int(labels.max())
  if low < 0 or high >= spec.num_classes:
    counted = low == 1 and high == spec.num_classes
    raise InputError(
      f'expected labels 0 to {spec.num_classes - 1} in {of}, got {low} to '
      f'{high}: ' + ('subtract 1' if counted else 'count the classes from 0')
    )
  if images.size and not spec.frames:  # `check_shapes` rejects a side of 0
    _check_range(images, of, spec)


def _of_another_dtype(images, of, spec):
  mend = 'clip, round and convert them with .astype(numpy.uint8)'
  values = np.asarray(images[:1000])
  got = str(images.dtype)
  if values.size and values.dtype.kind in 'iuf':
    low, high = values.min(), values.max()
    got += f' from {low:.6g} to {high:.6g}'
    if np.isnan(low):
      mend = 'find out where the NaN come from'
    elif values.dtype.kind == 'f' and low >= 0 and high <= 1:
      mend = (
        f'multiply by {spec.max_value}, round and convert them with '
        '.astype(numpy.uint8)'
      )
  return (
    f'expected the images of {of} as uint8, 0 to {spec.max_value}, got {got}: '
    f'{mend}'
  )


def _check_range(images, of, spec):
  largest = 0
  for chunk in chunks(images):
    largest = max(largest, int(chunk.max()))
    # uint8 cannot exceed 255: one bright pixel is enough.
    if spec.max_value == 255 and largest > 1:
      return
  if largest > spec.max_value:
    raise InputError(
      f'expected image values of at most {spec.max_value} in {of}, got '
      f"{largest}: scale the images, or set the spec's max_value"
    )
  if largest <= 1 < spec.max_value:
    raise InputError(
      f'expected image values up to {spec.max_value} in {of}, got none above '
      f'{largest}, which is almost black to a network: multiply by '
      f"{spec.max_value} before rounding, or set the spec's max_value to 1"
    )


def chunks(images: np.ndarray) -> Iterator[np.ndarray]:
  """Yields all images, a few megabytes at a time."""
  step = max(1, _CHUNK // max(1, images[:1].nbytes))
  for start in range(0, len(images), step):
    yield images[start : start + step]


def check_batch(
  images: np.ndarray,
  labels: np.ndarray,
  *,
  shape: tuple[int, ...],
  split: str,
  spec: Any,
) -> None:
  """Rejects batches that `Examples.read` must not return.

  Args:
    images: images of a batch.
    labels: labels of a batch; -1 for images that could not be decoded.
    shape: shape of an example.
    split: its name.
    spec: `base.Spec`.

  Raises:
    InputError: a type, shape or value is invalid.
  """
  count = len(labels)
  of = f'a batch of the split {split!r} of {spec.name!r}'
  if images.dtype != np.uint8 or images.shape != (count, *shape):
    raise InputError(
      f'expected images uint8 {[count, *shape]} in {of}, got {images.dtype} '
      f'{list(images.shape)}: fix the code that reads the data'
    )
  if labels.dtype.kind not in 'iu':
    raise InputError(
      f'expected integers as labels in {of}, got {labels.dtype}: fix the code '
      'that reads the data'
    )
  if count and not -1 <= int(labels.min()) <= int(labels.max()) < (
    spec.num_classes
  ):
    raise InputError(
      f'expected labels 0 to {spec.num_classes - 1} in {of}, got '
      f'{labels.min()} to {labels.max()}: restore the data'
    )
