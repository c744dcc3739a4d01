"""The convolution and its gradients, for XLA's CPU backend.

That backend misses its fast paths in all three products. The figures in the
comments were measured on 2 cores with JAX 0.10.2, as multiples of the time of a
square matmul with the same FLOPs (`benchmarks/convolution.py`).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from mpbn_jax.ops import (
  convolution_gradients,
  convolution_plain,
  convolution_taps,
)
from mpbn_jax.ops.convolution_gradients import seen, widen

# Output pixels times input channels per chunk of the kernel gradient: windows
# of a chunk stay in the L2 cache (2 MiB per core). 64 channels on 32x32: 3.4 in
# one piece, 2.8 with 16384 pixels, 1.6 with 1024 to 4096, 3 - 7 by `lax.conv`.
# 16 channels: 15 % less time with 8192 pixels than with 2048.
_CHUNK = 2048 * 64
_LEAST_PIXELS = 2048
# YNNPACK divides the columns of a matmul if there are so many.
_EVEN_COLUMNS = 128
# XLA hands convolutions of more than so many channels, in or out, to YNNPACK.
_EIGEN_CHANNELS = 16
# With fewer FLOPs, the copies cost more than the second core gains.
_WIDE_FLOPS = 3e7


def forward(x, kernel, strides, padding):
  """Returns the convolution, by XLA's own operation or as one matmul."""
  y = _correlate(widen(x), widen(kernel), strides, padding)
  return y.astype(x.dtype)


