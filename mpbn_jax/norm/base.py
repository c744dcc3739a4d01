"""Batch normalization, and functions that normalizations share."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from mpbn_jax.errors import InputError
from mpbn_jax.norm.exact import TINY
from mpbn_jax.ops import kept, sums

EPS = 1e-5  # added to the variance; PyTorch's and the paper's code's default
MOMENTUM = 0.1  # weight of the NEW value (PyTorch's sense; Flax's is 1 - this)

# Settings that norms compute with. They are stored with the running statistics,
# so that code that reads the variables needs no settings, which could differ.
CONSTANTS = ('eps', 'v_th', 'alpha_v_th')

Leaves = dict[str, jax.Array]


def init_affine(shape: tuple[int, ...], *, eps: float) -> tuple[Leaves, Leaves]:
  """Returns scale 1, bias 0; mean 0, var 1 and eps."""
  ones, zeros = jnp.ones(shape, jnp.float32), jnp.zeros(shape, jnp.float32)
  stats = {'mean': zeros, 'var': ones, 'eps': constant(eps)}
  return {'scale': ones, 'bias': zeros}, stats


def constant(value: float) -> jax.Array:
  """Returns a setting as a leaf, float32."""
  return jnp.asarray(value, jnp.float32)


def moments(
  x: jax.Array, *, axes: tuple[int, ...], near: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
  """Returns the mean and biased variance over axes, always in float32.

  On CPU in two passes over x, elsewhere in one; the results differ in rounding.
  With `near`, one pass gives the variance a relative error of about
  1e-6 * (1 + d^2), if the mean is d standard deviations from `near`.

  Args:
    x: [B, ...]; B may be sharded over several devices.
    axes: reduced axes, including 0.
    near: what `known_mean` returns.

  Returns:
    (mean, variance), x's shape without the axes.

  Example:
    >>> moments(jnp.array([[1.0], [3.0]]), axes=(0,))
    (Array([2.], dtype=float32), Array([1.], dtype=float32))
  """
  x = x.astype(jnp.float32)
  if jax.default_backend() == 'cpu':
    found = _moments_in_two_passes(x, axes)
  else:
    found = _moments_in_one_pass(x, axes, near)
  return kept.named(found, kept.MOMENTS)


def known_mean(stats: Leaves) -> jax.Array | None:
  """Returns a value near the mean that devices know before they communicate.

  It is the running mean, or None where it would save no communication: with one
  device, and on CPU, where the mean itself is communicated first. It may be
  wrong in the first steps, by the distance of the mean from 0; see `moments`.
  """
  if jax.default_backend() == 'cpu' or jax.device_count() == 1:
    return None
  return stats['mean']


def _moments_in_two_passes(x, axes):
  """mean = E[x],  var = E[(x - mean)^2].

  XLA's CPU backend gives sums to a library, which reads them from memory. With
  the barrier, the library subtracts and squares too; otherwise, and in one
  pass, XLA writes x - mean first: 2.5 times as long (two cores, [64, 32, 32,
  64] and [256, 32, 32, 16]).
  """
  mean = jnp.mean(x, axes)
  own = jnp.expand_dims(jax.lax.optimization_barrier(mean), axes)
  return mean, jnp.mean(jnp.square(x - own), axes)


def _moments_in_one_pass(x, axes, near=None):
  """d = x - shift,  mean = shift + E[d],  var = E[d^2] - E[d]^2.

  Without the shift, E[x^2] - E[x]^2 loses all digits if the mean is thousands
  of standard deviations from 0. It is `near` or, without that, the mean of a
  part of x, for which devices must wait. Both sums travel together.
  """
  shift = _mean_of_a_row(x, axes) if near is None else near
  # No gradient through the shift: neither result depends on it.
  shift = jax.lax.stop_gradient(shift)
  x = x - jnp.expand_dims(shift, axes)
  mean = jnp.mean(x, axes)
  # Rounding can make the difference negative if x is nearly constant.
  var = jnp.maximum(jnp.mean(jnp.square(x), axes) - jnp.square(mean), 0.0)
  return shift + mean, var


def _mean_of_a_row(x, axes):
  """Returns the mean over axes of a part of x."""
  # The mean of one of n rows is at most sqrt(n) standard deviations from the
  # mean of all. A part of the batch would need communication between devices,
  # and the running mean is wrong in the first steps.
  axis = max(axes, key=lambda axis: x.shape[axis] * (axis > 0))
  part = x
  if axis > 0 and x.shape[axis] > 1:
    row = x.shape[axis] // 2
    part = jax.lax.slice_in_dim(x, row, row + 1, axis=axis)
  return jnp.mean(part, axes)


def check_settings(*, eps: float, momentum: float) -> None:
  """Raises InputError for settings that make statistics meaningless."""
  if not TINY <= eps < np.inf:
    raise InputError(f'eps must be positive and finite, got {eps}')
  if not 0 < momentum <= 1:
    raise InputError(
      'momentum is the weight of the new value in running statistics and must '
      f'lie in (0, 1], got {momentum}'
    )


def check_floating(what: str, x: jax.Array) -> None:
  """Raises TypeError unless x is floating: results would become integers."""
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise TypeError(
      f'expected {what} of a floating dtype, got {x.dtype}: call '
      'astype(jnp.float32)'
    )


def along(leaf: jax.Array, x: jax.Array) -> jax.Array:
  """Returns a leaf reshaped to broadcast to x.

  Args:
    leaf: [C] or [T, C].
    x: [B, T, ..., C].

  Example:
    >>> along(jnp.ones((4, 3)), jnp.ones((8, 4, 6, 6, 3))).shape
    (4, 1, 1, 3)
  """
  steps = leaf.shape[:-1]
  return leaf.reshape((*steps, *(1,) * (x.ndim - 3), leaf.shape[-1]))


def count_over(x: jax.Array, axes: tuple[int, ...]) -> int:
  """Returns the number of values in one mean over axes."""
  return int(np.prod([x.shape[axis] for axis in axes]))


def advance(
  stats: Leaves,
  mean: jax.Array,
  var: jax.Array,
  *,
  count: int | np.ndarray,
  momentum: float,
) -> Leaves:
  """Returns running statistics updated with those of a batch.

      run = (1 - momentum) * run + momentum * batch,
      with the UNBIASED variance, count / (count - 1) * var

  No gradient flows through them.

  Args:
    stats: running {mean, var, ...}; other leaves are unchanged.
    mean: mean of the batch.
    var: biased variance of the batch.
    count: number of values in each mean; an array if they differ.
    momentum: weight of the new value.

  Raises:
    InputError: the unbiased variance needs more than one value per statistic.
  """
  least = np.min(count)
  if least < 2:
    raise InputError(
      'a running variance needs at least 2 values per statistic, got '
      f'{least}: train with a larger batch (or larger maps with '
      "'mpbn_channel', or fewer stats_groups)"
    )
  unbiased = var * np.float32(count / (count - 1))
  keep = 1 - momentum
  moved = {
    'mean': keep * stats['mean'] + momentum * mean,
    'var': keep * stats['var'] + momentum * unbiased,
  }
  return jax.lax.stop_gradient({**stats, **moved})


def scale_and_shift(params, mean, var, x, *, eps):
  """Returns scale * (x - mean) / sqrt(var + eps) + bias in x's dtype."""
  gain = params['scale'] * jax.lax.rsqrt(var + eps)
  y = (x.astype(jnp.float32) - mean) * gain + params['bias']
  return y.astype(x.dtype)


