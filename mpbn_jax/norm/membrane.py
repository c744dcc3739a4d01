"""Norms before firing: MPBN and an affine map, with their exact thresholds."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mpbn_jax.norm import base, exact, types

LARGEST = float(np.finfo(np.float32).max)


def _init(shape, *, eps, v_th):
  params, stats = base.init_affine(shape, eps=eps)
  if v_th is not None:
    stats = {**stats, 'v_th': base.constant(v_th)}
  return params, stats


def _comparison(params, stats):
  """Returns (scale, mean, level): fire iff scale * (u - mean) > level.

  All are per channel. With a scale of 0, a neuron always or never fires,
  whatever u is: the level is then -inf or +inf (0 * u would be NaN for an
  infinite u).
  """
  deviation = exact.square_root(stats['var'] + stats['eps'])
  margin = exact.normal(
    exact.normal(stats['v_th']) - exact.normal(params['bias'])
  )
  level = exact.normal(margin * deviation)
  scale = exact.normal(params['scale'])
  constant = scale == 0
  always_or_never = jnp.where(level < 0, -jnp.inf, jnp.inf)
  return (
    jnp.where(constant, 1.0, scale),
    jnp.where(constant, 0.0, stats['mean']),
    jnp.where(constant, always_or_never, level),
  )


def _fires(params, stats, u):
  """Returns whether MPBN(u) > v_th, identically in every program.

  MPBN(u) > v_th with both sides multiplied by the standard deviation:

      scale * (u - mean) > (v_th - bias) * sqrt(var + eps)

  Each operation is correctly rounded on its own (no sum of a product that a
  compiler may contract into a fused multiply-add, no reciprocal square root
  whose last bit depends on vector width or constant folding), so eager, jitted,
  scanned and exported programs decide alike, on every platform, however
  operations are fused. The left side is monotone in u: a single float32 number
  separates firing from not firing, and `_fold_into_threshold` finds it.
  """
  scale, mean, level = _comparison(params, stats)
  return scale * (u - mean) > level


def _ordered_to_float(key: jax.Array) -> jax.Array:
  """Returns the float32 with rank `key` among all float32 numbers."""
  bits = key ^ ((key >> 31) & jnp.int32(0x7FFFFFFF))
  return jax.lax.bitcast_convert_type(bits, jnp.float32)


def separating_threshold(fires: Callable, polarity: jax.Array) -> jax.Array:
  """Returns theta such that fires(u) iff polarity * u > polarity * theta.

  Bisects the ordered bit patterns of float32 with 33 evaluations of the very
  predicate that the network evaluates. The result is exact, whereas a closed
  form is off by a few units in the last place.

  Args:
    fires: u -> bool, elementwise, non-decreasing in polarity * u, false at
      -inf * polarity.
    polarity: [...] of +1 and -1.

  Returns:
    [...] float32: the u with the largest polarity * u that does not fire.
    polarity * theta is -inf if every u above -inf * polarity fires, and +inf if
    no u fires, not even an infinite one.

  Example:
    >>> separating_threshold(lambda u: u > 0.5, jnp.array([1.0]))
    Array([0.5], dtype=float32)
    >>> separating_threshold(lambda u: 2 * u < -1.0, jnp.array([-1.0]))
    Array([-0.5], dtype=float32)
  """
  infinity = 0x7F800000
  low = jnp.full(polarity.shape, -infinity - 1, jnp.int32)  # -inf: silent
  # The number after +inf, which is never evaluated.
  high = jnp.full(polarity.shape, infinity + 1, jnp.int32)

  def halve(_, bracket):
    low, high = bracket
    middle = (low & high) + ((low ^ high) >> 1)  # floor of the mean, no wrap
    fired = fires(polarity * _ordered_to_float(middle))
    # Once the bracket is closed, middle == low, which is known not to fire.
    fired = fired & (middle != low)
    silent = ~fired & (middle != low)
    return jnp.where(silent, middle, low), jnp.where(fired, middle, high)

  low, _ = jax.lax.fori_loop(0, 33, halve, (low, high))
  return polarity * _ordered_to_float(low)


def _thresholds(fires, scale, gain):
  """Returns {threshold, polarity, gain} (Eq. 10, 13 for every sign of scale).

  scale > 0: fire iff u > theta. scale < 0: negative polarity, fire iff
  u < theta. scale = 0: u does not matter; theta is -inf or +inf. The gain is
  the derivative of the norm, or 0 if theta is infinite, where u - theta would
  not be finite.
  """
  polarity = jnp.where(scale < 0, -1.0, 1.0).astype(jnp.float32)
  threshold = separating_threshold(fires, polarity)
  constant = jnp.abs(threshold) >= LARGEST
  return {
    'threshold': threshold,
    'polarity': polarity,
    'gain': jnp.where(constant, 0.0, gain),
  }


@jax.jit
def _fold_into_threshold(params, stats):
  scale, _, _ = _comparison(params, stats)
  gain = exact.gain(params['scale'], stats['var'] + stats['eps'])
  return _thresholds(lambda u: _fires(params, stats, u), scale, gain)


def _init_affine(shape, *, eps, v_th):
  # eps is not used, but says over how many blocks the norm is stacked.
  params, stats = _init(shape[-1:], eps=eps, v_th=v_th)
  return params, {k: v for k, v in stats.items() if k in base.CONSTANTS}


def _evaluate_affine(params, stats, u):
  del stats
  return base.Affine().normalize(params, (), u, eps=None)


def _affine_comparison(params, stats):
  """Returns (scale, level): fire iff scale * u > level; see `_comparison`."""
  level = exact.normal(
    exact.normal(stats['v_th']) - exact.normal(params['bias'])
  )
  scale = exact.normal(params['scale'])
  constant = scale == 0
  always_or_never = jnp.where(level < 0, -jnp.inf, jnp.inf)
  return (
    jnp.where(constant, 1.0, scale),
    jnp.where(constant, always_or_never, level),
  )


def _affine_fires(params, stats, u):
  """Returns whether scale * u + bias > v_th, identically in every program."""
  scale, level = _affine_comparison(params, stats)
  return scale * u > level


@jax.jit
def _fold_affine(params, stats):
  scale, _ = _affine_comparison(params, stats)
  gain = exact.normal(params['scale'])
  return _thresholds(lambda u: _affine_fires(params, stats, u), scale, gain)


# Channel-wise (paper, Eq. 7): statistics over B, H, W at each step.
MPBN_CHANNEL = types.NormBeforeFiring(
  init=lambda shape, **settings: _init(shape[-1:], **settings),
  train=base.BatchNorm(),
  custom_backward=True,
  evaluate=base.evaluate,
  fires=_fires,
  fold=_fold_into_threshold,
)

# Element-wise (paper, Sec. 5.2, Eq. 13): statistics over B alone.
MPBN_ELEMENT = types.NormBeforeFiring(
  init=_init,
  train=base.BatchNorm(over_batch=True),
  custom_backward=True,
  evaluate=base.evaluate,
  fires=_fires,
  fold=_fold_into_threshold,
)

# scale * u + bias per channel, without statistics: the neuron of SpikeInit
# (ICML 2026), and what of MPBN is left without the normalization.
AFFINE = types.NormBeforeFiring(
  init=_init_affine,
  train=base.Affine(),
  evaluate=_evaluate_affine,
  fires=_affine_fires,
  fold=_fold_affine,
)
