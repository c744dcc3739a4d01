"""The recurrence of neurons in training, with a backward pass of its own.

Autodiff of `neuron.lif_scan` stores several arrays for every neuron and time
step. This one stores the membrane potentials beside the spikes, and computes
the rest again.
"""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mpbn_jax.neuron import RESETS, lif_step
from mpbn_jax.norm import base
from mpbn_jax.ops import unrolled
from mpbn_jax.surrogate import SURROGATES, get_surrogate, scaled, spike


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recurrence:
  """The settings of `lif_scan` that are not arrays.

  Attributes:
    norm: normalization of the membrane potential, or None.
    momentum: weight of the new value in running statistics.
    surrogate: a name in `SURROGATES`.
    parameter: its width or slope; None uses its default.
    unit: what these count in, one of `surrogate.UNITS`.
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
  unit: str = 'one'
  reset: str = 'hard'
  detach_reset: bool = False
  unroll: int | bool = 1
  entries: tuple = dataclasses.field(init=False)

  def __post_init__(self):
    entries = SURROGATES[self.surrogate], RESETS[self.reset]
    object.__setattr__(self, 'entries', entries)  # frozen

  @property
  def spike(self) -> dict[str, Any]:
    """The arguments of `surrogate.spike`."""
    return {
      'surrogate': self.surrogate,
      'parameter': self.parameter,
      'unit': self.unit,
    }

  @property
  def scan(self) -> dict[str, Any]:
    """The arguments of `neuron.lif_scan`, without the predicate's."""
    return {
      'reset': self.reset,
      'detach_reset': self.detach_reset,
      'unroll': self.unroll,
    }


# On a CPU, more than eight steps of at most so many elements stay a loop, in a
# smaller program: a training step of ResNet20 with T = 16 takes 1003 in place
# of 1100 MiB and 1.00 [0.98, 1.03] of the time. With twice as many elements, it
# takes 934 MiB and 1.02 [1.00, 1.05] of the time, with four times 879 and 1.12.
_LEAST_UNROLLED = 2**15


def lif_scan(
  recurrence: Recurrence,
  currents: jax.Array,
  tau: jax.Array,
  v_th: jax.Array,
  params: base.Leaves,
  stats: base.Leaves,
  start: jax.Array | None = None,
) -> tuple[jax.Array, base.Leaves, jax.Array | None]:
  """Returns what `neuron.lif_scan_from` returns in training.

  The same spikes, and, on CPU, the same bits of the running statistics.

  Args:
    recurrence: the settings.
    currents: [T, B, ..., C], float32.
    tau: kept fraction of the membrane potential.
    v_th: firing threshold, a scalar or [C].
    params: {scale, bias} of the norm, or {}.
    stats: its running statistics and constants, or {}. They have no gradient.
    start: potential before the first step, a scalar; None is 0. It has no
      gradient.

  Returns:
    (spikes [T, B, ..., C], running statistics after T steps, potential after
    the last step [B, ..., C], which has no gradient; None without a start).
  """
  steps, *shape = currents.shape
  is_small = steps > unrolled.JOINED and math.prod(shape) <= _LEAST_UNROLLED
  if is_small and unrolled.applies(currents, recurrence.unroll):
    # Not 1, which as a key of compiled functions is True.
    recurrence = dataclasses.replace(recurrence, unroll=False)
  return _compiled(recurrence, currents, tau, v_th, params, stats, start)


# A compiled function of its own is traced and lowered once for all layers of a
# shape: 20 % less time before ResNet20 is compiled, and steps as fast.
@partial(jax.jit, static_argnums=0)
def _compiled(*arguments):
  return _lif_scan(*arguments)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _lif_scan(recurrence, currents, tau, v_th, params, stats, start):
  results, _ = _run(recurrence, currents, tau, v_th, params, stats, start)
  return results


def _run(recurrence, currents, tau, v_th, params, stats, start):
  """Returns (results, (spikes, potentials [T, ...], moments of each step))."""
  norm = recurrence.norm

  def fire(stats, u):
    n, moments = u, ()
    if norm is not None:
      moments = norm.moments(stats, u)
      n = norm.normalize(params, moments, u, eps=stats['eps'])
      stats = norm.advance(stats, moments, u, momentum=recurrence.momentum)
    return (stats, u, moments), spike(n, v_th, **recurrence.spike)

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

  first = jnp.full(
    currents.shape[1:], 0 if start is None else start, currents.dtype
  )
  (last, stats), joined, kept = _scan(
    step, (first, stats), currents, unroll=recurrence.unroll
  )
  return (joined, stats, None if start is None else last), kept


def _scan(step, carry, inputs, *, unroll):
  """Returns (the last carry, spikes, all results), as `jax.lax.scan` does.

  The spikes are for the next layer. The results, of which spikes are the first,
  are for the backward pass: of more than eight steps unrolled on a CPU, it then
  reads the spikes of each step as they are, not out of the joined array.
  """
  if not unrolled.applies(inputs, unroll) or len(inputs) <= unrolled.JOINED:
    carry, results = jax.lax.scan(step, carry, inputs, unroll=unroll)
    return carry, results[0], results
  carry, results = unrolled.run(step, carry, inputs)
  spikes = unrolled.join([result[0] for result in results], in_groups=True)
  return carry, spikes, jax.tree.map(lambda *xs: jnp.stack(xs), *results)


def _forward(recurrence, currents, tau, v_th, params, stats, start):
  results, kept = _run(recurrence, currents, tau, v_th, params, stats, start)
  eps = stats.get('eps')
  return results, (*kept, tau, v_th, params, eps, start)


def _backward(recurrence, stored, cotangents):
  spikes, potentials, moments, tau, v_th, params, eps, first = stored
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
    distance, of_distance = jax.vjp(
      lambda n, v_th: scaled(n - v_th, v_th, unit=recurrence.unit), n, v_th
    )
    dn, dv_th_of_spike = of_distance(ds * derivative(distance, parameter))
    dv_th = dv_th + dv_th_of_reset + dv_th_of_spike
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
  (_, (dv_th, dparams)), dcurrents = _scan_back(
    step,
    start,
    (spikes, potentials, moments, cotangents[0]),
    unroll=recurrence.unroll,
  )
  u_res = reset(potentials[:-1], spikes[:-1], v_th)
  dtau = _sum_to(dcurrents[1:] * u_res, tau)
  if first is not None:
    dtau = dtau + _sum_to(dcurrents[0] * first, tau)
  return dcurrents, dtau, dv_th, dparams, None, None


def _scan_back(step, carry, inputs, *, unroll):
  """Returns what `jax.lax.scan` does in reverse."""
  if unroll is not True:
    return jax.lax.scan(step, carry, inputs, reverse=True, unroll=unroll)
  carry, results = unrolled.run(step, carry, inputs, reverse=True)
  return carry, unrolled.join(results)


def _sum_to(x: jax.Array, like: Any) -> jax.Array:
  """Returns the sums of x that have the shape of what broadcast to x."""
  return x.sum(tuple(range(x.ndim - jnp.ndim(like))))


_lif_scan.defvjp(_forward, _backward)
