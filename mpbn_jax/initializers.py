"""Initial kernels: the registry, and those made for networks without norms."""

import dataclasses
import math
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mpbn_jax.errors import unknown


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


def _micheli(*, tau, v_th):
  """N(0, 1 / (fan_in * P(u > v_th))), u from N(0, 1) (Micheli et al. 2024).

  The currents of a layer then have a variance of 1 if those of the layer before
  it have. The kept potential is left out, as in their analysis.
  """
  del tau
  return NormalKernels(1 / statistics.NormalDist().cdf(-v_th), 'in')


def _spike_init(*, tau, v_th):
  """N(0, sigma^2 / fan_in), with which firing rates keep (`spike_init`)."""
  from mpbn_jax import spike_init  # its imports take time

  sigma, sigma_of_images = spike_init.sigmas(tau=tau, v_th=v_th)
  of_images = NormalKernels(sigma_of_images**2, 'in')
  return NormalKernels(sigma**2, 'in', of_images=of_images)


# {name: (tau, v_th) -> initializer}
KERNEL_INITS: dict[str, Callable[..., NormalKernels]] = {
  # He et al. 2015 (1502.01852), Eq. 14; what the paper's code runs.
  'fan_out': lambda **_: NormalKernels(2.0, 'out'),
  # The same, Eq. 10: for the forward pass.
  'fan_in': lambda **_: NormalKernels(2.0, 'in'),
  'micheli': _micheli,  # 2410.00580
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