def evaluate(params, stats, x):
  """Returns x normalized with the running statistics."""
  mean, var, eps = (stats[name] for name in ('mean', 'var', 'eps'))
  return scale_and_shift(params, mean, var, x, eps=eps)


@dataclasses.dataclass(frozen=True)
class BatchNorm:
  """Batch normalization in training: `Norm.train` of the norms made of it.

      y = scale * (x - mean) / sqrt(var + eps) + bias

  Its backward pass stores x and the moments, and no other array of x's size.

  Attributes:
    over_batch: whether each element of a map has its own statistics, those over
      the first axis; otherwise each channel has.

  Example:
    >>> params, stats = init_affine((3,), eps=1e-5)
    >>> x = jnp.ones((8, 6, 6, 3))
    >>> y, stats = BatchNorm()(params, stats, x, momentum=0.1)
    >>> y.shape, stats['mean']
    ((8, 6, 6, 3), Array([0.1, 0.1, 0.1], dtype=float32))
  """

  over_batch: bool = False

  def axes(self, x: jax.Array) -> tuple[int, ...]:
    """Returns the axes over which the statistics of x are taken."""
    return (0,) if self.over_batch else tuple(range(x.ndim - 1))

  def __call__(
    self,
    params: Leaves,
    stats: Leaves,
    x: jax.Array,
    *,
    momentum: float,
    copies: int = 1,
    autodiff: bool = False,
  ) -> tuple[jax.Array, Leaves]:
    """Returns (x normalized with batch statistics, new running statistics).

    Args:
      params: {scale, bias}; other leaves are not read.
      stats: running {mean, var}, eps, and leaves that stay as they are.
      x: [B, ..., C].
      momentum: weight of the new value in running statistics.
      copies: how many equal time steps each step of x represents.
      autodiff: whether JAX derives the backward pass.
    """
    function = _batch_norm.fun if autodiff else _batch_norm
    own = {name: params[name] for name in ('scale', 'bias')}
    near = known_mean(stats)
    y, moments = function(own, x, stats['eps'], near, self.axes(x))
    stats = self.advance(stats, moments, x, momentum=momentum, copies=copies)
    return y, stats

  def advance(self, stats, moments, x, *, momentum, copies=1):
    """Returns the running statistics after a batch with these moments."""
    count = copies * count_over(x, self.axes(x))
    return advance(stats, *moments, count=count, momentum=momentum)

  def moments(self, stats, x):
    """Returns what `normalize` needs of a batch: (mean, biased variance)."""
    return moments(x, axes=self.axes(x), near=known_mean(stats))

  def normalize(self, params, moments, x, *, eps):
    """Returns x normalized with these moments."""
    return scale_and_shift(params, *moments, x, eps=eps)

  def gradients(self, cotangent, x, moments, *, params, eps):
    """Returns the gradients of x and of {scale, bias}."""
    return batch_norm_gradients(
      cotangent, x, moments, scale=params['scale'], eps=eps, axes=self.axes(x)
    )


