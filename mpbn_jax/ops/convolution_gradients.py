"""Gradients of a convolution's kernel from one chunk of the batch, on a CPU.

Each product returns the sum over windows of x times cotangents g, and what the
next chunk may write into. XLA hands a matmul whose left operand is contiguous
along the contracted axis to YNNPACK, and one of [K, M] by [K, N] to Eigen,
which divides K among the cores. Which is faster depends on the channels; the
figures were measured as in `convolution_cpu`.
"""

import jax.numpy as jnp
from jax import lax

from mpbn_jax.ops import convolution_taps

# Taps times channels of x. Larger windows of x cost more than shifted copies of
# g: 16 to 64 channels, with windows of 144, take 1.1 of the time of `of_rows`.
_SMALL_WINDOWS = 64
# Rows and columns of a matmul, together: from 24 to 24 channels, 3x3, it takes
# 0.8 of the time of `of_rows`, from 32 to 32 as much.
_EIGEN_SIDES = 144
# Strided windows of 3x3 take 0.8 to 1.0 of the time of `of_rows`, 7x7 2.3.
_FEW_TAPS = 9


def best(x, g, kernel, strides):
  """Returns the product with the least time for operands of such shapes."""
  kh, kw, c_in, c_out = kernel.shape
  if convolution_taps.is_better(x, (kh, kw), g.shape[1:]):
    return by_taps
  if kh * kw == 1 or (strides[1] > 1 and kh * kw <= _FEW_TAPS):
    return of_windows_last
  if strides[1] == 1 and kh * c_in + kw * c_out <= _EIGEN_SIDES:
    return of_sides
  if kh * kw * c_in <= _SMALL_WINDOWS and kh * c_in <= c_out:
    return of_windows
  return of_rows


def is_one_tap(kernel) -> bool:
  """Whether windows are pixels, which are multiplied where they lie."""
  return kernel.shape[:2] == (1, 1)


def of_rows(x, g, shifted=None, *, size, strides, padding):
  """Returns the gradient as a matmul for each column of the kernel.

  The taps along H shift x and those along W shift g, which writes kh + kw
  copies instead of kh * kw: [kh * C_in, pixels] by [pixels, C_out] for each
  column.

  Args:
    shifted: what this returned for the chunk before, in whose place it writes.

  Returns:
    The sum, and g as shifted for each column, or None where g itself serves.
  """
  g = widen(g)
  x = _channels_first(x, (padding[0], (0, 0)))
  rows = [seen(x, 2, a, g.shape[1], strides[0]) for a in range(size[0])]
  rows = jnp.concatenate(rows)  # [kh * C_in, N, H', W]
  columns, written = [], []
  for tap in range(size[1]):
    # Input offset + s * q meets this tap in output q - late.
    late, offset = divmod(tap - padding[1][0], strides[1])
    left = rows[..., offset :: strides[1]]
    width = left.shape[3]
    right = None
    if late or width != g.shape[2]:
      right = jnp.zeros((*g.shape[:2], width, g.shape[3]), g.dtype)
      if shifted is not None:
        right = shifted[tap]
      part = g[:, :, max(-late, 0) : max(width - late, 0)]
      start = min(max(late, 0), width - part.shape[2])
      right = lax.dynamic_update_slice_in_dim(right, part, start, axis=2)
    written.append(right)
    left = left.reshape(rows.shape[0], -1)
    right = (g if right is None else right).reshape(-1, g.shape[3])
    columns.append((left @ right).reshape(size[0], -1, g.shape[3]))
  return jnp.stack(columns, axis=1), written


def of_windows(x, g, shifted=None, *, size, strides, padding):
  """Returns the gradient as one matmul with all windows of x.

  Windows of few channels are smaller than shifted copies of g: from 3 to 64
  channels on 32x32, 0.3 of the time of `of_rows` (128 images).
  """
  x, g = _channels_first(x, padding), widen(g)
  left = jnp.concatenate(_windows(x, g, 2, size, strides))
  left = left.reshape(size[0] * size[1] * x.shape[0], -1)
  gradient = left @ g.reshape(-1, g.shape[3])
  return gradient.reshape(*size, x.shape[0], g.shape[3]), shifted


