"""Which random changes of training images are there?

Each is a pure NumPy function of images and parameters that were drawn before.
The draw is one vectorized call per (seed, epoch), indexed by example, so that
batch size, worker and host count change nothing.
"""

import numpy as np


def draw_shifts(
  rng: np.random.Generator, *, count: int, pixels: int
) -> np.ndarray:
  """Returns shifts (down, right) in [-pixels, pixels], [count, 2]."""
  return rng.integers(-pixels, pixels + 1, (count, 2))


def shift(images: np.ndarray, shifts: np.ndarray) -> np.ndarray:
  """Returns images moved by shifts, zeros moving in.

  The same as a random crop after padding. Args: images [B, ..., H, W, C],
  shifts [B, 2] in pixels (down, right).
  """
  height, width = images.shape[-3:-1]
  pixels = int(np.abs(shifts).max(initial=0))
  sides = [(0, 0)] * (images.ndim - 3) + [(pixels, pixels)] * 2 + [(0, 0)]
  padded = np.pad(images, sides)
  result = np.empty_like(images)
  # A loop over images is faster here than one gather: each is a block copy.
  for i, (down, right) in enumerate(pixels - shifts):
    result[i] = padded[i, ..., down : down + height, right : right + width, :]
  return result