@dataclasses.dataclass(frozen=True)
class Affine:
  """An affine map per channel, with the methods of `BatchNorm`.

      y = scale * x + bias

  Example:
    >>> params = {'scale': jnp.array([2.0]), 'bias': jnp.array([1.0])}
    >>> y, _ = Affine()(params, {}, jnp.array([[3.0]]), momentum=0.1)
    >>> y
    Array([[7.]], dtype=float32)
  """

  def __call__(
    self, params: Leaves, stats: Leaves, x: jax.Array, *, momentum: float
  ) -> tuple[jax.Array, Leaves]:
    """Returns (scale * x + bias, the statistics as they are)."""
    del momentum
    return self.normalize(params, (), x, eps=None), stats

  def moments(self, stats, x):
    """Returns (), because none are needed."""
    del stats, x
    return ()

  def advance(self, stats, moments, x, *, momentum):
    """Returns the statistics as they are."""
    del moments, x, momentum
    return stats

  def normalize(self, params, moments, x, *, eps):
    """Returns scale * x + bias."""
    del moments, eps
    return (params['scale'] * x + params['bias']).astype(x.dtype)

  def gradients(self, cotangent, x, moments, *, params, eps):
    """Returns the gradients of x and of {scale, bias}."""
    del moments, eps
    axes = tuple(range(x.ndim - 1))
    dx = params['scale'] * cotangent
    dscale, dbias = (cotangent * x).sum(axes), cotangent.sum(axes)
    return dx, {'scale': dscale, 'bias': dbias}


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _batch_norm(params, x, eps, near, axes):
  """Returns (y, (mean, var)); no gradient flows through the moments."""
  mean, var = moments(x, axes=axes, near=near)
  y = scale_and_shift(params, mean, var, x, eps=eps)
  return y, jax.lax.stop_gradient((mean, var))


def _batch_norm_forward(params, x, eps, near, axes):
  y, moments = _batch_norm(params, x, eps, near, axes)
  return (y, moments), (params['scale'], x, eps, moments)


def _batch_norm_backward(axes, stored, cotangents):
  scale, x, eps, moments = stored
  dx, dparams = batch_norm_gradients(
    cotangents[0], x, moments, scale=scale, eps=eps, axes=axes
  )
  return dparams, dx, None, None


_batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


def batch_norm_gradients(
  cotangent: jax.Array,
  x: jax.Array,
  moments: tuple[jax.Array, jax.Array],
  *,
  scale: jax.Array,
  eps: jax.Array,
  axes: tuple[int, ...],
) -> tuple[jax.Array, Leaves]:
  """Returns the gradients of x and of {scale, bias} in batch normalization.

      g = cotangent, d = x - mean, r = 1 / sqrt(var + eps)
      dbias = sum(g),  dscale = r * sum(g * d),
      dx = scale * r * (g - mean(g) - d * r^2 * mean(g * d))

  Args:
    cotangent: gradient of y, [B, ..., C].
    x: [B, ..., C].
    moments: (mean, biased variance) of x over the axes.
    scale: with the shape of the moments.
    eps: added to the variance.
    axes: leading axes of x.
  """
  mean, var = moments
  g, x32 = cotangent.astype(jnp.float32), x.astype(jnp.float32)
  deviation = jax.lax.rsqrt(var + eps)
  # With the barrier, no x - mean is written: see `_moments_in_two_passes`.
  own = jax.lax.optimization_barrier(-mean)
  total, along_x = jnp.sum(g, axes), sums.of_products(g, x32, own, axes)
  count = count_over(x, axes)
  slope = along_x * jnp.square(deviation) / count
  dx = scale * deviation * (g - total / count - (x32 - mean) * slope)
  dparams = {'scale': along_x * deviation, 'bias': total}
  return dx.astype(x.dtype), dparams
