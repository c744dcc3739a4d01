"""Normalizations between a neuron and the layers that read its spikes.

They normalize the postsynaptic potential [B, T, ..., C], the spikes after the
synaptic filter: a[t] = tau_s * a[t-1] + s[t]. With tau_s = 0 it equals the
spikes.
"""

import jax
import jax.numpy as jnp

from mpbn_jax.errors import InputError
from mpbn_jax.neuron import kept
from mpbn_jax.norm import base, exact, types


def check_tau_s(tau_s: float) -> None:
  """Raises InputError unless tau_s is a kept fraction in [0, 1)."""
  if not 0 <= tau_s < 1:
    raise InputError(
      'tau_s is the kept fraction of the postsynaptic potential and must lie '
      f'in [0, 1), got {tau_s}; 0 disables the filter'
    )


def synaptic_filter(
  spikes: jax.Array, *, tau_s: float, unroll: int | bool = 1
) -> jax.Array:
  """Returns the postsynaptic potential a[t] = tau_s * a[t-1] + s[t], a[0] = 0.

  Args:
    spikes: [B, T, ...].
    tau_s: kept fraction, in [0, 1).
    unroll: as in `jax.lax.scan`.

  Returns:
    [B, T, ...], accumulated in float32 and rounded to the spikes' dtype; the
    spikes themselves if tau_s = 0.

  Raises:
    InputError: tau_s is outside [0, 1).
    TypeError: the spikes are not floating.

  Example:
    >>> synaptic_filter(jnp.array([[1.0, 0.0, 1.0]]), tau_s=0.5)
    Array([[1.  , 0.5 , 1.25]], dtype=float32)
  """
  check_tau_s(tau_s)
  base.check_floating('spikes', spikes)
  if tau_s == 0:
    return spikes
  return synaptic_filter_from(0.0, spikes, tau_s=tau_s, unroll=unroll)[1]


def synaptic_filter_from(
  a: jax.Array | float,
  spikes: jax.Array,
  *,
  tau_s: float,
  unroll: int | bool = 1,
) -> tuple[jax.Array, jax.Array]:
  """Returns (a[T], what `synaptic_filter` returns), from a given a[0].

  Args:
    a: the potential before the first step, a scalar or float32 [B, ...].
    spikes: as in `synaptic_filter`, like the others.
    tau_s: kept fraction.
    unroll: as in `jax.lax.scan`.

  Example:
    >>> synaptic_filter_from(1.25, jnp.array([[0.0]]), tau_s=0.5)
    (Array([0.625], dtype=float32), Array([[0.625]], dtype=float32))
  """
  check_tau_s(tau_s)
  base.check_floating('spikes', spikes)

  def step(a, s):
    a = kept(tau_s, a) + s
    return a, a.astype(s.dtype)

  spikes = jnp.moveaxis(spikes, 1, 0)
  last, filtered = jax.lax.scan(
    step, jnp.full(spikes.shape[1:], a, jnp.float32), spikes, unroll=unroll
  )
  return last, jnp.moveaxis(filtered, 0, 1)


# ---- PSP-BN: scale * a / sqrt(E[a^2] + eps), without centering or bias


def _second_moment(a, axes):
  return jnp.mean(jnp.square(a.astype(jnp.float32)), axes, keepdims=True)


def _over_deviation(params, stats, moment, a):
  gain = params['scale'] * jax.lax.rsqrt(moment + stats['eps'])
  return (a.astype(jnp.float32) * gain).astype(a.dtype)


def _psp_bn_train(params, stats, a, *, momentum):
  running = stats['moment']
  axes = range(a.ndim - 1) if running.ndim == 1 else (0, *range(2, a.ndim - 1))
  axes = tuple(axes)
  if base.count_over(a, axes) < 1:
    raise InputError(
      f'expected at least one potential to average over, got shape {a.shape}: '
      'train with a batch that is not empty'
    )
  moment = _second_moment(a, axes)
  # A raw moment is already unbiased: no factor n / (n - 1).
  moved = (1 - momentum) * running + momentum * moment.reshape(running.shape)
  moved = {**stats, 'moment': jax.lax.stop_gradient(moved)}
  return _over_deviation(params, stats, moment, a), moved


def _psp_bn_evaluate(params, stats, a):
  gain = base.along(_psp_bn_gain(params, stats), a)
  return (a.astype(jnp.float32) * gain).astype(a.dtype)


def _psp_bn_gain(params, stats):
  """Returns the factor of every reader's inputs, [C] or [T, C]."""
  return exact.gain(params['scale'], stats['moment'] + stats['eps'])


def _init_psp_bn(shape, *, eps, num_steps=None):
  scale = jnp.ones(shape[-1:], jnp.float32)
  steps = () if num_steps is None else (num_steps,)
  moment = jnp.ones((*steps, shape[-1]), jnp.float32)
  return {'scale': scale}, {'moment': moment, 'eps': base.constant(eps)}


# Ikegawa et al. 2022 (2203.01544): the second raw moment replaces the variance.
# Ours: the learned scale per channel, and one moment for all steps.
PSP_BN = types.NormAfterFiring(
  init=lambda shape, *, eps, **_: _init_psp_bn(shape, eps=eps),
  train=_psp_bn_train,
  evaluate=_psp_bn_evaluate,
  fold=_psp_bn_gain,
)

# With one moment per step, as the MPBN paper cites it (Sec. 2.2).
PSP_BN_STEP = types.NormAfterFiring(
  init=lambda shape, *, eps, num_steps, **_: _init_psp_bn(
    shape, eps=eps, num_steps=num_steps
  ),
  train=_psp_bn_train,
  evaluate=_psp_bn_evaluate,
  fold=_psp_bn_gain,
  per_time_step='moment',
)


# ---- PSP-LN: the moment over C, H, W of each sample and step


def _psp_ln(params, stats, a):
  moment = _second_moment(a, tuple(range(2, a.ndim)))
  return _over_deviation(params, stats, moment, a)


# Ikegawa et al. 2022 (2203.01544); the learned scale per channel is ours.
PSP_LN = types.NormAfterFiring(
  init=lambda shape, *, eps, **_: (
    {'scale': jnp.ones(shape[-1:], jnp.float32)},
    {'eps': base.constant(eps)},
  ),
  train=lambda params, stats, a, *, momentum: (
    _psp_ln(params, stats, a),
    stats,
  ),
  evaluate=_psp_ln,
  memoryless=True,
  why_not='its statistics are those of each sample and step, not constants',
)


# ---- NeuNorm: s[t] - weight * a[t],
#      a[t] = k0 * a[t-1] + (1 - k0) / C^2 * sum over C of s[t]

_K0 = 0.9


def _neunorm(params, s):
  drive = (1 - _K0) / s.shape[-1] ** 2 * s.astype(jnp.float32)
  a = synaptic_filter(drive.sum(-1, keepdims=True), tau_s=_K0)
  return (s.astype(jnp.float32) - params['weight'] * a).astype(s.dtype)


# Wu et al. 2019 (1809.05793). One weight per channel; theirs may also vary
# across positions. The initial value of 1 is ours.
NEUNORM = types.NormAfterFiring(
  init=lambda shape, **_: ({'weight': jnp.ones(shape[-1:], jnp.float32)}, {}),
  train=lambda params, stats, s, *, momentum: (_neunorm(params, s), stats),
  evaluate=lambda params, stats, s: _neunorm(params, s),
  why_not='it subtracts the activity of all channels and all earlier steps',
)
