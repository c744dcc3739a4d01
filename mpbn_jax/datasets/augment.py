"""Augmentations: random changes of training images.

Each augmentation draws parameters for all examples of an epoch in one
vectorized call and applies those of a batch, so that batch size and number of
hosts do not change the result. Pure NumPy; images are uint8 [B, H, W, C] or
frames [B, T, H, W, C], before normalization.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mpbn_jax.errors import InputError

# Images with a smaller max_value are not mixed: rounding would undo it.
_FINE = 15


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """One kind of random change.

  Attributes:
    name: its key in `config.data`, which also seeds its random numbers.
    draw: (rng, count) -> parameters [count, ...], one row per example.
    apply: (images, their rows of parameters) -> images.
    at_read: whether `Examples.read` applies it, while images still have their
      original sizes.
  """

  name: str
  draw: Callable[[np.random.Generator, int], np.ndarray]
  apply: Callable[[np.ndarray, np.ndarray], np.ndarray]
  at_read: bool = False


def check(config: Mapping, *, spec: Any) -> None:
  """Rejects augmentations that would destroy the images.

  Args:
    config: `config.data`; reads shift, roll, auto_augment, rand_augment, cutout
      and mixup.
    spec: `base.Spec` of the images.

  Raises:
    InputError: a value is too large, AutoAugment and RandAugment would both
      be applied, or mixup would mix event counts.
  """
  side = min(spec.image_shape[:2])
  for key, most in (('shift', side - 1), ('roll', side - 1), ('cutout', side)):
    if config[key] > most:
      raise InputError(
        f'data.{key} must be at most {most} pixels for the '
        f'{" x ".join(map(str, spec.image_shape[:2]))} images of '
        f'{spec.name!r}, got {config[key]}: set --config.data.{key} to a '
        'smaller number'
      )
  if config['auto_augment'] and config['rand_augment']:
    raise InputError(
      'data.auto_augment and data.rand_augment are alternatives, got true and '
      f'{config["rand_augment"]}: set --config.data.auto_augment=false or '
      '--config.data.rand_augment=0'
    )
  if config['mixup'] and spec.frames:
    # A single event with a weight below 1/2 would be rounded to 0.
    raise InputError(
      f'data.mixup mixes images, got {config["mixup"]} for the event counts of '
      f'{spec.name!r}: set --config.data.mixup=0'
    )
  if config['mixup'] and spec.max_value < _FINE:
    raise InputError(
      f'data.mixup rounds to whole numbers, got {config["mixup"]} for the '
      f'images of {spec.name!r}, which have only {spec.max_value + 1} '
      'different values: set --config.data.mixup=0'
    )


def random_shift(pixels: int) -> Augmentation:
  """Moves images by up to `pixels` along both axes and fills with zeros.

  Equivalent to the usual random crop after padding by `pixels`.
  """
  return Augmentation(
    name='shift',
    draw=lambda rng, count: rng.integers(-pixels, pixels + 1, (count, 2)),
    apply=shift,
  )


def shift(images: np.ndarray, shifts: np.ndarray) -> np.ndarray:
  """Returns images shifted by shifts [B, 2] in pixels (down, right)."""
  height, width = images.shape[-3:-1]
  pixels = int(np.abs(shifts).max(initial=0))
  sides = [(0, 0)] * (images.ndim - 3) + [(pixels, pixels)] * 2 + [(0, 0)]
  padded = np.pad(images, sides)
  result = np.empty_like(images)
  starts = (pixels - shifts).tolist()
  # Faster than one gather: each iteration copies a block.
  for target, image, (down, right) in zip(result, padded, starts, strict=True):
    target[:] = image[..., down : down + height, right : right + width, :]
  return result


def random_flip() -> Augmentation:
  """Mirrors each image horizontally with probability 1/2."""
  return Augmentation(
    name='flip',
    draw=lambda rng, count: rng.random(count) < 0.5,
    apply=_flip,
  )


def _flip(images, flips):
  result = images.copy()
  # One item per pixel: NumPy is slow along an innermost axis of three.
  pixels = result.view(f'V{images.shape[-1]}')
  pixels[flips] = pixels[flips][..., ::-1, :]
  return result


def random_roll(pixels: int) -> Augmentation:
  """Rolls images by up to `pixels` along both axes, like `numpy.roll`.

  The MPBN paper's code does this on CIFAR10-DVS.
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

  The centre may be anywhere in the image, so the square may extend beyond it.
  Normalization comes later: cut pixels are black, not the mean.
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
    centres: [B, 2] in [0, 1), relative to the height and width.
    side: side of the square in pixels.
  """
  height, width = images.shape[-3:-1]
  result = images.copy()
  corners = (centres * (height, width)).astype(int) - side // 2
  first, last = np.maximum(corners, 0), np.maximum(corners + side, 0)
  squares = np.hstack([first, last]).tolist()
  for image, (top, left, bottom, right) in zip(result, squares, strict=True):
    image[..., top:bottom, left:right, :] = 0
  return result


# Number of attempts of random erasing and the random resized crop to find a
# rectangle that fits into the image.
_TRIES = 10


def rectangles(
  rng: np.random.Generator,
  count: int,
  *,
  height: int,
  width: int,
  area: tuple[float, float],
  aspect: tuple[float, float],
) -> np.ndarray:
  """Returns int32 [count, 4]: top, left, height and width of rectangles.

  Each is the first of ten attempts that fits into the image, at a random
  position, or all zeros if none fits.

  Args:
    rng: source of randomness.
    count: number of rectangles.
    height: image height in pixels.
    width: image width in pixels.
    area: range of the relative area, drawn uniformly.
    aspect: range of width / height, drawn log-uniformly.
  """
  place = rng.random((count, 2))
  sides = np.zeros((count, 2), np.int32)
  for _ in range(_TRIES):
    pixels = rng.uniform(*area, count) * (height * width)
    low, high = np.log(aspect)
    ratio = np.exp(rng.uniform(low, high, count))
    tried = np.rint(np.sqrt(np.stack([pixels / ratio, pixels * ratio], 1)))
    fits = ((tried > 0) & (tried <= (height, width))).all(1)
    new = fits & (sides == 0).any(1)
    sides[new] = tried[new]
    if sides.all():
      break
  corners = (place * ((height, width) - sides + 1)).astype(np.int32)
  return np.where(sides.any(1, keepdims=True), np.hstack([corners, sides]), 0)


def random_erasing(
  probability: float,
  *,
  image_shape: tuple[int, int, int],
  fill: tuple[int, ...],
) -> Augmentation:
  """Erases a random rectangle (Zhong et al., 1708.04896).

  The rectangle covers 2 to 33 % of the image and is 0.3 to 3.3 times as wide as
  high.

  Args:
    probability: probability of erasing a part of an image.
    image_shape: (H, W, C).
    fill: the new value of each channel. Random values work best in the paper;
      a single colour also suits event counts.
  """
  height, width, _ = image_shape

  def draw(rng, count):
    erased = rng.random((count, 1)) < probability
    return erased * rectangles(
      rng,
      count,
      height=height,
      width=width,
      area=(0.02, 0.33),
      aspect=(0.3, 3.3),
    )

  return Augmentation(
    name='random_erasing',
    draw=draw,
    apply=lambda images, boxes: erase(images, boxes, fill=fill),
  )


def erase(
  images: np.ndarray, boxes: np.ndarray, *, fill: tuple[int, ...]
) -> np.ndarray:
  """Returns images with rectangles filled with one colour.

  Args:
    images: [B, ..., H, W, C].
    boxes: [B, 4]: top, left, height, width.
    fill: [C].
  """
  result = images.copy()
  for i in np.flatnonzero(boxes.any(1)):
    top, left, height, width = boxes[i]
    result[i, ..., top : top + height, left : left + width, :] = fill
  return result


def draw_mixup(
  rng: np.random.Generator, count: int, *, alpha: float
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the partner of each example, and the example's own weight.

  Zhang et al. (1710.09412) mix the examples of a batch with a single weight;
  here partners come from the whole epoch and every example has its own weight,
  so that neither depends on the batch.

  Args:
    rng: source of randomness.
    count: number of training examples.
    alpha: parameter of the Beta(alpha, alpha) distribution of the weights.

  Returns:
    (partners int64 [count], a permutation; weights float32 [count]).
  """
  partners = rng.permutation(count)
  return partners, rng.beta(alpha, alpha, count).astype(np.float32)


def mix(
  images: np.ndarray, others: np.ndarray, weights: np.ndarray
) -> np.ndarray:
  """Returns weights * images + (1 - weights) * others, rounded to uint8.

  Args:
    images: uint8 [B, ...].
    others: uint8 [B, ...].
    weights: float32 [B].
  """
  weights = weights.reshape((-1,) + (1,) * (images.ndim - 1))
  change = weights * (images.astype(np.float32) - others)
  return np.rint(others + change).astype(np.uint8)
