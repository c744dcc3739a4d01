"""The `photo_digits`: handwriting over photographs, in CIFAR's shape.

An image of 32x32x3 shows one of scikit-learn's 8x8 digits, enlarged bilinearly
to a random size, at a random position and in a random colour, blended into a
random, darkened patch of one of the two photographs that come with
scikit-learn. The task is hard enough to distinguish methods, and needs no
download.

An image depends only on (`SEED`, split, index): Philox, a counter-based
generator, gives each index its own numbers, so a smaller data set is a prefix
of a larger one. All sums are of integers and equal on every machine.

The three splits share no handwriting (the parts of `digits`) and no pixel of a
photograph (`STRIPS`).
"""

import functools
from collections.abc import Mapping

import numpy as np

from mpbn_jax.datasets.base import Spec, Split
from mpbn_jax.datasets.embedded import digits

SEED = 0
SIZES = {'train': 20_000, 'validation': 2_000, 'test': 4_000}
SPEC = Spec(
  name='photo_digits',
  image_shape=(32, 32, 3),
  class_names=tuple('0123456789'),
  max_value=255,
  # Of the training images: `images.mean((0, 1, 2)) / 255`, `.std(...)`.
  mean=(0.2900, 0.3091, 0.2864),
  std=(0.2374, 0.2020, 0.2158),
)

# These set the difficulty (docs/data.md lists the values tried). Larger digits
# are easier to read, as are patches darker than every digit; here the ranges of
# brightness overlap by a third.
DIGIT_SIDES = (16, 26)  # smallest and largest, in pixels
PATCH_CONTRAST = 154  # of the photographs' 256: 0 to 153; black stays black
DARKEST_COLOUR = 96  # of a digit, in each channel: 96 to 255

# The photographs, 427x640, are cut into ten vertical strips, which are assigned
# so that each split has sky, water, trees, building and flower.
STRIP_WIDTH = 64
STRIPS = {
  'train': (0, 2, 3, 5, 7, 9),
  'validation': (1, 6),
  'test': (4, 8),
}

# The random choices for each image, in the order of the random numbers.
_DRAWS = (
  'digit',
  'side',
  'top',
  'left',
  'red',
  'green',
  'blue',
  'photo',
  'strip',
  'patch_top',
  'patch_left',
)
_UNIT = 256  # weights of the interpolation are integers of 1 / _UNIT
_OPAQUE = _UNIT * 16 * _UNIT  # row weight, brightest pixel, column weight
_BLOCK = 500  # images rendered together: their int32 stay in the cache


def load(spec: Spec, config: Mapping, *, num_steps: int) -> dict[str, Split]:
  """Returns the splits, with only the first `train_size` training images."""
  del spec, num_steps  # there is only one variant
  sizes = dict(SIZES)
  if config['train_size']:
    sizes['train'] = min(config['train_size'], SIZES['train'])
  return {name: generate(name, count=count) for name, count in sizes.items()}


def generate(split: str, *, count: int) -> Split:
  """Returns the first `count` images of a split, label i % 10 at index i."""
  sources, photos = _digits()[split], _photos()
  labels = np.arange(count, dtype=np.int32) % SPEC.num_classes
  draws = _draw(split, labels=labels, members=np.bincount(sources.labels))
  ordered = sources.images[np.argsort(sources.labels, kind='stable'), ..., 0]
  images = np.empty((count, *SPEC.image_shape), np.uint8)
  for start in range(0, count, _BLOCK):
    block = slice(start, start + _BLOCK)
    chosen = {name: values[block] for name, values in draws.items()}
    images[block] = _render(chosen, sources=ordered, photos=photos)
  return Split(images, labels)


@functools.cache
def _digits():
  return digits.load(digits.SPEC, {}, num_steps=0)


@functools.cache
def _photos():
  """Returns both photographs at `PATCH_CONTRAST`, uint8 [2, 427, 640, 3]."""
  from sklearn.datasets import load_sample_images

  photos = np.stack(load_sample_images().images).astype(np.int32)
  return ((photos * PATCH_CONTRAST + 128) >> 8).astype(np.uint8)


