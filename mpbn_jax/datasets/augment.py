"""Which random changes of training images are there?

Each draws its parameters for all examples of an epoch in one vectorized call,
and applies those of a batch: so batch size, worker and host count change
nothing. Pure NumPy; images are uint8 [B, H, W, C] or frames [B, T, H, W, C],
before normalization.
"""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """One kind of random change.

  Attributes:
    name: its key in `config.data`; names the random numbers that it draws.
    draw: (rng, count) -> parameters [count, ...] of that many examples.
    apply: (images, parameters) -> images; the parameters of those images.
  """

  name: str
  draw: Callable[[np.random.Generator, int], np.ndarray]
  apply: Callable[[np.ndarray, np.ndarray], np.ndarray]


def random_shift(pixels: int) -> Augmentation:
  """Moves images by up to `pixels` in both directions, zeros moving in.

  The same as a random crop after padding by `pixels`.
  """
  return Augmentation(
    name='shift',
    draw=lambda rng, count: rng.integers(-pixels, pixels + 1, (count, 2)),
    apply=shift,
  )


def shift(images: np.ndarray, shifts: np.ndarray) -> np.ndarray:
  """Returns images moved by shifts [B, 2] in pixels (down, right)."""
  height, width = images.shape[-3:-1]
  pixels = int(np.abs(shifts).max(initial=0))
  sides = [(0, 0)] * (images.ndim - 3) + [(pixels, pixels)] * 2 + [(0, 0)]
  padded = np.pad(images, sides)
  result = np.empty_like(images)
  # A loop over images is faster here than one gather: each is a block copy.
  for i, (down, right) in enumerate(pixels - shifts):
    result[i] = padded[i, ..., down : down + height, right : right + width, :]
  return result


def random_flip() -> Augmentation:
  """Mirrors every other image, left to right."""
  return Augmentation(
    name='flip',
    draw=lambda rng, count: rng.random(count) < 0.5,
    apply=_flip,
  )


def _flip(images, flips):
  sides = (...,) + (None,) * (images.ndim - 1)
  return np.where(flips[sides], images[..., ::-1, :], images)


def random_roll(pixels: int) -> Augmentation:
  """Rolls images by up to `pixels`; what leaves on one side comes in opposite.

  Of the MPBN paper's code for CIFAR10-DVS.
  """
  return Augmentation(
    name='roll',
    draw=lambda rng, count: rng.integers(-pixels, pixels + 1, (count, 2)),
    apply=roll,
  )


def roll(images: np.ndarray, shifts: np.ndarray) -> np.ndarray:
  """Returns images rolled by shifts [B, 2] in pixels (down, right)."""
  return np.stack(
    [
      np.roll(image, tuple(by), axis=(-3, -2))
      for image, by in zip(images, shifts, strict=True)
    ]
  )


def random_cutout(side: int) -> Augmentation:
  """Blackens one square of each image (DeVries and Taylor, 1708.04552).

  The centre is anywhere in the image, so the square may stick out. Applied
  before normalization: a cut pixel is black, not the mean.
  """
  return Augmentation(
    name='cutout',
    draw=lambda rng, count: rng.random((count, 2)),
    apply=lambda images, centres: cutout(images, centres, side=side),
  )


def cutout(images: np.ndarray, centres: np.ndarray, *, side: int) -> np.ndarray:
  """Returns images with squares of zeros.

  Args:
    images: [B, ..., H, W, C].
    centres: [B, 2] in [0, 1), shares of the height and width.
    side: of the square, in pixels.
  """
  height, width = images.shape[-3:-1]
  result = images.copy()
  corners = (centres * (height, width)).astype(int) - side // 2
  for i, (top, left) in enumerate(corners):
    rows = slice(max(top, 0), max(top + side, 0))
    columns = slice(max(left, 0), max(left + side, 0))
    result[i, ..., rows, columns, :] = 0
  return result
