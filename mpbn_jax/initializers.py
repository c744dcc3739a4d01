"""Initial kernels: the registry, and those made for networks without norms."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize, stats

from mpbn_jax.errors import InputError, unknown
from mpbn_jax.surrogate import get_surrogate

FIRING_RATE = 0.1  # that SpikeInit starts with, as in its code


@dataclasses.dataclass(frozen=True)
class NormalKernels:
  """An initializer of kernels [..., C_in, C_out]: N(0, variance / fan).

  The same distribution as Flax's `variance_scaling`, drawn on one axis: XLA's
  CPU backend takes 10 to 40 times as long to compile a random generator of four
  axes, 2 to 7 seconds for every shape of a kernel.

  Attributes:
    variance: that of the currents of inputs with a mean square of 1, if fan is
      'in'.
    fan: 'in' (k * k * C_in) or 'out' (k * k * C_out).
    of_images: initializer of the layer that reads the images; None is this one.
    name: its key in `KERNEL_INITS`.
  """

  variance: float
  fan: str
  of_images: 'NormalKernels | None' = None
  name: str = ''

  def __call__(
    self, key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32
  ) -> jax.Array:
    """Returns a kernel of this shape."""
    features = shape[-1] if self.fan == 'out' else shape[-2]
    fan = math.prod(shape[:-2]) * features
    values = jax.random.normal(key, (math.prod(shape),), dtype)
    return values.reshape(shape) * jnp.sqrt(
      jnp.array(self.variance / fan, dtype)
    )


@dataclasses.dataclass(frozen=True)
class Scaled:
  """An initializer times a factor."""

  init: Callable
  factor: float

  def __call__(self, *arguments: Any) -> jax.Array:
    """Returns what `init` returns, times the factor."""
    return self.factor * self.init(*arguments)


def of_images(init: Callable) -> Callable:
  """Returns the initializer of the layer that reads the images."""
  return getattr(init, 'of_images', None) or init


# ---- Micheli et al. 2024 (2410.00580)


def _micheli(*, tau, v_th):
  """N(0, 1 / (fan_in * P(u > v_th))) with u from N(0, 1).

  The currents of a layer then have a variance of 1 if those of the layer before
  it have. The kept potential is left out, as in their analysis.
  """
  del tau
  return NormalKernels(1 / float(stats.norm.sf(v_th)), 'in')


# ---- SpikeInit (Shi and Yu, ICML 2026)


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
def _spike_init_sigmas(tau, v_th):
  """Returns the gains with which a rate of FIRING_RATE goes on."""

  def root(rate_of):
    return optimize.brentq(
      lambda sigma: rate_of(sigma, tau=tau, v_th=v_th) - FIRING_RATE,
      1e-3 * v_th,
      1e3 * v_th,
    )

  def after_spikes(sigma, **neuron):
    return steady_state(sigma * math.sqrt(FIRING_RATE), **neuron).rate

  return root(after_spikes), root(rate_of_images)


def _spike_init(*, tau, v_th):
  """N(0, sigma^2 / fan_in), so that FIRING_RATE of all neurons fire.

  sigma is that with which inputs of this rate give spikes of the same rate. The
  layer that reads the images has another, for normalized images.
  """
  sigma, sigma_of_images = _spike_init_sigmas(tau, v_th)
  return NormalKernels(
    sigma**2, 'in', of_images=NormalKernels(sigma_of_images**2, 'in')
  )


@functools.lru_cache
def spike_init_parameter(surrogate: str, *, tau: float, v_th: float) -> float:
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
  sigma, _ = _spike_init_sigmas(tau, v_th)
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


# ---- The registry: {name: (tau, v_th) -> initializer}

KERNEL_INITS: dict[str, Callable[..., NormalKernels]] = {
  # He et al. 2015 (1502.01852), Eq. 14; what the paper's code runs.
  'fan_out': lambda **_: NormalKernels(2.0, 'out'),
  # The same, Eq. 10: for the forward pass.
  'fan_in': lambda **_: NormalKernels(2.0, 'in'),
  'micheli': _micheli,
  'spike_init': _spike_init,
}


def get_kernel_init(name: str, *, tau: float, v_th: float) -> NormalKernels:
  """Returns an initializer of kernels by name.

  Args:
    name: a key of `KERNEL_INITS`.
    tau: kept fraction of the neurons.
    v_th: their firing threshold.

  Raises:
    InputError: the name is unknown (lists the known ones).
  """
  if name not in KERNEL_INITS:
    raise unknown('kernel_init', name, KERNEL_INITS)
  init = KERNEL_INITS[name](tau=tau, v_th=v_th)
  return dataclasses.replace(init, name=name)


FAN_OUT = get_kernel_init('fan_out', tau=0.25, v_th=0.5)
