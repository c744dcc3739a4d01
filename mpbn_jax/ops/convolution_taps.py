"""The convolution and its gradients on tiny maps, as a matmul for each tap.

The matmuls skip the zeros around the maps: a 3x3 kernel on 2x2 maps multiplies
16 of 36 pairs of pixels and taps. Multiples of time were measured as in
`convolution_cpu`, with 64 images and 512 channels where nothing else is said.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax import lax

_LARGE = 2**22


def is_better(x, size, result) -> bool:
  """Whether few pixels of the result meet a kernel that is large for the map.

  XLA's own operation costs 57 if the kernel is larger than the map (3x3 on
  2x2), and 1.6 with few output pixels (3x3, stride 2, on 4x4), where one matmul
  of all windows costs 0.8.

  Args:
    x: [N, H, W, C].
    size: the kernel's, along H and W.
    result: the height, width and channels of the result.
  """
  n, *sides, _ = x.shape
  height, width, channels = result
  oversize = size[0] > sides[0] or size[1] > sides[1]
  # The batch size may be a symbol, which compares with no number.
  few = isinstance(n, int) and n * height * width <= channels
  return size[0] * size[1] > 1 and (oversize or few)


def forward(x, kernel, strides, padding, result):
  """Returns the correlation: 3x3 on 2x2 in 0.6 of the time of all windows.

  Where every pixel of x meets every pixel of the result, as there, it is one
  matmul for each pixel of the result: 0.75 of the time of one for each tap
  (128 or 256 channels, 256 images).

  Args:
    result: its height, width and channels.
  """
  size, reach = kernel.shape[:2], result[:2]
  taps = list(_taps(size, x, reach, strides, padding))
  if meeting := _meeting_everywhere(taps, x, kernel, reach):
    flat = x.reshape(x.shape[0], -1)
    pixels = [flat @ jnp.concatenate([kernel[t] for t in o]) for o in meeting]
    return jnp.stack(pixels, axis=1).reshape(x.shape[0], *result)
  y = jnp.zeros((x.shape[0], *result), x.dtype)
  for a, b, seen, reached in taps:
    around = [
      (part.start, side - part.stop)
      for part, side in zip(reached, reach, strict=True)
    ]
    part = x[:, *seen] @ kernel[a, b]
    y = y + jnp.pad(part, ((0, 0), *around, (0, 0)))
  return y


def input_gradient(g, x, kernel, strides, padding):
  """Returns the gradient of x.

  The matmuls read the kernel as it is, neither flipped nor transposed: 0.6 of
  the time of phases on 2x2, 0.8 with stride 2 on 4x4 (256 to 512 channels).
  """
  dx = jnp.zeros(x.shape, g.dtype)
  zero, none = jnp.zeros((), g.dtype), (0, 0, 0)
  size, sides = kernel.shape[:2], x.shape[1:3]
  for a, b, seen, reached in _taps(size, x, g.shape[1:3], strides, padding):
    around = [
      (part.start, side - part.stop, part.step - 1)
      for part, side in zip(seen, sides, strict=True)
    ]
    contracted = (((3,), (1,)), ((), ()))
    part = lax.dot_general(g[:, *reached], kernel[a, b], contracted)
    dx = dx + lax.pad(part, zero, (none, *around, none))
  return dx


def kernel_gradient(g, x, size, strides, padding):
  """Returns the gradient of the kernel: 3x3 on 2x2 in 0.6 of the time.

  Where every pixel of x meets every pixel of g, as there, one matmul has all
  the products: 0.5 of the time of one for each tap (128 channels, 256 images).
  """
  (n, *sides, c_in), (*reach, c_out) = x.shape, g.shape[1:]
  taps = list(_taps(size, x, reach, strides, padding))
  none = jnp.zeros((c_in, c_out), g.dtype)
  found = [[none] * size[1] for _ in range(size[0])]
  if _meeting_everywhere(taps, x, none, reach):
    products = x.reshape(n, -1).T @ g.reshape(n, -1)
    products = products.reshape(*sides, c_in, *reach, c_out)
    for a, b, *slices in taps:
      parts = [products[*i, :, *o] for i, o in _pairs(*slices)]
      found[a][b] = sum(parts[1:], parts[0])
  else:
    for a, b, seen, reached in taps:
      left = x[:, *seen].reshape(-1, c_in)
      found[a][b] = left.T @ g[:, *reached].reshape(-1, c_out)
  return jnp.stack([jnp.stack(row) for row in found])


def _meeting_everywhere(taps, x, kernel, reach):
  """Returns the taps (a, b) of all pixels of x, for each pixel of the result.

  Or None, where some pixels do not meet, and where arrays for all of these taps
  would be much larger than the kernel [..., C_in, C_out], or so large that they
  do not pay for their memory (512 channels).
  """
  sides = x.shape[1:3]
  meeting = {
    (pixel, to): (a, b)
    for a, b, *slices in taps
    for pixel, to in _pairs(*slices)
  }
  pairs = math.prod((*sides, *reach))
  elements = pairs * kernel.shape[-2] * kernel.shape[-1]
  if len(meeting) < pairs or pairs > 2 * len(taps) or elements >= _LARGE:
    return None
  return [
    [meeting[pixel, to] for pixel in np.ndindex(*sides)]
    for to in np.ndindex(*reach)
  ]


def _pairs(seen, reached):
  """Returns the pairs of pixels, each (row, column), of x and of the result."""

  def along(axis):
    ranges = (range(*p[axis].indices(p[axis].stop)) for p in (seen, reached))
    return zip(*ranges, strict=True)

  return [
    ((row, column), (to_row, to_column))
    for row, to_row in along(0)
    for column, to_column in along(1)
  ]


def _taps(size, x, result, strides, padding):
  """Yields (a, b, slices of x, slices of the result) of taps that meet x."""

  def meeting(axis, tap):
    stride, low = strides[axis], padding[axis][0]
    first = max(0, -((tap - low) // stride))
    last = (x.shape[axis + 1] - 1 + low - tap) // stride
    stop = min(result[axis], last + 1)
    start = first * stride + tap - low
    seen = slice(start, start + (stop - first - 1) * stride + 1, stride)
    return (seen, slice(first, stop)) if stop > first else None

  for a in range(size[0]):
    for b in range(size[1]):
      rows, columns = meeting(0, a), meeting(1, b)
      if rows and columns:
        yield a, b, *zip(rows, columns, strict=True)
