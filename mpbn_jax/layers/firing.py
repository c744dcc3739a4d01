"""The firing predicates of a neuron layer in evaluation, and their scan.

`plain`, `normed` and `folded` make the predicate of `neuron.lif_scan_from` from
the layer's leaves, its v_th and its settings (`ops.recurrence.Recurrence`).
"""

import functools

import jax
import jax.numpy as jnp

from mpbn_jax.neuron import Fire, fire_at, lif_scan_from
from mpbn_jax.ops import unrolled
from mpbn_jax.surrogate import emit, scaled


# A compiled function of its own is traced and lowered once for all layers of a
# shape: ResNet20 is traced in two thirds of the time.
@functools.partial(jax.jit, static_argnums=(0, 1))
def evaluated(settings, fire_of, currents, tau, v_th, leaves, *, start):
  """Returns (spikes, u_res[T]) of neurons whose predicate has no state."""
  return _evaluated(settings, fire_of, currents, tau, v_th, leaves, start)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _evaluated(settings, fire_of, *arrays):
  return _scanned(unrolled.scan, settings, fire_of, *arrays)


# Gradients keep JAX's loop. With `ops.unrolled`, a training step of ResNet20
# with `autodiff` took 1.5 times as long at T = 8.
@_evaluated.defjvp
def _evaluated_jvp(settings, fire_of, arrays, tangents):
  function = functools.partial(_scanned, jax.lax.scan, settings, fire_of)
  return jax.jvp(function, arrays, tangents)


def _scanned(scan, settings, fire_of, currents, tau, v_th, leaves, start):
  (last, _), spikes = lif_scan_from(
    (0.0 if start is None else start, None),
    currents,
    tau=tau,
    fire=fire_of(leaves, v_th, settings),
    v_th=v_th,
    scan=scan,
    **settings.scan,
  )
  return spikes, None if start is None else last


def plain(leaves, v_th, settings) -> Fire:
  """Returns the predicate of neurons without a norm."""
  del leaves
  return fire_at(v_th, **settings.spike)


# Cached, because `evaluated` finds its compiled function by this one.
@functools.cache
def normed(fires, evaluate):
  """Returns the function that makes the predicate of a norm in evaluation."""

  def make(leaves, v_th, settings) -> Fire:
    params, stats = leaves

    def fire(state, u):
      fired = fires(params, {**stats, 'v_th': v_th}, u)
      n = evaluate(params, stats, u)
      return state, _emit(fired, n - v_th, v_th, settings)

    return fire

  return make


def folded(leaves, v_th, settings) -> Fire:
  """Returns the predicate of neurons with a folded norm."""
  threshold, polarity = leaves['threshold'], leaves['polarity']
  gain = leaves['gain']

  def fire(state, u):
    fired = polarity * u > polarity * threshold
    # An infinite threshold has a gain of 0: 0 * inf would be NaN.
    finite = jnp.where(gain == 0, 0.0, threshold)
    return state, _emit(fired, gain * (u - finite), v_th, settings)

  return fire


def _emit(fired, difference, v_th, settings):
  """Returns spikes for a decision and n - v_th."""
  return emit(
    fired,
    scaled(difference, v_th, unit=settings.unit),
    surrogate=settings.surrogate,
    parameter=settings.parameter,
  )
