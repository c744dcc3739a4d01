"""Spikes: Heaviside step forward, surrogate gradient backward."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mpbn_jax.errors import InputError, unknown


@dataclasses.dataclass(frozen=True)
class Surrogate:
  """A smooth stand-in for the Heaviside step.

  Attributes:
    derivative: (x, parameter) -> the gradient used in the backward pass at
      x = n - v_th, where n is the (normalized) membrane potential.
    primitive: (x, parameter) -> a function whose derivative is `derivative`
      wherever it is smooth. The library never evaluates it; it documents the
      shape, and tests differentiate it.
    parameter: default value of the parameter.
    meaning: what the parameter is, 'width' or 'slope'.
  """

  derivative: Callable[[jax.Array, float], jax.Array]
  primitive: Callable[[jax.Array, float], jax.Array]
  parameter: float
  meaning: str


def _rect(x, width):
  # Eq. 12 includes both ends of the window: 1 on 0 <= n <= 1 for v_th = 0.5.
  return jnp.where(jnp.abs(x) <= width / 2, 1 / width, 0.0)


def _rect_primitive(x, width):
  return jnp.clip(x / width + 0.5, 0, 1)


def _tanh(x, slope):
  peak = slope / (2 * jnp.tanh(slope / 2))
  # 1 - tanh^2 instead of sech^2 avoids overflow for large x.
  inside = peak * (1 - jnp.square(jnp.tanh(slope * x)))
  return jnp.where(jnp.abs(x) <= 0.5, inside, 0.0)


def _tanh_primitive(x, slope):
  x = jnp.clip(x, -0.5, 0.5)
  return 0.5 + jnp.tanh(slope * x) / (2 * jnp.tanh(slope / 2))


def _triangle(x, width):
  return jnp.maximum(0.0, 1 - jnp.abs(x) / width)


def _triangle_primitive(x, width):
  x = jnp.clip(x, -width, width)
  return width / 2 + x - x * jnp.abs(x) / (2 * width)


def _sigmoid(x, slope):
  share = jax.nn.sigmoid(slope * x)
  return slope * share * (1 - share)


def _sigmoid_primitive(x, slope):
  return jax.nn.sigmoid(slope * x)


def _atan(x, slope):
  return slope / 2 / (1 + jnp.square(jnp.pi / 2 * slope * x))


def _atan_primitive(x, slope):
  return jnp.arctan(jnp.pi / 2 * slope * x) / jnp.pi + 0.5


def _piecewise_quadratic(x, slope):
  return slope * jnp.maximum(0.0, 1 - slope * jnp.abs(x))


def _piecewise_quadratic_primitive(x, slope):
  x = jnp.clip(slope * x, -1, 1)
  return 0.5 + x - x * jnp.abs(x) / 2


SURROGATES: dict[str, Surrogate] = {
  # The paper, Eq. 12; 1 / width on a window of `width` around v_th.
  'rect': Surrogate(_rect, _rect_primitive, 1.0, 'width'),
  # What the paper's reference implementation runs (k = 3): unit area on
  # [v_th - 1/2, v_th + 1/2], zero outside.
  'tanh': Surrogate(_tanh, _tanh_primitive, 3.0, 'slope'),
  # Bellec et al. 2018 (1803.09574) with dampening 1: unit PEAK for every width,
  # which is half the base.
  'triangle': Surrogate(_triangle, _triangle_primitive, 1.0, 'width'),
  # The next three have unit AREA; defaults as in SpikingJelly.
  'sigmoid': Surrogate(_sigmoid, _sigmoid_primitive, 4.0, 'slope'),
  'atan': Surrogate(_atan, _atan_primitive, 2.0, 'slope'),
  'piecewise_quadratic': Surrogate(
    _piecewise_quadratic, _piecewise_quadratic_primitive, 1.0, 'slope'
  ),
}


# What the width or slope of a surrogate counts in: potentials, or thresholds.
UNITS = ('one', 'v_th')
_LEAST_UNIT = 0.01  # of a learned threshold, which may fall to 0 and below


def check_unit(unit: str) -> None:
  """Raises InputError unless the unit is one of `UNITS`."""
  if unit not in UNITS:
    raise unknown('surrogate_unit', unit, UNITS)


def scaled(
  difference: jax.Array, v_th: jax.Array | float, *, unit: str
) -> jax.Array:
  """Returns n - v_th in units of a surrogate.

      'one':   x = n - v_th
      'v_th':  x = (n - v_th) / v_th = n / v_th - 1

  In units of v_th, the window of potentials that receive a gradient widens with
  the threshold, so that a threshold that grows does not leave the gradient
  behind: the relative argument of TrSG (Kook et al., WACV 2026, 2511.08708).
  Their neurons also emit spikes of height v_th; these stay 0 and 1.

  A width or slope means something else in each unit: with 'rect' and v_th =
  0.5, a width of 2 in units of v_th is a window of 1 in potentials. The default
  of 1 is then a window of 0.5, with twice the gradient: choose the parameter
  for the first v_th.

  Args:
    difference: [...], n - v_th.
    v_th: the threshold; as a unit it counts at least 0.01.
    unit: one of `UNITS`.
  """
  if unit == 'one':
    return difference
  return difference / jnp.maximum(v_th, _LEAST_UNIT)


def get_surrogate(
  name: str, *, parameter: float | None = None
) -> tuple[Surrogate, float]:
  """Returns the surrogate and its width or slope (the default if None).

  Raises:
    InputError: the name is unknown (lists the known ones), or the parameter is
      not positive.
  """
  if name not in SURROGATES:
    raise unknown('surrogate', name, SURROGATES)
  surrogate = SURROGATES[name]
  if parameter is None:
    parameter = surrogate.parameter
  if not parameter > 0:
    raise InputError(
      f'surrogate_parameter is the {surrogate.meaning} of {name!r} and must '
      f'be positive, got {parameter}; None uses {surrogate.parameter}'
    )
  return surrogate, float(parameter)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _emit(fired, distance, name, parameter):
  del name, parameter
  return fired.astype(distance.dtype)


def _emit_forward(fired, distance, name, parameter):
  return _emit(fired, distance, name, parameter), distance


def _emit_backward(name, parameter, distance, cotangent):
  slope = SURROGATES[name].derivative(distance, parameter)
  return None, (cotangent * slope).astype(distance.dtype)


_emit.defvjp(_emit_forward, _emit_backward)


def emit(
  fired: jax.Array,
  distance: jax.Array,
  *,
  surrogate: str = 'rect',
  parameter: float | None = None,
) -> jax.Array:
  """Returns spikes for a given decision, with a surrogate gradient.

      forward:  s = 1 if fired else 0
      backward: ds/d(distance) = surrogate'(distance)

  Separating the decision from the gradient lets a neuron decide with an
  expression that is exact in float32 (`norm/membrane.py`) and still be
  differentiated as a function of n - v_th.

  Args:
    fired: bool [...], the decision.
    distance: float [...], n - v_th. Only evaluated if a gradient is needed.
    surrogate: a name in `SURROGATES`.
    parameter: width or slope; None uses the surrogate's default.

  Returns:
    [...] of 0 and 1 in `distance.dtype`.

  Raises:
    InputError: the surrogate is unknown, or its parameter is not positive.

  Example:
    >>> u = jnp.array([0.4, 0.6])
    >>> emit(u > 0.5, u - 0.5)
    Array([0., 1.], dtype=float32)
    >>> jax.grad(lambda u: emit(u > 0.5, u - 0.5).sum())(u)
    Array([1., 1.], dtype=float32)
  """
  _, parameter = get_surrogate(surrogate, parameter=parameter)
  return _emit(fired, distance, surrogate, parameter)


def spike(
  n: jax.Array,
  v_th: jax.Array | float = 0.5,
  *,
  surrogate: str = 'rect',
  parameter: float | None = None,
  unit: str = 'one',
) -> jax.Array:
  """Returns the spikes of membrane potentials (paper, Eq. 2 and 12).

      forward:  s = 1 if n > v_th else 0          (strict)
      backward: ds/dn = surrogate'(n - v_th), ds/dv_th = -surrogate'(n - v_th)

  Args:
    n: [...] membrane potential, normalized or not.
    v_th: firing threshold, a scalar or broadcastable to n.
    surrogate: a name in `SURROGATES`.
    parameter: width or slope of the surrogate; None uses its default.
    unit: what they count in, one of `UNITS`, see `scaled`.

  Returns:
    [...] of 0 and 1 in n's dtype.

  Raises:
    InputError: the surrogate or the unit is unknown, or the parameter is not
      positive.

  Example:
    >>> spike(jnp.array([0.2, 0.5, 0.7]))
    Array([0., 0., 1.], dtype=float32)
    >>> jax.grad(lambda n: spike(n).sum())(jnp.array([0.2, 0.5, 1.7]))
    Array([1., 1., 0.], dtype=float32)
  """
  n = jnp.asarray(n)
  check_unit(unit)
  distance = scaled(n - v_th, v_th, unit=unit)
  return emit(n > v_th, distance, surrogate=surrogate, parameter=parameter)