def _draw(split, *, labels, members):
  """Returns {name: int64 [N]} of the images with these labels.

  'digit' indexes the source digits in the order of their classes; 'patch_left'
  is relative to the photograph, not to the strip.

  Args:
    split: its name.
    labels: [N].
    members: [10], the number of source digits of each class.
  """
  key = [SEED, list(SIZES).index(split)]
  # Raw numbers, because only these are the same in every version of NumPy.
  raw = np.random.Philox(key=key).random_raw((len(labels), len(_DRAWS)))
  share = dict(zip(_DRAWS, (raw >> np.uint64(11)).T * 2.0**-53, strict=True))

  def below(name, end):
    return (share[name] * end).astype(np.int64)

  smallest, largest = DIGIT_SIDES
  side = smallest + below('side', largest - smallest + 1)
  height, width, _ = SPEC.image_shape
  photos, photo_height = _photos().shape[:2]
  first = np.cumsum(members) - members  # where a class starts
  strips = np.array(STRIPS[split])
  strip_left = strips[below('strip', len(strips))] * STRIP_WIDTH
  return {
    'digit': first[labels] + below('digit', members[labels]),
    'side': side,
    'top': below('top', height - side + 1),
    'left': below('left', width - side + 1),
    'red': DARKEST_COLOUR + below('red', 256 - DARKEST_COLOUR),
    'green': DARKEST_COLOUR + below('green', 256 - DARKEST_COLOUR),
    'blue': DARKEST_COLOUR + below('blue', 256 - DARKEST_COLOUR),
    'photo': below('photo', photos),
    'patch_top': below('patch_top', photo_height - height + 1),
    'patch_left': strip_left + below('patch_left', STRIP_WIDTH - width + 1),
  }


def _render(draws, *, sources, photos):
  """Returns images uint8 [B, 32, 32, 3] of draws {name: [B]}.

  Args:
    draws: as returned by `_draw`.
    sources: uint8 [N, 8, 8], 0 to 16, in the order of their classes.
    photos: uint8 [P, H, W, 3].
  """
  height, width, _ = SPEC.image_shape
  rows = _weights(draws['top'], side=draws['side'], pixels=height)
  columns = _weights(draws['left'], side=draws['side'], pixels=width)
  # Integers up to 2**20, so exact in float32, whose matmul is fast.
  digit = sources[draws['digit']].astype(np.float32)
  opacity = rows @ digit @ columns.transpose(0, 2, 1)
  opacity = opacity.astype(np.int32)[:, None]

  windows = np.lib.stride_tricks.sliding_window_view(
    photos, (height, width), axis=(1, 2)
  )
  corners = draws['photo'], draws['patch_top'], draws['patch_left']
  patch = windows[corners].astype(np.int32)  # [B, 3, 32, 32]
  colour = np.stack([draws['red'], draws['green'], draws['blue']], axis=1)
  colour = colour.astype(np.int32)[..., None, None]
  blended = patch * _OPAQUE + (colour - patch) * opacity
  images = (blended + _OPAQUE // 2) // _OPAQUE  # rounded
  return images.astype(np.uint8).transpose(0, 2, 3, 1)


def _weights(start, *, side, pixels):
  """Returns bilinear weights float32 [B, pixels, 8], integers up to `_UNIT`.

  They weight the digit's 8 rows (or columns) at each pixel; the centres of
  these are evenly spaced in [start, start + side), beyond which the digit fades
  out.
  """
  offset = 2 * (np.arange(pixels) - start[:, None]) + 1  # in half pixels
  place = offset * (8 * _UNIT // 2) // side[:, None] - _UNIT // 2
  distance = np.abs(place[..., None] - _UNIT * np.arange(8))
  return np.maximum(_UNIT - distance, 0).astype(np.float32)
