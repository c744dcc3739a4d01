"""SpikeInit: what keeps the firing rate and the gradients of layers at first.

Shi and Yu, Training Deep Spiking Neural Networks without Normalization (ICML
2026). Apart from `initializers`, because importing scipy's parts takes time.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import numpy as np
from scipy import optimize, stats

from mpbn_jax.errors import InputError
from mpbn_jax.surrogate import get_surrogate

FIRING_RATE = 0.1  # that layers start with, as in the authors' code


@dataclasses.dataclass(frozen=True)
class SteadyState:
  """Mean and standard deviation of potentials, and how many fire."""

  mean: float
  deviation: float
  rate: float


def steady_state(sigma: float, *, tau: float, v_th: float) -> SteadyState:
  """Returns the potential of a neuron whose currents are from N(0, sigma^2).

  It is taken as normal, with the moments that one step of charge, fire and hard
  reset leaves as they are (their Theorem 4.1):

      m = tau * E[u; u < v_th],  E[u^2] = tau^2 * E[u^2; u < v_th] + sigma^2

  Args:
    sigma: standard deviation of the currents, independent in time.
    tau: kept fraction.
    v_th: firing threshold.
  """
  mean, square = 0.0, sigma**2
  for _ in range(100_000):
    deviation = math.sqrt(square - mean**2)
    level = (v_th - mean) / deviation
    below, density = stats.norm.cdf(level), stats.norm.pdf(level)
    new_mean = tau * (mean * below - deviation * density)
    kept = square * below - deviation * (v_th + mean) * density
    new_square = tau**2 * kept + sigma**2
    change = abs(new_mean - mean) + abs(new_square - square)
    mean, square = new_mean, new_square
    if change < 1e-12 * sigma**2:
      break
  deviation = math.sqrt(square - mean**2)
  rate = stats.norm.sf((v_th - mean) / deviation)
  return SteadyState(mean, deviation, float(rate))


def rate_of_images(sigma: float, *, tau: float, v_th: float) -> float:
  """Returns the firing rate of a layer that reads a static image.

  Its currents, from N(0, sigma^2), are the same at every step: a neuron fires
  every k steps if its current reaches v_th in k steps, but not in k - 1.
  """
  reach = np.cumsum(tau ** np.arange(1000))  # per unit of current
  share = stats.norm.sf(v_th / (sigma * reach))
  return float((np.diff(share, prepend=0.0) / np.arange(1, 1001)).sum())


@functools.lru_cache
def sigmas(*, tau: float, v_th: float) -> tuple[float, float]:
  """Returns the deviations of kernels with which FIRING_RATE goes on.

  Kernels are from N(0, sigma^2 / fan_in). With the first sigma, inputs of this
  rate give spikes of the same rate; with the second, normalized static images.
  """

  def root(rate_of: Callable[..., float]) -> float:
    return optimize.brentq(
      lambda sigma: rate_of(sigma, tau=tau, v_th=v_th) - FIRING_RATE,
      1e-3 * v_th,
      1e3 * v_th,
    )

  def after_spikes(sigma, **neuron):
    return steady_state(sigma * math.sqrt(FIRING_RATE), **neuron).rate

  return root(after_spikes), root(rate_of_images)


@functools.lru_cache
def surrogate_parameter(surrogate: str, *, tau: float, v_th: float) -> float:
  """Returns the width or slope with which gradients keep their size.

      E[surrogate'(u - v_th)^2] = (1 - (1 - p) * tau^2) / sigma^2

  with u of the steady state and p = FIRING_RATE (their Theorem 5.1, where it is
  the slope of a piecewise exponential). In their code it also follows the
  potentials of every channel and example; here it stays.

  Args:
    surrogate: a name in `SURROGATES`.
    tau: kept fraction.
    v_th: firing threshold.

  Raises:
    InputError: no parameter of this surrogate does it.
  """
  entry, _ = get_surrogate(surrogate)
  sigma, _ = sigmas(tau=tau, v_th=v_th)
  state = steady_state(sigma * math.sqrt(FIRING_RATE), tau=tau, v_th=v_th)
  target = (1 - (1 - FIRING_RATE) * tau**2) / sigma**2
  # Fine near the threshold, where narrow surrogates are not 0.
  near = np.geomspace(1e-5, 20, 4000) * state.deviation
  x = np.concatenate([-near[::-1], near])
  density = stats.norm.pdf(v_th + x, state.mean, state.deviation)

  def excess(log):
    with jax.ensure_compile_time_eval():
      slope = np.asarray(entry.derivative(x, math.exp(log)), np.float64)
    return np.trapezoid(slope**2 * density, x) - target

  low, high = math.log(1e-3), math.log(1e3)
  if excess(low) * excess(high) > 0:
    raise InputError(
      f'no {entry.meaning} of the surrogate {surrogate!r} keeps the size of '
      "gradients as kernel_init='spike_init' asks for: choose another "
      'surrogate, or set surrogate_parameter'
    )
  return math.exp(optimize.brentq(excess, low, high))