def of_sides(x, g, shifted=None, *, size, strides, padding):
  """Returns the gradient as one matmul of windows along H by those along W.

  x is shifted by the taps along H and g by those along W, as in `of_rows`, but
  nothing is transposed, and all taps are one matmul, [kh * C_in, pixels] by
  [pixels, kw * C_out]. Its stride along W is 1. 16 channels on 32x32: 3.2 in
  place of 4.3 (256 images).
  """
  low, high = padding[1]
  x = jnp.pad(widen(x), ((0, 0), padding[0], (0, 0), (0, 0)))
  rows = [seen(x, 1, a, g.shape[1], strides[0]) for a in range(size[0])]
  # Column i of x meets tap b in column i + low - b of g, which may be outside.
  last = size[1] - 1
  g = widen(g)
  none, around = (0, 0, 0), (last - low, last - high, 0)
  g = lax.pad(g, jnp.zeros((), g.dtype), (none, none, around, none))
  parts = [seen(g, 2, last - b, x.shape[2], 1) for b in range(size[1])]
  c_in, c_out = x.shape[3], g.shape[3]
  gradient = _contracted(jnp.concatenate(rows, 3), jnp.concatenate(parts, 3))
  gradient = gradient.reshape(size[0], c_in, size[1], c_out)
  return gradient.swapaxes(1, 2), shifted


def of_windows_last(x, g, shifted=None, *, size, strides, padding):
  """Returns what `of_windows` does, with the channels last, as they lie.

  With stride 2 on 32x32, 16 to 32 channels: 4.5 in place of 5.4, 64 to 128: 1.8
  in place of 2.2. A kernel of 1x1 copies nothing: from 64 to 128 channels on
  8x8, 2.1 in place of 3.1.
  """
  c_in = x.shape[3]
  x = jnp.pad(widen(x), ((0, 0), *padding, (0, 0)))
  windows = _windows(x, g, 1, size, strides)
  left = jnp.concatenate(windows, 3) if len(windows) > 1 else windows[0]
  gradient = _contracted(left, widen(g))
  return gradient.reshape(*size, c_in, g.shape[3]), shifted


def by_taps(x, g, shifted=None, **static):
  """Returns the gradient of tiny maps, see `convolution_taps`."""
  gradient = convolution_taps.kernel_gradient(widen(g), widen(x), **static)
  return gradient, shifted


def widen(x):
  """Returns x with at least the 24 bits of float32."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def seen(x, axis, tap, size, stride):
  """Returns the part of a padded x that a kernel tap reads along one axis."""
  return lax.slice_in_dim(x, tap, tap + (size - 1) * stride + 1, stride, axis)


def _windows(x, g, axis, size, strides):
  """Returns the parts of x that each tap reads; H is that axis of x."""
  rows = [seen(x, axis, a, g.shape[1], strides[0]) for a in range(size[0])]
  return [
    seen(row, axis + 1, b, g.shape[2], strides[1])
    for row in rows
    for b in range(size[1])
  ]


def _contracted(x, g):
  """Returns the sum over pixels of x [..., M] times g [..., N]."""
  return lax.dot_general(
    x.reshape(-1, x.shape[-1]),
    g.reshape(-1, g.shape[-1]),
    (((0,), (0,)), ((), ())),
  )


def _channels_first(x, padding):
  """Returns x as [C, N, H, W], padded along H and W.

  A matmul of YNNPACK needs its left operand contiguous along the contracted
  axis; otherwise XLA transposes all windows instead of x.
  """
  x = jnp.pad(widen(x).transpose(3, 0, 1, 2), ((0, 0), (0, 0), *padding))
  # Without the barrier, XLA transposes x again for each tap: 10 % slower.
  return lax.optimization_barrier(x)
