"""The 2-D convolution and its two gradients, lowered for each platform.

A lowering is a module of three functions, `forward`, `input_gradient` and
`kernel_gradient`: `convolution_plain` for GPU and TPU, `convolution_split` for
a GPU that is to split float32 (its kernels are `convolution_kernels`), and
`convolution_cpu`.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from mpbn_jax.errors import InputError
from mpbn_jax.ops import (
  convolution_cpu,
  convolution_kernels,
  convolution_plain,
  convolution_split,
  order,
)

# What jax_default_matmul_precision may be, and what XLA is asked for then.
_PRECISIONS = (
  'default',
  'bfloat16',
  'high',
  'tensorfloat32',
  'highest',
  'float32',
)
_SPLIT = 'BF16_BF16_F32_X6'
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
  'F32_F32_F32', 'TF32_TF32_F32' and 'BF16_BF16_F32_X6' (where JAX's own
  convolutions would use less without a word). The last one is for a GPU: it
  multiplies with 24 bits on tensor cores, in three products of 8 bits where x
  holds spikes alone and in six otherwise (`ops.split`). With groups or several
  devices, on other platforms, and where `convolution_split` says so, it is
  'F32_F32_F32', which has as many bits.

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
    return convolution_plain.forward(
      x, kernel, tuple(strides), padding, precision, groups
    )
  splits = (
    _default_precision() == _SPLIT
    and x.dtype == jnp.float32
    and convolution_kernels.available()
  )
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


# A compiled function of its own is traced and lowered once for all layers of a
# shape. Around `_convolution`, with its derivative, it would make steps slower.
@partial(jax.jit, static_argnums=(0, 1))
def _lowered(product, static, *operands):
  """Returns one of the three products of its operands, for any platform."""
  strides, padding, precision, splits = static

  def of(lowering, **options):
    options |= {'strides': strides, 'padding': padding}
    return partial(getattr(lowering, product), **options)

  platforms = {
    'cpu': of(convolution_cpu),
    'default': of(convolution_plain, precision=precision),
  }
  if splits:
    platforms['cuda'] = of(convolution_split)
  return lax.platform_dependent(*operands, **platforms)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _convolution(x, kernel, *static):
  return _lowered('forward', static, x, kernel)


def _forward(x, kernel, *static):
  return _convolution(x, kernel, *static), (x, kernel)


def _backward(*arguments):
  *static, operands, cotangent = arguments
  if order.is_large(cotangent):
    cotangent = order.once(cotangent, operands[1])
  # XLA removes unused products, for example the gradient of the image.
  return tuple(
    _lowered(product, tuple(static), cotangent, *operands)
    for product in ('input_gradient', 'kernel_gradient')
  )


_convolution.defvjp(_forward, _backward)
