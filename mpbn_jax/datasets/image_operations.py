"""Image operations of AutoAugment and RandAugment, for whole batches.

Pure NumPy. On 8-bit RGB, every operation equals Pillow's bit for bit, and
`magnitudes` are those of torchvision's AutoAugment and RandAugment, with
nearest-neighbour sampling.
"""

import collections
import functools
import math
from collections.abc import Callable, Iterable

import numpy as np

from mpbn_jax.errors import InputError

# The colour of pixels from outside the image, as in the MPBN paper's code. The
# AutoAugment authors' code uses the mean of CIFAR-10, (125, 123, 114);
# torchvision's default is 0.
FILL = (128, 128, 128)


def magnitudes(count: int) -> dict[str, tuple[float, ...]]:
  """Returns the magnitudes of every operation at `count` levels.

  The unit depends on the operation: slope, fraction of the side, degrees,
  factor - 1, threshold or bits. AutoContrast, Equalize and Invert ignore it.

  Args:
    count: number of levels, at least 2.
  """

  def levels(first, last):
    return tuple(np.linspace(first, last, count).tolist())

  return {
    **dict.fromkeys(('ShearX', 'ShearY'), levels(0, 0.3)),
    **dict.fromkeys(('TranslateX', 'TranslateY'), levels(0, 150 / 331)),
    'Rotate': levels(0, 30),
    **dict.fromkeys(('AutoContrast', 'Invert', 'Equalize'), (0,) * count),
    'Solarize': levels(255, 0),
    'Posterize': tuple(8 - round(4 * i / (count - 1)) for i in range(count)),
    **dict.fromkeys(('Contrast', 'Color'), levels(0, 0.9)),
    **dict.fromkeys(('Brightness', 'Sharpness'), levels(0, 0.9)),
  }


_MOVING = ('ShearX', 'ShearY', 'TranslateX', 'TranslateY', 'Rotate')
# Their magnitude is negated with probability 1/2.
SIGNED = (*_MOVING, 'Contrast', 'Color', 'Brightness', 'Sharpness')


@functools.lru_cache(maxsize=256)
def _source(matrix, height, width):
  """Returns the source index of each byte of an image, and a mask.

  Uses the fixed-point arithmetic of Pillow's `affine_fixed` (Geometry.c).

  Args:
    matrix: (a, b, c, d, e, f): the value at the pixel centre (x, y) is read at
      (a x + b y + c, d x + e y + f).
    height: height of the image.
    width: width of the image.

  Returns:
    Indices [H * W * 3], 0 for sources outside the image; the mask of those
    outside [H * W * 3].
  """
  a, b, c, d, e, f = matrix
  c, f = c + a * 0.5 + b * 0.5, f + d * 0.5 + e * 0.5
  fixed = (math.floor(v * 65536 + 0.5) for v in (a, b, c, d, e, f))
  a, b, c, d, e, f = fixed
  y, x = np.mgrid[:height, :width]
  column, row = (a * x + b * y + c) >> 16, (d * x + e * y + f) >> 16
  outside = (column < 0) | (column >= width) | (row < 0) | (row >= height)
  pixel = np.where(outside, 0, row * width + column)
  index = (pixel[..., None] * 3 + np.arange(3)).reshape(-1)
  outside = np.repeat(outside.reshape(-1), 3)
  index.flags.writeable = outside.flags.writeable = False
  return index, outside


def _moving(matrix):
  """Returns the operation of `matrix`: (magnitude, height, width) -> (a..f)."""

  def operation(images, magnitude, *, fill=FILL):
    height, width = images.shape[1:3]
    index, outside = _source(matrix(magnitude, height, width), height, width)
    flat = images.reshape(len(images), -1)
    # The indices are in range; 'clip' only skips the check.
    moved = flat.take(index, axis=1, mode='clip')
    colour = np.tile(np.array(fill, np.uint8), height * width)
    return np.where(outside, colour, moved).reshape(images.shape)

  return operation


def _rotation(degrees, height, width):
  """Counterclockwise about the centre, rounded like Pillow's `Image.rotate`."""
  angle = -math.radians(degrees % 360.0)
  cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
  x, y = width / 2, height / 2
  c, f = cos * -x + sin * -y + x, -sin * -x + cos * -y + y
  return cos, sin, c, -sin, cos, f


def _planes(images):
  """Returns [B, 3, H * W]: NumPy is slow along an innermost axis of three."""
  batch, height, width, channels = images.shape
  flat = images.reshape(batch, height * width, channels)
  return np.ascontiguousarray(flat.transpose(0, 2, 1))


def _images(planes, shape):
  return planes.transpose(0, 2, 1).reshape(shape)


def _auto_contrast(images, magnitude=0):
  del magnitude
  planes = _planes(images)
  low = planes.min(-1, keepdims=True).astype(float)
  spread = planes.max(-1, keepdims=True) - low
  scale = 255.0 / np.maximum(spread, 1)
  stretched = np.clip(planes * scale + -low * scale, 0, 255).astype(np.uint8)
  return _images(np.where(spread > 0, stretched, planes), images.shape)


