"""Which normalizations are there, and what does each compute and fold into?

Pure functions of arrays. A normalization is an entry of `NORMS`: where it
sits and its functions init, train, evaluate and fold. Flax modules
(`layers.py`) only own the variables; `folding.py` only walks the tree.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mpbn_jax.errors import InputError, unknown

EPS = 1e-5  # added to the variance; PyTorch's and the paper's code's default
MOMENTUM = 0.1  # weight of the NEW value (PyTorch's sense; Flax's is 1 - this)
NONE = 'none'  # the name for 'no normalization at this place'
PLACES = ('current', 'membrane', 'spikes')

Leaves = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Norm:
  """One normalization.

  Attributes:
    place: 'current' (between convolution and neuron), 'membrane' (on a copy
      of the potential, after charging and before firing) or 'spikes'.
    init: (shape) -> (params, stats); shape is the input's without its batch
      axes: [..., C].
    train: (params, stats, x, *, momentum, eps, copies) -> (y, stats). A
      current norm sees x [B, T, ..., C]; a membrane norm sees the potential
      of one step, [B, ..., C], and is called once per step.
    evaluate: (params, stats, x, *, eps) -> y.
    fires: membrane norms only; (params, stats, u, *, v_th, eps) -> bool: does
      the normalized potential exceed v_th, decided exactly.
    fold: membrane: (params, stats, *, v_th, eps) -> {threshold, polarity};
      current: (params, stats, kernel, bias, *, eps) -> (kernel, bias); None
      where nothing can take it in.
    why_not: the reason, where `fold` is None.
  """

  place: str
  init: Callable
  train: Callable
  evaluate: Callable
  fires: Callable | None = None
  fold: Callable | None = None
  why_not: str = ''


# ---- what batch normalizations share


def _init_affine(shape: tuple[int, ...]) -> tuple[Leaves, Leaves]:
  ones, zeros = jnp.ones(shape, jnp.float32), jnp.zeros(shape, jnp.float32)
  return {'scale': ones, 'bias': zeros}, {'mean': zeros, 'var': ones}


def moments(x: jax.Array, *, axes: tuple[int, ...]):
  """Returns mean and biased variance over axes, float32 whatever x is.

  One pass over x: E[x^2] - E[x]^2. Both sums travel between devices together.
  """
  x = x.astype(jnp.float32)
  mean = jnp.mean(x, axes)
  # Rounding can push the difference below zero where x is nearly constant.
  var = jnp.maximum(jnp.mean(jnp.square(x), axes) - jnp.square(mean), 0.0)
  return mean, var


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

  Args:
    stats: {mean, var}, running.
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
  return {
    'mean': keep * stats['mean'] + momentum * mean,
    'var': keep * stats['var'] + momentum * unbiased,
  }


def _scale_and_shift(params, mean, var, x, eps):
  gain = params['scale'] * jax.lax.rsqrt(var + eps)
  y = (x.astype(jnp.float32) - mean) * gain + params['bias']
  return y.astype(x.dtype)


def _evaluate(params, stats, x, *, eps):
  return _scale_and_shift(params, stats['mean'], stats['var'], x, eps)


def _train(params, stats, x, *, momentum, eps, axes, copies=1):
  mean, var = moments(x, axes=axes)
  count = copies * int(np.prod([x.shape[axis] for axis in axes]))
  # The statistics are buffers: no gradient flows into the next step by them.
  stats = jax.lax.stop_gradient(
    advance(stats, mean, var, count=count, momentum=momentum)
  )
  return _scale_and_shift(params, mean, var, x, eps), stats


# ---- bn: after a convolution, one set of statistics for all steps


def _train_all_but_last(params, stats, x, **options):
  return _train(params, stats, x, axes=tuple(range(x.ndim - 1)), **options)


def _fold_into_convolution(params, stats, kernel, bias, *, eps):
  gain = params['scale'] * jax.lax.rsqrt(stats['var'] + eps)
  bias = 0.0 if bias is None else bias
  return kernel * gain, (bias - stats['mean']) * gain + params['bias']


# ---- mpbn: on the membrane potential, statistics of each step


def _train_over_batch(params, stats, u, **options):
  return _train(params, stats, u, axes=(0,), **options)


def _fires(params, stats, u, *, v_th, eps):
  """Returns where MPBN(u) > v_th, exactly the same in every program.

  MPBN(u) > v_th with both sides multiplied by the standard deviation:

      scale * (u - mean) > (v_th - bias) * sqrt(var + eps)

  Every operation in it is correctly rounded by itself (no sum of a product
  that a compiler may contract to a fused multiply-add, no reciprocal square
  root whose last bit depends on vector width or constant folding), so eager,
  jitted, scanned and exported programs decide alike, whatever is fused with
  what. Both sides are monotone in u: there is one float32 number that
  separates firing from not firing, and `_fold_into_threshold` finds it.
  """
  deviation = jnp.sqrt(stats['var'] + eps)
  return params['scale'] * (u - stats['mean']) > (
    (v_th - params['bias']) * deviation
  )


def _ordered_to_float(key: jax.Array) -> jax.Array:
  """Returns the float32 with rank `key` in the order of all float32."""
  bits = key ^ ((key >> 31) & jnp.int32(0x7FFFFFFF))
  return jax.lax.bitcast_convert_type(bits, jnp.float32)


def separating_threshold(fires: Callable, polarity: jax.Array) -> jax.Array:
  """Returns theta with: fires(u) iff polarity * u > polarity * theta.

  Bisection over the ordered bit patterns of float32: 32 evaluations of the
  very predicate that the network evaluates, so the result is exact where a
  closed form is off by some units in the last place.

  Args:
    fires: u -> bool, elementwise, non-decreasing in polarity * u.
    polarity: [...] of +1 and -1.

  Returns:
    [...] float32: the largest polarity * u that does not fire, as a u; -inf
    times polarity where every finite u fires.
  """
  infinity = 0x7F800000
  low = jnp.full(polarity.shape, -infinity - 1, jnp.int32)  # -inf: silent
  high = jnp.full(polarity.shape, infinity, jnp.int32)  # +inf: fires

  def halve(_, bracket):
    low, high = bracket
    middle = (low & high) + ((low ^ high) >> 1)  # floor of the mean, no wrap
    fired = fires(polarity * _ordered_to_float(middle))
    # Once the bracket is closed, middle == low, whose verdict stands.
    fired = fired & (middle != low)
    silent = ~fired & (middle != low)
    return jnp.where(silent, middle, low), jnp.where(fired, middle, high)

  low, _ = jax.lax.fori_loop(0, 33, halve, (low, high))
  return polarity * _ordered_to_float(low)


@jax.jit
def _fold_into_threshold(params, stats, *, v_th, eps):
  """Returns {threshold, polarity} (Eq. 10 and 13 for every sign of the scale).

  scale > 0: fire iff u > theta. scale < 0: the inequality turns round, fire
  iff u < theta. scale = 0: u does not matter; fire always if bias > v_th.
  """
  scale, bias = params['scale'], params['bias']
  polarity = jnp.where(scale < 0, -1.0, 1.0).astype(jnp.float32)
  threshold = separating_threshold(
    lambda u: _fires(params, stats, u, v_th=v_th, eps=eps), polarity
  )
  # Without arithmetic: 0 * inf is NaN.
  constant = jnp.where(bias > v_th, -jnp.inf, jnp.inf)
  threshold = jnp.where(scale == 0, constant, threshold)
  return {'threshold': threshold, 'polarity': polarity}


NORMS: dict[str, Norm] = {
  'bn': Norm(
    place='current',
    init=lambda shape: _init_affine(shape[-1:]),
    train=_train_all_but_last,
    evaluate=_evaluate,
    fold=_fold_into_convolution,
  ),
  # Channel-wise MPBN (paper, Eq. 7): statistics over B, H, W of each step.
  'mpbn_channel': Norm(
    place='membrane',
    init=lambda shape: _init_affine(shape[-1:]),
    train=_train_all_but_last,
    evaluate=_evaluate,
    fires=_fires,
    fold=_fold_into_threshold,
  ),
  # Element-wise MPBN (paper, Sec. 5.2, Eq. 13): statistics over B alone.
  'mpbn_element': Norm(
    place='membrane',
    init=lambda shape: _init_affine(shape),
    train=_train_over_batch,
    evaluate=_evaluate,
    fires=_fires,
    fold=_fold_into_threshold,
  ),
}


def names_at(place: str) -> list[str]:
  """Returns the names that may stand at a place, 'none' among them."""
  return [NONE] + [name for name, norm in NORMS.items() if norm.place == place]


def check_norm(name: str, *, place: str) -> None:
  """Raises InputError unless `name` may stand at `place`."""
  if name not in names_at(place):
    raise unknown(f'normalization of the {place}', name, names_at(place))
