"""The 2-D convolution and its two gradients, lowered for each platform.

GPU and TPU use `lax.conv_general_dilated` and its transposes, or on a GPU sums
of TF32 products (`ops.split`). XLA's CPU backend misses its fast paths in all
three products; the `cpu*` functions avoid this.
The figures in the comments were measured on 2 cores with JAX 0.10.2, as
multiples of the time of a square matmul with the same FLOPs
(`benchmarks/convolution.py`).
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from mpbn_jax.errors import InputError
from mpbn_jax.ops import split

# Number of output pixels per chunk of the kernel gradient, chosen so that their
# windows stay in the L2 cache (2 MiB per core). 64 channels on 32x32: 3.4 in
# one piece, 2.8 with 16384 pixels, 1.6 with 1024 to 4096, 3 - 7 by `lax.conv`.
_CHUNK_PIXELS = 2048
# XLA hands convolutions of more than 16 channels to YNNPACK, which divides the
# columns of wide maps among the cores, and output channels if there are at
# least this many, but neither rows nor images.
_YNNPACK_CHANNELS = 128
# With fewer FLOPs, the copies cost more than the second core gains.
_WIDE_FLOPS = 3e7
# What jax_default_matmul_precision may be, and what XLA is asked for then.
_PRECISIONS = (
  'default',
  'bfloat16',
  'high',
  'tensorfloat32',
  'highest',
  'float32',
)
_SPLIT = 'TF32_TF32_F32_X3'
_ALGORITHMS = {
  'F32_F32_F32': lax.Precision.HIGHEST,
  'TF32_TF32_F32': lax.Precision.HIGH,
  _SPLIT: lax.Precision.HIGHEST,
}


def convolution(
  x: jax.Array,
  kernel: jax.Array,
  *,
  strides: Sequence[int] = (1, 1),
  padding: Sequence[Sequence[int]] = ((0, 0), (0, 0)),
  groups: int = 1,
) -> jax.Array:
  """Returns the cross-correlation of a batch of maps with a kernel.

  y[n, p, q, o] = sum over a, b, i of
    x_padded[n, p * strides[0] + a, q * strides[1] + b, i] * kernel[a, b, i, o]

  Supports first-order reverse-mode derivatives only: no forward mode and no
  second derivatives. Works under `jit` over a mesh, but not inside `shard_map`.
  bfloat16 accumulates in float32 (on CPU by casting, elsewhere as the platform
  does).

  Products of float32 on a GPU or TPU have the precision that
  `jax.default_matmul_precision` says, as in all of JAX, and of its algorithms
  'F32_F32_F32', 'TF32_TF32_F32' and 'TF32_TF32_F32_X3' (where JAX's own
  convolutions would use less without a word). The last one is for GPUs: it
  computes with 22 bits on tensor cores, in two products of 11 bits where x
  holds spikes alone and in three otherwise (`ops.split`); groups then have all
  24 bits.

  Args:
    x: [N, H, W, C_in], floating. Under `jit`, N may be sharded over a mesh.
    kernel: [kh, kw, C_in / groups, C_out], with the dtype of x.
    strides: strides along H and W, at least 1.
    padding: zeros (before, after) along H and along W.
    groups: number of channel groups: output channels read only the input
      channels of their group. More than one group uses XLA's own operation on
      every platform.

  Returns:
    [N, H', W', C_out], with the dtype of x.

  Raises:
    TypeError: the dtypes differ or are not floating.
    InputError: the shapes, strides or padding are invalid, or JAX is set to
      multiply by another algorithm.

  Example:
    >>> x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 16))
    >>> convolution(x, kernel, strides=(2, 2), padding=((1, 1), (1, 1))).shape
    (2, 4, 4, 16)
  """
  if x.dtype != kernel.dtype or not jnp.issubdtype(x.dtype, jnp.floating):
    raise TypeError(
      'expected x and kernel of one floating dtype, '
      f'got {x.dtype} and {kernel.dtype}'
    )
  if x.ndim != 4 or kernel.ndim != 4 or x.shape[3] != kernel.shape[2] * groups:
    raise InputError(
      'expected x [N, H, W, C_in] and kernel [kh, kw, C_in / groups, C_out], '
      f'got {x.shape} and {kernel.shape} with {groups} groups'
    )
  if kernel.shape[3] % groups:
    raise InputError(
      'expected the same number of output channels in each of '
      f'{groups} groups, got {kernel.shape[3]} in total'
    )
  if not _is_pair(strides, least=1):
    raise InputError(f'expected two strides of at least 1, got {strides!r}')
  if not (
    isinstance(padding, Sequence)
    and len(padding) == 2
    and all(_is_pair(pair, least=0) for pair in padding)
  ):
    raise InputError(
      'expected padding as ((before, after), (before, after)), whole numbers '
      f'of zeros, got {padding!r}'
    )
  padding = tuple(map(tuple, padding))
  padded = tuple(n + sum(p) for n, p in zip(x.shape[1:3], padding, strict=True))
  if kernel.shape[0] > padded[0] or kernel.shape[1] > padded[1]:
    raise InputError(
      f'expected a kernel within the padded map {padded}, '
      f'got {kernel.shape[:2]}; pad more or pool less'
    )
  precision = _precision()
  if groups > 1:
    return plain(x, kernel, tuple(strides), padding, precision, groups)
  splits = _default_precision() == _SPLIT and x.dtype == jnp.float32
  return _convolution(x, kernel, tuple(strides), padding, precision, splits)


def _default_precision():
  return jax.config.jax_default_matmul_precision


def _precision():
  """Returns the precision to ask of XLA; None is JAX's default.

  XLA has algorithms for matmuls alone, and JAX ignores them here.
  """
  name = _default_precision()
  if name is None or name in _PRECISIONS:
    return None
  if name not in _ALGORITHMS:
    raise InputError(
      'expected convolutions by jax_default_matmul_precision of '
      f'{", ".join((*_PRECISIONS, *_ALGORITHMS))}, got {name!r}, which is for '
      'matmuls alone'
    )
  return _ALGORITHMS[name]


def _is_pair(values, *, least):
  return (
    isinstance(values, Sequence)
    and len(values) == 2
    and all(isinstance(v, int) and v >= least for v in values)
  )


# The plain lowering, also the reference in tests.


def plain(x, kernel, strides, padding, precision=None, groups=1):
  """Returns the convolution as XLA's own operation."""
  return lax.conv_general_dilated(
    x,
    kernel,
    strides,
    padding,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=groups,
    precision=precision,
  )


