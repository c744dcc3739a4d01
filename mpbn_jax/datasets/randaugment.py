"""RandAugment (Cubuk et al., 1909.13719).

Changes each image by N operations, drawn uniformly with replacement from the
paper's 14. All have the same level M, from 0 to 30, and random signs.

Pure NumPy on whole batches: with N = 2, 38 to 62 us of processor time per image
of 32x32 pixels, whereas Pillow takes 217 to 264. Magnitudes, signs and
nearest-neighbour sampling are from torchvision's RandAugment with its 31
magnitude bins, and every operation equals Pillow's bit for bit
(`image_operations`). Implementations differ:

* torchvision (0.29) fills with black by default; we fill with the authors' grey
  (`FILL`). It rounds magnitudes to float32, so that some pixels differ by 1 at
  levels 10, 14, 18, 20 and 28, in Color, Contrast, Brightness and Sharpness.
* The scale of the paper and of the authors' code (tensorflow/tpu) ends at
  M = 10 instead of 30: a rotation at their M = 9 is one at M = 27 here. Their
  code accepts a larger M and then rotates further. It has Invert, SolarizeAdd
  and Cutout instead of Identity, translates by 10 M pixels, enhances by
  0.1 + 1.8 M / 10 without a sign, and solarizes and posterizes less, the larger
  M is.
* timm (1.0) has Invert and SolarizeAdd instead of Identity and skips each drawn
  operation with probability 1/2. Its scale ends at M = 10 too. It translates by
  up to 0.45 of the side and samples bilinearly or bicubically, at random. It
  enhances, solarizes and posterizes as the authors' code does, or with `inc` by
  more, the larger M is.
"""

import numpy as np

from mpbn_jax.datasets.augment import Augmentation
from mpbn_jax.datasets.image_operations import (
  FILL,
  SIGNED,
  apply_to_each,
  check_images,
  magnitudes,
)
from mpbn_jax.errors import InputError

# In the paper's order; `draw` returns indices of this table.
NAMES = (
  'Identity',
  'AutoContrast',
  'Equalize',
  'Rotate',
  'Solarize',
  'Color',
  'Posterize',
  'Contrast',
  'Brightness',
  'Sharpness',
  'ShearX',
  'ShearY',
  'TranslateX',
  'TranslateY',
)
LEVELS = 31  # 0..30
MAGNITUDES = magnitudes(LEVELS)


def random_augment(count: int, *, level: int) -> Augmentation:
  """Applies `count` random operations to each image.

  Args:
    count: N, the number of operations.
    level: M, from 0 to 30. At level 0, AutoContrast and Equalize change images
      as at every level, and Solarize turns 255 into 0.

  Raises:
    InputError: the level is out of range.
  """
  _check_level(level)
  return Augmentation(
    name='rand_augment',
    draw=lambda rng, examples: draw(rng, count=examples, operations=count),
    apply=lambda images, drawn: apply(images, drawn, level=level),
  )


def draw(
  rng: np.random.Generator, *, count: int, operations: int
) -> np.ndarray:
  """Returns all random choices for `count` examples.

  Args:
    rng: source of randomness.
    count: number of examples.
    operations: N, the number of operations for each example.

  Returns:
    int8 [count, N, 2]: the index of an operation in `NAMES`; whether its
    magnitude is negative.
  """
  uniform = rng.random((count, operations, 2))
  chosen = (uniform[..., 0] * len(NAMES)).astype(np.int8)
  return np.stack([chosen, uniform[..., 1] < 0.5], axis=-1)


def apply(
  images: np.ndarray,
  drawn: np.ndarray,
  *,
  level: int,
  fill: tuple[int, int, int] = FILL,
) -> np.ndarray:
  """Returns the images, each with its own operations applied in their order.

  Args:
    images: uint8 [B, H, W, 3].
    drawn: [B, N, 2], rows of `draw`.
    level: M, from 0 to 30.
    fill: the colour of pixels from outside the image.

  Raises:
    InputError: a type, shape or value is invalid.

  Example:
    >>> images = np.full((2, 4, 4, 3), 200, np.uint8)
    >>> drawn = np.array([[[4, 0]], [[8, 1]]])  # Solarize; Brightness, negative
    >>> apply(images, drawn, level=10)[:, 0, 0, 0]
    array([ 55, 140], dtype=uint8)
  """
  _check_level(level)
  _check(images, drawn)
  for position in range(drawn.shape[1]):
    steps = [_step(*row, level=level) for row in drawn[:, position].tolist()]
    images = apply_to_each(images, steps, fill=fill)
  return images


def _step(index, negative, *, level):
  """Returns (name, magnitude), or None for the identity."""
  name = NAMES[index]
  if name == 'Identity':
    return None
  sign = -1 if negative and name in SIGNED else 1
  return name, sign * MAGNITUDES[name][level]


def _check_level(level):
  if not 0 <= level < LEVELS:
    raise InputError(
      "data.rand_augment_magnitude, RandAugment's level, must be between 0 "
      f'and {LEVELS - 1}, got {level}: set '
      '--config.data.rand_augment_magnitude=9, for example'
    )


def _check(images, drawn):
  check_images(images, of='RandAugment')
  shape = drawn.shape
  if drawn.dtype.kind not in 'iu' or shape != (len(images), *shape[1:2], 2):
    raise InputError(
      f'RandAugment expects drawn integers [{len(images)}, N, 2], one row of '
      f'`draw` for each image, got {drawn.dtype} {list(shape)}'
    )
  if ((drawn < 0) | (drawn > (len(NAMES) - 1, 1))).any():
    raise InputError(
      f'RandAugment expects drawn operations 0..{len(NAMES) - 1}, each with 0 '
      'or 1 for its sign, got others; were the rows made by `draw`?'
    )