def _equalize(images, magnitude=0):
  del magnitude
  planes = _planes(images)
  batch, channels, pixels = planes.shape
  # Each plane has its own 256 bins.
  starts = np.arange(0, batch * channels * 256, 256)
  bins = planes.reshape(-1, pixels) + starts[:, None]
  counts = np.bincount(bins.reshape(-1), minlength=len(starts) * 256)
  last = counts[bins.max(-1)]
  step = (pixels - last)[:, None] // 255
  counts = counts.reshape(-1, 256)
  below = np.cumsum(counts, axis=1) - counts
  table = np.minimum((step // 2 + below) // np.maximum(step, 1), 255)
  table = np.where(step > 0, table, np.arange(256)).astype(np.uint8)
  return _images(table.reshape(-1)[bins].reshape(planes.shape), images.shape)


def _solarize(images, threshold):
  return np.where(images < math.ceil(threshold), images, 255 - images)


def _luma(images):
  """Returns Pillow's 'L' [B, H, W]: ITU-R 601-2 in fixed point."""
  red, green, blue = (images[..., i].astype(np.uint32) for i in range(3))
  luma = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
  return luma.astype(np.uint8)


def _blend(degenerate, images, magnitude):
  """Returns degenerate + (1 + magnitude) * (images - degenerate).

  Computed in float32 and truncated to integers, as in Pillow's Blend.c.
  """
  start = degenerate.astype(np.float32)
  change = (images - start) * np.float32(1 + magnitude)
  return np.clip(start + change, 0, 255).astype(np.uint8)


def _contrast(images, magnitude):
  luma = _luma(images).reshape(len(images), -1)
  count = luma.shape[1]
  mean = (2 * luma.sum(1, dtype=np.int64) + count) // (2 * count)  # rounded
  return _blend(mean[:, None, None, None], images, magnitude)


def _color(images, magnitude):
  return _blend(np.stack([_luma(images)] * 3, axis=-1), images, magnitude)


def _sharpness(images, magnitude):
  # Pillow's SMOOTH: the mean of 3x3 pixels with weight 5 for the centre; it
  # leaves the border unchanged. No sum of 13ths ends in exactly .5, so integers
  # round like its float32.
  wide = images.astype(np.uint16)
  rows = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
  box = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
  total = box + 4 * wide[:, 1:-1, 1:-1]
  smooth = images.copy()
  smooth[:, 1:-1, 1:-1] = (2 * total + 13) // 26
  return _blend(smooth, images, magnitude)


# (images uint8 [B, H, W, 3], magnitude of `magnitudes`) -> images. Those that
# move pixels also take `fill`.
OPERATIONS: dict[str, Callable[..., np.ndarray]] = {
  'ShearX': _moving(lambda m, h, w: (1, m, 0, 0, 1, 0)),
  'ShearY': _moving(lambda m, h, w: (1, 0, 0, m, 1, 0)),
  # To the right and down, truncated to whole pixels.
  'TranslateX': _moving(lambda m, h, w: (1, 0, -int(m * w), 0, 1, 0)),
  'TranslateY': _moving(lambda m, h, w: (1, 0, 0, 0, 1, -int(m * h))),
  'Rotate': _moving(_rotation),
  'AutoContrast': _auto_contrast,
  'Invert': lambda images, magnitude=0: 255 - images,
  'Equalize': _equalize,
  'Solarize': _solarize,
  'Posterize': lambda images, bits: images & np.uint8(256 - 2 ** (8 - bits)),
  'Contrast': _contrast,
  'Color': _color,
  'Brightness': lambda images, m: _blend(np.zeros((1, 1, 1, 1)), images, m),
  'Sharpness': _sharpness,
}


def apply_to_each(
  images: np.ndarray,
  steps: Iterable[tuple[str, float] | None],
  *,
  fill: tuple[int, int, int] = FILL,
) -> np.ndarray:
  """Returns the images, each changed by its own operation.

  Args:
    images: uint8 [B, H, W, 3].
    steps: for each image (name of `OPERATIONS`, magnitude), or None to leave it
      unchanged.
    fill: the colour of pixels from outside the image.
  """
  groups = collections.defaultdict(list)
  for i, step in enumerate(steps):
    if step is not None:
      groups[step].append(i)
  result = images.copy()
  for (name, magnitude), members in groups.items():
    options = {'fill': fill} if name in _MOVING else {}
    result[members] = OPERATIONS[name](images[members], magnitude, **options)
  return result


def check_images(images: np.ndarray, *, of: str) -> None:
  """Rejects images that the operations would change wrongly.

  Args:
    images: images of any type and shape.
    of: name of the augmentation, for the message.

  Raises:
    InputError: the images are not uint8 [B, H, W, 3].
  """
  if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
    raise InputError(
      f'{of} expects images uint8 [B, H, W, 3], before normalization, got '
      f'{images.dtype} {list(images.shape)}'
    )
