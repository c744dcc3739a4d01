"""Types of normalizations, and what batch normalizations share."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mpbn_jax.errors import InputError

EPS = 1e-5  # added to the variance; PyTorch's and the paper's code's default
MOMENTUM = 0.1  # weight of the NEW value (PyTorch's sense; Flax's is 1 - this)
TINY = float(np.finfo(np.float32).tiny)  # the smallest normal number

# Settings that norms compute with. They stand among the running statistics:
# what reads the variables needs no settings, which could be the wrong ones.
CONSTANTS = ('eps', 'v_th', 'gain')

Leaves = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Norm:
  """A normalization: its place and pure functions of arrays.

  Every function gets the norm's parameters and its statistics. The constants
  that it computes with (`CONSTANTS`) are stored among the statistics.

  Attributes:
    init: (shape, **settings) -> (params, stats), with the settings that
      `settings` names; shape is the input's without its batch axes, [..., C].
    train: (params, stats, x, *, momentum) -> (y, stats).
    evaluate: (params, stats, x) -> y.
    fold: see the subclass; None if the norm cannot be folded.
    why_not: the reason, if `fold` is None.
  """

  place: ClassVar[str]  # a key of the configuration is <place>_norm
  settings: ClassVar[tuple[str, ...]]  # what `init` takes

  init: Callable
  train: Callable
  evaluate: Callable
  fold: Callable | None = None
  why_not: str = ''


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormAfterConvolution(Norm):
  """A normalization of the currents [B, T, ..., C] that a convolution returns.

  `init` takes the gain too, which tdBN scales by, and num_steps. `train` takes
  `copies` too, how many equal steps each step stands for, unless the norm has
  parameters per time step. `fold` is (params, stats, kernel, bias) -> {kernel,
  bias} and maybe a factor, with the output channels as the last axis.

  Attributes:
    per_time_step: the parameter or statistic whose first axis is T; '' if the
      norm treats all time steps alike.
  """

  place = 'conv'
  settings = ('eps', 'gain', 'num_steps')

  per_time_step: str = ''


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormBeforeFiring(Norm):
  """A normalization of a copy of the membrane potential.

  It is called once per time step, on potentials [B, ..., C]. `init` takes v_th,
  None if it is learned and stored elsewhere. `fold` is (params, stats) ->
  {threshold, polarity, gain}.

  Attributes:
    fires: (params, stats, u) -> bool: whether the normalized potential exceeds
      stats['v_th'], decided exactly.
  """

  place = 'membrane'
  settings = ('eps', 'v_th')

  fires: Callable


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormAfterFiring(Norm):
  """A normalization of postsynaptic potentials [B, T, ..., C].

  `fold` is (params, stats) -> gain, [C] or [T, C], of the inputs of every layer
  that reads the spikes.

  Attributes:
    per_time_step: as in `NormAfterConvolution`.
  """

  place = 'spike'
  settings = ('eps', 'num_steps')

  per_time_step: str = ''


def init_affine(shape: tuple[int, ...], *, eps: float) -> tuple[Leaves, Leaves]:
  """Returns scale 1, bias 0; mean 0, var 1 and eps."""
  ones, zeros = jnp.ones(shape, jnp.float32), jnp.zeros(shape, jnp.float32)
  stats = {'mean': zeros, 'var': ones, 'eps': constant(eps)}
  return {'scale': ones, 'bias': zeros}, stats


def constant(value: float) -> jax.Array:
  """Returns a setting as a leaf, float32."""
  return jnp.asarray(value, jnp.float32)


def moments(x: jax.Array, *, axes: tuple[int, ...]):
  """Returns mean and biased variance over axes, float32 whatever x is.

      d = x - shift,  mean = shift + E[d],  var = E[d^2] - E[d]^2

  The shift is the mean of a part of x. Without one, E[x^2] - E[x]^2 loses every
  digit where the mean is thousands of deviations from 0. One pass over x:
  both sums travel between devices together.

  Args:
    x: [B, ...], B first, which may lie on several devices.
    axes: that the mean is taken over, 0 among them.
  """
  # Which shift: the running mean costs as little, and is wrong in the first
  # steps; a second pass over all of x, for its mean, costs 4 to 7 % of a
  # training step of convolution, batch norm and MPBN neurons (2 CPU cores,
  # [16, 4, 32, 32, 64]); the mean of one row of the maps costs nothing that
  # could be measured. It is close enough: the mean of one row of n is at most
  # sqrt(n) deviations from the mean of all. Never a part of the batch, which
  # would have to travel between devices.
  axis = max(axes, key=lambda axis: x.shape[axis] * (axis > 0))
  x = x.astype(jnp.float32)
  part = x
  if axis > 0 and x.shape[axis] > 1:
    row = x.shape[axis] // 2
    part = jax.lax.slice_in_dim(x, row, row + 1, axis=axis)
  # No gradient through it: neither result depends on the shift.
  shift = jax.lax.stop_gradient(jnp.mean(part, axes, keepdims=True))
  x = x - shift
  mean = jnp.mean(x, axes)
  # Rounding can push the difference below zero where x is nearly constant.
  var = jnp.maximum(jnp.mean(jnp.square(x), axes) - jnp.square(mean), 0.0)
  return shift.reshape(mean.shape) + mean, var


def check_settings(*, eps: float, momentum: float) -> None:
  """Raises InputError for settings with which statistics mean nothing."""
  if not TINY <= eps < np.inf:
    raise InputError(f'eps must be positive and finite, got {eps}')
  if not 0 < momentum <= 1:
    raise InputError(
      'momentum is the weight of the new value in running statistics and must '
      f'lie in (0, 1], got {momentum}'
    )


def check_floating(what: str, x: jax.Array) -> None:
  """Raises TypeError unless x is floating: others would be cut to integers."""
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise TypeError(
      f'expected {what} of a floating dtype, got {x.dtype}: call '
      'astype(jnp.float32)'
    )


def along(leaf: jax.Array, x: jax.Array) -> jax.Array:
  """Returns [C] or [T, C] with axes of 1, to go with x [B, T, ..., C]."""
  steps = leaf.shape[:-1]
  return leaf.reshape((*steps, *(1,) * (x.ndim - 3), leaf.shape[-1]))


def count_over(x: jax.Array, axes: tuple[int, ...]) -> int:
  """Returns how many values one mean over axes is taken of."""
  return int(np.prod([x.shape[axis] for axis in axes]))


def advance(
  stats: Leaves,
  mean: jax.Array,
  var: jax.Array,
  *,
  count: int,
  momentum: float,
) -> Leaves:
  """Returns running statistics moved towards those of a batch.

      run = (1 - momentum) * run + momentum * batch,
      with the UNBIASED variance, count / (count - 1) * var

  No gradient flows through them: they are buffers.

  Args:
    stats: {mean, var, ...}, running; other leaves stay.
    mean: of the batch.
    var: of the batch, biased.
    count: how many values each mean was taken over.
    momentum: weight of the new value.

  Raises:
    InputError: one value per statistic has no unbiased variance.
  """
  if count < 2:
    raise InputError(
      'a running variance needs at least 2 values per statistic, got '
      f'{count}: train with a larger batch (or larger maps with '
      "'mpbn_channel')"
    )
  unbiased = var * (count / (count - 1))
  keep = 1 - momentum
  moved = {
    'mean': keep * stats['mean'] + momentum * mean,
    'var': keep * stats['var'] + momentum * unbiased,
  }
  return jax.lax.stop_gradient({**stats, **moved})


def exact_gain(scale: jax.Array, variance: jax.Array) -> jax.Array:
  """Returns scale / sqrt(variance), the same number in every program.

  A square root and a quotient are rounded by themselves; `rsqrt`, which the
  compiler would make of the two, has another last bit in another program.
  """
  return scale / jax.lax.optimization_barrier(jnp.sqrt(variance))


def scale_and_shift(params, mean, var, x, *, eps):
  """Returns scale * (x - mean) / sqrt(var + eps) + bias in x's dtype."""
  gain = params['scale'] * jax.lax.rsqrt(var + eps)
  y = (x.astype(jnp.float32) - mean) * gain + params['bias']
  return y.astype(x.dtype)


def evaluate(params, stats, x):
  """Returns x normalized by the running statistics."""
  mean, var, eps = (stats[name] for name in ('mean', 'var', 'eps'))
  return scale_and_shift(params, mean, var, x, eps=eps)


def train(params, stats, x, *, momentum, axes, copies=1):
  """Returns (x normalized by its own statistics, running ones moved)."""
  mean, var = moments(x, axes=axes)
  count = copies * count_over(x, axes)
  stats = advance(stats, mean, var, count=count, momentum=momentum)
  return scale_and_shift(params, mean, var, x, eps=stats['eps']), stats


def train_all_but_last(params, stats, x, **options):
  """Returns `train` with statistics per channel."""
  return train(params, stats, x, axes=tuple(range(x.ndim - 1)), **options)
