"""The recurrence of neurons in training, with a backward pass of its own.

Autodiff of `neuron.lif_scan` stores several arrays for every neuron and time
step. This one stores the membrane potentials beside the spikes, and computes
the rest again.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mpbn_jax.neuron import RESETS, lif_step
from mpbn_jax.norm import base
from mpbn_jax.surrogate import SURROGATES, get_surrogate, spike


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recurrence:
  """The settings of `lif_scan` that are not arrays.

  Attributes:
    norm: normalization of the membrane potential, or None.
    momentum: weight of the new value in running statistics.
    surrogate: a name in `SURROGATES`.
    parameter: its width or slope; None uses its default.
    reset: 'hard' or 'soft'.
    detach_reset: whether the gradient ignores the spikes in the reset.
    unroll: as in `jax.lax.scan`.
    entries: what the two names stand for. Another entry under one of them must
      not find a compiled function of the first.
  """

  norm: base.BatchNorm | base.Affine | None = None
  momentum: float = base.MOMENTUM
  surrogate: str = 'rect'
  parameter: float | None = None
  reset: str = 'hard'
  detach_reset: bool = False
  unroll: int | bool = 1
  entries: tuple = dataclasses.field(init=False)

  def __post_init__(self):
    entries = SURROGATES[self.surrogate], RESETS[self.reset]
    object.__setattr__(self, 'entries', entries)  # frozen

  @property
  def spike(self) -> dict[str, Any]:
    """The arguments of `surrogate.spike` and `surrogate.emit`."""
    return {'surrogate': self.surrogate, 'parameter': self.parameter}


# A compiled function of its own is traced and lowered once for all layers of a
# shape: 20 % less time before ResNet20 is compiled, and steps as fast.
@partial(jax.jit, static_argnums=0)
def lif_scan(
  recurrence: Recurrence,
  currents: jax.Array,
  tau: jax.Array,
  v_th: jax.Array,
  params: base.Leaves,
  stats: base.Leaves,
) -> tuple[jax.Array, base.Leaves]:
  """Returns what `neuron.lif_scan` returns in training.

  The same spikes, and, on CPU, the same bits of the running statistics.

  Args:
    recurrence: the settings.
    currents: [T, B, ..., C], float32.
    tau: kept fraction of the membrane potential.
    v_th: firing threshold, a scalar or [C].
    params: {scale, bias} of the norm, or {}.
    stats: its running statistics and constants, or {}. They have no gradient.

  Returns:
    (spikes [T, B, ..., C], running statistics after T steps).
  """
  return _lif_scan(recurrence, currents, tau, v_th, params, stats)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _lif_scan(recurrence, currents, tau, v_th, params, stats):
  spikes, stats, _ = _run(recurrence, currents, tau, v_th, params, stats)
  return spikes, stats


def _run(recurrence, currents, tau, v_th, params, stats):
  """Returns (spikes, stats, (potentials [T, ...], moments of each step))."""
  norm = recurrence.norm

  def fire(stats, u):
    n, moments = u, ()
    if norm is not None:
      moments = norm.moments(u)
      n = norm.normalize(params, moments, u, eps=stats['eps'])
      stats = norm.advance(stats, moments, u, momentum=recurrence.momentum)
    spikes = spike(
      n,
      v_th,
      surrogate=recurrence.surrogate,
      parameter=recurrence.parameter,
    )
    return (stats, u, moments), spikes

  def step(carry, current):
    (u_res, (stats, u, moments)), spikes = lif_step(
      carry,
      current,
      tau=tau,
      fire=fire,
      reset=recurrence.reset,
      detach_reset=recurrence.detach_reset,
      v_th=v_th,
    )
    return (u_res, stats), (spikes, u, moments)

  start = (jnp.zeros(currents.shape[1:], currents.dtype), stats)
  (_, stats), (spikes, *kept) = jax.lax.scan(
    step, start, currents, unroll=recurrence.unroll
  )
  return spikes, stats, kept


def _forward(recurrence, currents, tau, v_th, params, stats):
  spikes, new, kept = _run(recurrence, currents, tau, v_th, params, stats)
  return (spikes, new), (spikes, *kept, tau, v_th, params, stats.get('eps'))


def _backward(recurrence, stored, cotangents):
  spikes, potentials, moments, tau, v_th, params, eps = stored
  norm, reset = recurrence.norm, RESETS[recurrence.reset]
  _, parameter = get_surrogate(
    recurrence.surrogate, parameter=recurrence.parameter
  )
  derivative = SURROGATES[recurrence.surrogate].derivative

  def step(carry, inputs):
    """Goes from the gradient of u_res after a step to the one before it."""
    du_res, (dv_th, dparams) = carry
    s, u, moments, ds = inputs
    # u_res = reset(u, s, v_th)
    _, of_reset = jax.vjp(reset, u, s, v_th)
    du, ds_of_reset, dv_th_of_reset = of_reset(du_res)
    if not recurrence.detach_reset:
      ds = ds + ds_of_reset
    # s = spike(n, v_th)
    n = u
    if norm is not None:
      n = norm.normalize(params, moments, u, eps=eps)
    dn = ds * derivative(n - v_th, parameter)
    dv_th = dv_th + dv_th_of_reset - _sum_to(dn, v_th)
    # n = norm(u)
    if norm is None:
      du = du + dn
    else:
      through_norm, more = norm.gradients(
        dn, u, moments, params=params, eps=eps
      )
      du = du + through_norm
      dparams = jax.tree.map(jnp.add, dparams, more)
    # u = tau * u_res + current
    return (tau * du, (dv_th, dparams)), du

  start = (
    jnp.zeros_like(potentials[0]),
    jax.tree.map(jnp.zeros_like, (v_th, params)),
  )
  (_, (dv_th, dparams)), dcurrents = jax.lax.scan(
    step,
    start,
    (spikes, potentials, moments, cotangents[0]),
    reverse=True,
    unroll=recurrence.unroll,
  )
  u_res = reset(potentials[:-1], spikes[:-1], v_th)
  dtau = _sum_to(dcurrents[1:] * u_res, tau)
  return dcurrents, dtau, dv_th, dparams, None


def _sum_to(x: jax.Array, like: Any) -> jax.Array:
  """Returns the sums of x that have the shape of what broadcast to x."""
  return x.sum(tuple(range(x.ndim - jnp.ndim(like))))


_lif_scan.defvjp(_forward, _backward)