def input_gradient(cotangent, x, kernel, strides, padding):
  """Returns the gradient of x as convolutions with the flipped kernel.

  With stride s, inputs offset, offset + s, ... meet only every s-th tap: each
  such phase convolves the cotangent with a part of the kernel, with stride 1,
  and the phases are interleaved. (Dilating the cotangent with zeros, as XLA's
  own transpose does, costs 33 on 4x4 maps.)
  """
  n, height, width, channels = x.shape
  rows, columns = -(-height // strides[0]), -(-width // strides[1])
  cotangent, kernel = widen(cotangent), widen(kernel)
  taps = [-(-k // s) for k, s in zip(kernel.shape, strides, strict=False)]
  if convolution_taps.is_better(cotangent, taps, (rows, columns, channels)):
    dx = convolution_taps.input_gradient(cotangent, x, kernel, strides, padding)
    return dx.astype(x.dtype)
  flipped = kernel.swapaxes(2, 3)

  def phase(*offsets):
    part, pads = flipped, []
    for axis, length in enumerate((rows, columns)):
      # Input offset + s * q meets tap first + s * j in output q + shift - j.
      shift, first = divmod(offsets[axis] + padding[axis][0], strides[axis])
      taps = range(kernel.shape[axis])[first :: strides[axis]]
      part = lax.slice_in_dim(part, taps.start, taps.stop, taps.step, axis)
      high = length + shift - cotangent.shape[axis + 1]
      pads.append((len(taps) - 1 - shift, high))
    if part.size == 0:  # the stride skips these inputs
      return jnp.zeros((n, rows, columns, channels), cotangent.dtype)
    return _correlate(cotangent, lax.rev(part, (0, 1)), (1, 1), pads)

  phases = [
    jnp.stack([phase(i, j) for j in range(strides[1])], axis=3)
    for i in range(strides[0])
  ]
  dx = jnp.stack(phases, axis=2).reshape(
    n, rows * strides[0], columns * strides[1], channels
  )
  return dx[:, :height, :width].astype(x.dtype)


def kernel_gradient(cotangent, x, kernel, strides, padding):
  """Returns the gradient of the kernel as matmuls over chunks of the batch.

  If N is divisible by the number of devices, each device's share of it becomes
  an axis and is chunked separately. The loop then slices no sharded axis, and
  each device sums its own chunks, with one all-reduce after the loop.
  Otherwise there is a single chunk.
  """
  product = partial(
    convolution_gradients.best(x, cotangent, kernel, strides),
    size=kernel.shape[:2],
    strides=strides,
    padding=padding,
  )
  n, devices = x.shape[0], jax.device_count()
  if n % devices:
    return product(x, cotangent)[0].astype(kernel.dtype)
  share = n // devices
  pixels = share * cotangent.shape[1] * cotangent.shape[2]
  wanted = max(_LEAST_PIXELS, _CHUNK // max(x.shape[3], 16))
  count = _nearest_divisor(share, max(1.0, pixels / wanted))
  if convolution_gradients.is_one_tap(kernel):
    count = 1  # nothing is copied that should stay in the cache
  chunk = share // count

  def summed(x, cotangent):
    def part(i, shifted=None):
      gradient, shifted = product(
        lax.dynamic_slice_in_dim(x, i * chunk, chunk),
        lax.dynamic_slice_in_dim(cotangent, i * chunk, chunk),
        shifted,
      )
      return gradient, shifted if kernel.shape[3] < _EVEN_COLUMNS else None

    def add(i, carry):
      total, shifted = carry
      gradient, shifted = part(i, shifted)
      return total + gradient, shifted

    if count == 1:
      return product(x, cotangent)[0]
    # The shifted cotangents are carried only to have places of their own. In
    # one and the same place, XLA would run the matmuls one after the other, of
    # which YNNPACK divides 192 rows by 64 columns among two cores as 2 to 1:
    # 64 channels on 32x32 cost 1.8 in place of 1.4. With 128 columns, it is
    # divided evenly, and is faster alone.
    start = jax.tree.map(
      lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(part, 0)
    )
    return lax.fori_loop(0, count, add, start)[0]

  if devices == 1:
    return summed(x, cotangent).astype(kernel.dtype)
  x = x.reshape(devices, share, *x.shape[1:])
  cotangent = cotangent.reshape(devices, share, *cotangent.shape[1:])
  return jax.vmap(summed)(x, cotangent).sum(0).astype(kernel.dtype)


def lies_side_by_side(c_in: int, c_out: int) -> bool:
  """Whether a convolution of so many channels may place images so.

  YNNPACK divides the columns of wide maps among the cores, and blocks of output
  channels, but neither rows nor images: 8x8 maps from 64 to 128 channels are
  one block, on one core. The sizes of the blocks were found by the core time of
  168 pairs of channels.
  """
  block = 64 if c_in > 96 else 128 if c_in > 48 else 256
  ynnpack = c_in >= 8 and max(c_in, c_out) > _EIGEN_CHANNELS
  return ynnpack and c_out <= block * 3 // 2


def _correlate(x, kernel, strides, padding):
  """Returns the cross-correlation; negative padding crops."""
  for axis, (low, high) in enumerate(padding, 1):
    stop = x.shape[axis] + min(high, 0)
    x = lax.slice_in_dim(x, max(-low, 0), stop, axis=axis)
  padding = [(max(low, 0), max(high, 0)) for low, high in padding]
  kh, kw, c_in, c_out = kernel.shape
  height, width = (
    (x.shape[i + 1] + sum(padding[i]) - kernel.shape[i]) // strides[i] + 1
    for i in range(2)
  )
  result = height, width, c_out
  if convolution_taps.is_better(x, (kh, kw), result):
    return convolution_taps.forward(x, kernel, strides, padding, result)
  # One matmul of all windows wins if they are about as small as what they
  # become. Otherwise, writing the windows costs more than it saves.
  group = _neighbors(kernel, strides[1], width)
  reach = (group - 1) * strides[1] + kw
  if kh * kw > 1 and kh * reach * c_in > 2 * group * c_out:
    # A program that is exported for any batch size has a symbol in its place,
    # which compares with no number.
    if not isinstance(x.shape[0], int):
      return convolution_plain.forward(x, kernel, strides, padding)
    flops = 2 * kernel.size * x.shape[0] * height * width
    if lies_side_by_side(c_in, c_out) and flops > _WIDE_FLOPS:
      return _side_by_side(x, kernel, strides, padding, width)
    return convolution_plain.forward(x, kernel, strides, padding)
  return _as_one_matmul(x, kernel, strides, padding, (height, width), group)


def _neighbors(kernel, stride, width):
  """Returns how many neighboring outputs `_as_one_matmul` computes at a time.

  Their channels are at most 64 columns of the matmul, and zeros at most double
  its FLOPs.
  """
  _, kw, _, c_out = kernel.shape

  def is_possible(group):
    whole = width % group == 0 and (group - 1) * stride <= kw
    return kw > 1 and whole and group * c_out <= 64

  return next((g for g in (8, 4, 2) if is_possible(g)), 1)


def _as_one_matmul(x, kernel, strides, padding, sides, group):
  """Returns the correlation as one matmul of all windows.

  Few output channels make a narrow matmul, and few input channels many small
  copies. A window then has the pixels of several neighboring outputs, whose
  channels are its columns: 3 to 16 channels on 32x32 cost 4 in place of 10.
  """
  (height, width), (kh, kw, c_in, c_out) = sides, kernel.shape
  groups, stride = width // group, strides[1]
  step, reach = group * stride, (group - 1) * stride + kw
  # A window has columns of several groups of inputs: of its own, all, and of
  # those behind, the first ones.
  parts = -(-reach // step)
  missing = (groups + parts) * step - x.shape[2] - padding[1][0]
  padding = padding[0], (padding[1][0], max(missing, padding[1][1]))
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
  windows = []
  for a in range(kh):
    rows = seen(x, 1, a, height, strides[0])
    for i in range(parts):
      part = rows[:, :, i * step : (i + groups) * step]
      part = part.reshape(*part.shape[:2], groups, step * c_in)
      windows.append(part[..., : (reach - i * step) * c_in])
  band = [
    jnp.pad(
      kernel, ((0, 0), (o * stride, reach - kw - o * stride), (0, 0), (0, 0))
    )
    for o in range(group)
  ]
  band = jnp.stack(band, axis=3).reshape(-1, group * c_out)
  y = jnp.concatenate(windows, axis=3) @ band
  return y.reshape(x.shape[0], height, width, c_out)


def _side_by_side(x, kernel, strides, padding, width):
  """Returns the correlation of maps that lie in one wide map.

  The images of a device lie next to each other, with columns of zeros between
  them, so that all cores have columns to compute. 64 channels on 32x32: 1.2 in
  place of 2.0, on 16x16: 1.3 in place of 1.9, with stride 2 on 32x32: 1.5 in
  place of 2.4.
  """
  (n, height, columns, c_in), (low, high) = x.shape, padding[1]
  devices = jax.device_count()
  devices = 1 if n % devices else devices
  share, stride = n // devices, strides[1]
  # The zeros on the right of one image are those on the left of the next.
  step = max(-(-(columns + max(low, high)) // stride), width)
  x = x.reshape(devices, share, height, columns, c_in).swapaxes(1, 2)
  x = jnp.pad(x, ((0, 0),) * 3 + ((0, step * stride - columns), (0, 0)))
  x = x.reshape(devices, height, share * step * stride, c_in)
  # `step` columns of the result for each image.
  around = (low, kernel.shape[1] - stride - low)
  y = convolution_plain.forward(x, kernel, strides, (padding[0], around))
  y = y.reshape(devices, y.shape[1], share, step, -1)[..., :width, :]
  return y.swapaxes(1, 2).reshape(n, y.shape[1], width, -1)


def _nearest_divisor(n, wanted):
  divisors = [d for d in range(1, n + 1) if n % d == 0]
  return min(divisors, key=lambda d: max(d / wanted, wanted / d), default=1)