def plain_input_gradient(
  cotangent, x, kernel, strides, padding, precision=None
):
  """Returns the gradient of x that JAX derives from `plain`."""
  static = {'strides': strides, 'padding': padding, 'precision': precision}
  forward = partial(plain, kernel=kernel, **static)
  return jax.linear_transpose(forward, x)(cotangent)[0]


def plain_kernel_gradient(
  cotangent, x, kernel, strides, padding, precision=None
):
  """Returns the gradient of the kernel that JAX derives from `plain`."""
  static = {'strides': strides, 'padding': padding, 'precision': precision}
  forward = partial(plain, x, **static)
  return jax.linear_transpose(forward, kernel)(cotangent)[0]


# The lowering for XLA's CPU backend.


def cpu(x, kernel, strides, padding):
  """Returns the convolution, by XLA's own operation or as one matmul."""
  y = _correlate(_widen(x), _widen(kernel), strides, padding)
  return y.astype(x.dtype)


def cpu_input_gradient(cotangent, x, kernel, strides, padding):
  """Returns the gradient of x as convolutions with the flipped kernel.

  With stride s, inputs offset, offset + s, ... meet only every s-th tap: each
  such phase convolves the cotangent with a part of the kernel, with stride 1,
  and the phases are interleaved. (Dilating the cotangent with zeros, as XLA's
  own transpose does, costs 33 on 4x4 maps.)
  """
  n, height, width, channels = x.shape
  rows, columns = -(-height // strides[0]), -(-width // strides[1])
  cotangent, flipped = _widen(cotangent), _widen(kernel).swapaxes(2, 3)

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


def cpu_kernel_gradient(cotangent, x, kernel, strides, padding):
  """Returns the gradient of the kernel as matmuls over chunks of the batch.

  If N is divisible by the number of devices, each device's share of it becomes
  an axis and is chunked separately. The loop then slices no sharded axis, and
  each device sums its own chunks, with one all-reduce after the loop.
  Otherwise there is a single chunk.
  """
  product = partial(
    _product, size=kernel.shape[:2], strides=strides, padding=padding
  )
  n, devices = x.shape[0], jax.device_count()
  if n % devices:
    return product(x, cotangent).astype(kernel.dtype)
  share = n // devices
  pixels = share * cotangent.shape[1] * cotangent.shape[2]
  count = _nearest_divisor(share, max(1.0, pixels / _CHUNK_PIXELS))
  chunk = share // count

  def summed(x, cotangent):
    def add(i, total):
      return total + product(
        lax.dynamic_slice_in_dim(x, i * chunk, chunk),
        lax.dynamic_slice_in_dim(cotangent, i * chunk, chunk),
      )

    if count == 1:
      return product(x, cotangent)
    return lax.fori_loop(0, count, add, _widen(jnp.zeros_like(kernel)))

  if devices == 1:
    return summed(x, cotangent).astype(kernel.dtype)
  x = x.reshape(devices, share, *x.shape[1:])
  cotangent = cotangent.reshape(devices, share, *cotangent.shape[1:])
  return jax.vmap(summed)(x, cotangent).sum(0).astype(kernel.dtype)


def _widen(x):
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


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
  # XLA's own operation costs 57 if the kernel is larger than the map (3x3 on
  # 2x2); one matmul of all windows costs 1.0. The matmul also wins with few
  # output pixels, where the windows are small compared with the kernel (3x3,
  # stride 2, on 4x4: 0.8 versus 1.6), and if they are about as small as what
  # they become (3 to 16 channels on 32x32: 3.1 versus 5.7). Otherwise, writing
  # the windows costs more than it saves.
  oversize = kh > x.shape[1] or kw > x.shape[2]
  # A program that is exported for any batch size has a symbol in its place,
  # which compares with no number.
  known = isinstance(x.shape[0], int)
  few = known and x.shape[0] * height * width <= c_out
  small = kh * kw * c_in <= 2 * c_out
  if not oversize and kh * kw > 1 and not few and not small:
    if not known:
      return plain(x, kernel, strides, padding)
    flops = 2 * kernel.size * x.shape[0] * height * width
    one_core = c_in > 16 and c_out > 16 and c_out < _YNNPACK_CHANNELS
    if one_core and strides == (1, 1) and flops > _WIDE_FLOPS:
      return _side_by_side(x, kernel, padding, width)
    return plain(x, kernel, strides, padding)
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
  windows = [
    _seen(_seen(x, 1, a, height, strides[0]), 2, b, width, strides[1])
    for a in range(kh)
    for b in range(kw)
  ]
  return jnp.concatenate(windows, axis=3) @ kernel.reshape(-1, c_out)


def _side_by_side(x, kernel, padding, width):
  """Returns the correlation (stride 1) of maps that lie in one wide map.

  The images of a device lie next to each other, with columns of zeros between
  them, so that all cores have columns to compute. 64 channels on 32x32: 1.2 in
  place of 2.0, on 16x16: 1.3 in place of 1.9.
  """
  (n, height, columns, c_in), (low, high) = x.shape, padding[1]
  devices = jax.device_count()
  devices = 1 if n % devices else devices
  share = n // devices
  # The zeros on the right of one image are those on the left of the next.
  step = max(columns + max(low, high), width)
  x = x.reshape(devices, share, height, columns, c_in).swapaxes(1, 2)
  x = jnp.pad(x, ((0, 0),) * 3 + ((0, step - columns), (0, 0)))
  x = x.reshape(devices, height, share * step, c_in)
  # As many columns as there were.
  around = (low, kernel.shape[1] - 1 - low)
  y = plain(x, kernel, (1, 1), (padding[0], around))
  y = y.reshape(devices, y.shape[1], share, step, -1)[..., :width, :]
  return y.swapaxes(1, 2).reshape(n, y.shape[1], width, -1)


def _seen(x, axis, tap, size, stride):
  """Returns the part of a padded x that a kernel tap reads along one axis."""
  return lax.slice_in_dim(x, tap, tap + (size - 1) * stride + 1, stride, axis)


def _nearest_divisor(n, wanted):
  divisors = [d for d in range(1, n + 1) if n % d == 0]
  return min(divisors, key=lambda d: max(d / wanted, wanted / d), default=1)


def _product(x, g, *, size, strides, padding):
  """Returns the sum over one chunk of windows of x times cotangents g.

  The taps along H shift x and those along W shift g, which writes kh + kw
  copies instead of kh * kw: [kh * C_in, pixels] by [pixels, C_out] for each
  column of the kernel.
  """
  # Channels first: a matmul needs its left operand contiguous along the
  # contracted axis; otherwise XLA transposes all windows instead of x.
  x, g = _widen(x).transpose(3, 0, 1, 2), _widen(g)
  x = jnp.pad(x, ((0, 0), (0, 0), padding[0], (0, 0)))
  # Without the barrier, XLA transposes x again for each tap: 10 % slower.
  x = lax.optimization_barrier(x)
  rows = [_seen(x, 2, a, g.shape[1], strides[0]) for a in range(size[0])]
  rows = jnp.concatenate(rows)  # [kh * C_in, N, H', W]
  columns, none = [], (0, 0, 0)
  for tap in range(size[1]):
    # Input offset + s * q meets this tap in output q - late.
    late, offset = divmod(tap - padding[1][0], strides[1])
    left = rows[..., offset :: strides[1]]
    pads = (late, left.shape[3] - late - g.shape[2], 0)
    right = lax.pad(g, jnp.zeros((), g.dtype), (none, none, pads, none))
    left, right = left.reshape(rows.shape[0], -1), right.reshape(-1, g.shape[3])
    columns.append((left @ right).reshape(size[0], -1, g.shape[3]))
  return jnp.stack(columns, axis=1)


# The lowering for GPUs if products are split.


def gpu(x, kernel, strides, padding):
  """Returns the convolution, by two or three of TF32."""
  multiply = partial(_tf32(plain), strides=strides, padding=padding)
  return split.product(multiply, x, kernel, spikes=True)


def gpu_input_gradient(cotangent, x, kernel, strides, padding):
  """Returns the gradient of x, by three of TF32."""

  def multiply(cotangent, kernel):
    gradient = _tf32(plain_input_gradient)
    return gradient(cotangent, x, kernel, strides, padding)

  return split.product(multiply, cotangent, kernel)


def gpu_kernel_gradient(cotangent, x, kernel, strides, padding):
  """Returns the gradient of the kernel, by two or three of TF32."""

  def multiply(x, cotangent):
    gradient = _tf32(plain_kernel_gradient)
    return gradient(cotangent, x, kernel, strides, padding)

  return split.product(multiply, x, cotangent, spikes=True)


def _tf32(product):
  return partial(product, precision=lax.Precision.HIGH)


# The differentiable function.


def _lowered(cpu, gpu, default, strides, padding, precision, splits):
  static = {'strides': strides, 'padding': padding}
  default = partial(default, precision=precision, **static)
  platforms = {'cuda': partial(gpu, **static)} if splits else {}
  return partial(
    lax.platform_dependent,
    cpu=partial(cpu, **static),
    default=default,
    **platforms,
  )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _convolution(x, kernel, *static):
  return _lowered(cpu, gpu, plain, *static)(x, kernel)


def _forward(x, kernel, *static):
  return _convolution(x, kernel, *static), (x, kernel)


def _backward(*arguments):
  *static, operands, cotangent = arguments
  # XLA removes unused products, for example the gradient of the image.
  gradients = (
    (cpu_input_gradient, gpu_input_gradient, plain_input_gradient),
    (cpu_kernel_gradient, gpu_kernel_gradient, plain_kernel_gradient),
  )
  return tuple(
    _lowered(*lowerings, *static)(cotangent, *operands)
    for lowerings in gradients
  )


_convolution.defvjp(_forward, _backward)
