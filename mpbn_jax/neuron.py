"""Leaky integrate-and-fire dynamics: a single step, and T time steps."""

import functools
import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mpbn_jax.errors import InputError, unknown
from mpbn_jax.surrogate import spike

# (state, u) -> (state, spikes): the predicate that turns a membrane potential
# into a spike. Plain LIF, MPBN in training, MPBN in evaluation and the folded
# network differ only in it. `state` holds what a normalization carries from
# step to step (running statistics).
Fire = Callable[[Any, jax.Array], tuple[Any, jax.Array]]


def _hard(u, spikes, v_th):
  del v_th
  return u * (1 - spikes)


def _soft(u, spikes, v_th):
  return u - v_th * spikes


RESETS: dict[str, Callable] = {'hard': _hard, 'soft': _soft}


def check_reset(reset: str) -> None:
  """Raises InputError unless the reset is a key of `RESETS`."""
  if reset not in RESETS:
    raise unknown('reset', reset, RESETS)


def check_tau(tau: jax.Array | float) -> None:
  """Raises InputError unless tau is a kept fraction in [0, 1)."""
  if isinstance(tau, jax.core.Tracer):  # unknown during tracing
    return
  if not isinstance(tau, (numbers.Real, np.ndarray, jax.Array)):
    raise TypeError(f'tau must be a number, got {tau!r}')
  # A learned tau is a sigmoid, which may round to 1.
  below = np.less_equal if isinstance(tau, jax.Array) else np.less
  if not (np.all(np.less_equal(0, tau)) and np.all(below(tau, 1))):
    raise InputError(
      'tau is the kept fraction of the membrane potential and must lie in '
      f'[0, 1), got {tau}; a time constant of k steps keeps the fraction '
      'exp(-1/k), or 1 - 1/k where the input is divided by k as well'
    )


def fire_at(
  v_th: jax.Array | float = 0.5,
  *,
  surrogate: str = 'rect',
  parameter: float | None = None,
  unit: str = 'one',
) -> Fire:
  """Returns the predicate of plain neurons: fire if u > v_th (Eq. 2)."""
  options: dict[str, Any] = dict(
    surrogate=surrogate, parameter=parameter, unit=unit
  )

  def fire(state, u):
    return state, spike(u, v_th, **options)

  return fire


@jax.custom_jvp
def kept(tau: jax.Array | float, u_res: jax.Array) -> jax.Array:
  """Returns tau * u_res, the membrane potential at the start of a step.

  The product is rounded separately: a compiler may contract a product and the
  following sum into a fused multiply-add, and does so in some programs but not
  in others (jitted, op by op, with constants inside). It does not contract
  through a select, which has no measurable cost in a network.
  """
  return jnp.where(u_res == 0, 0.0, tau * u_res)


@kept.defjvp
def _kept_jvp(primals, tangents):
  # The derivative of the product, also at 0, where neurons were reset.
  (tau, u_res), (tau_dot, u_res_dot) = primals, tangents
  return kept(tau, u_res), tau * u_res_dot + tau_dot * u_res


def lif_step(
  carry: tuple[jax.Array, Any],
  current: jax.Array,
  *,
  tau: jax.Array | float,
  fire: Fire,
  reset: str = 'hard',
  detach_reset: bool = False,
  v_th: jax.Array | float | None = None,
) -> tuple[tuple[jax.Array, Any], jax.Array]:
  """Returns one step of charge, fire and reset (paper, Eq. 1, 2, 7, 8).

      u     = tau * u_res + current          charge
      s     = fire(u)                        fire: on a COPY of the potential
      u_res = u * (1 - s)                    hard reset of the RAW potential
              u - v_th * s                   soft reset

  The only definition of the recurrence in this package. It carries the raw
  membrane potential, never the normalized one: a network that carries the
  normalized potential is a different network, and its fold is not exact.

  Args:
    carry: (u_res [...], state): the potential kept from the last step, and the
      state of `fire`.
    current: [...] input current of this step.
    tau: kept fraction of the membrane potential, in [0, 1).
    fire: (state, u) -> (state, spikes).
    reset: 'hard' (to zero) or 'soft' (by subtraction).
    detach_reset: whether the gradient ignores the spikes in the reset.
    v_th: subtracted from the raw potential by a soft reset.

  Returns:
    ((u_res, state), spikes), as `jax.lax.scan` expects. The arguments are not
    checked; `lif_scan` does that.

  Example:
    >>> start, current = jnp.array([0.4, 0.6]), jnp.array([0.2, 0.3])
    >>> carry = start, None  # firing at a fixed threshold has no state
    >>> (u_res, _), spikes = lif_step(carry, current, tau=0.5, fire=fire_at())
    >>> u_res, spikes
    (Array([0.4, 0. ], dtype=float32), Array([0., 1.], dtype=float32))
  """
  u_res, state = carry
  u = kept(tau, u_res) + current
  state, spikes = fire(state, u)
  reset_spikes = jax.lax.stop_gradient(spikes) if detach_reset else spikes
  return (RESETS[reset](u, reset_spikes, v_th), state), spikes


def lif_scan(
  currents: jax.Array,
  *,
  tau: jax.Array | float = 0.25,
  fire: Fire | None = None,
  state: Any = None,
  reset: str = 'hard',
  detach_reset: bool = False,
  v_th: jax.Array | float | None = None,
  unroll: int | bool = 1,
) -> tuple[jax.Array, Any]:
  """Returns the spikes of a neuron layer over T steps, and the last state.

  Scans `lif_step` with `jax.lax.scan`, starting from u_res[0] = 0;
  `lif_scan_from` starts from any potential.

  Args:
    currents: [T, ...] input currents, time first.
    tau: kept fraction of the membrane potential, in [0, 1).
    fire: (state, u) -> (state, spikes); None fires if u > v_th.
    state: initial state of `fire`; None if it has none.
    reset: 'hard' or 'soft'.
    detach_reset: whether the gradient ignores the spikes in the reset.
    v_th: firing threshold of the default `fire` (None means 0.5) and of the
      soft reset.
    unroll: as in `jax.lax.scan`; True unrolls all T steps.

  Returns:
    (spikes [T, ...], state).

  Raises:
    InputError: tau is outside [0, 1), the reset is unknown, a soft reset has no
      v_th, or the currents have no time step.
    TypeError: the currents are not floating.

  Example:
    >>> spikes, _ = lif_scan(jnp.array([0.4, 0.4, 0.5, 0.4]), tau=0.5)
    >>> spikes
    Array([0., 1., 0., 1.], dtype=float32)
  """
  (_, state), spikes = lif_scan_from(
    (0.0, state),
    currents,
    tau=tau,
    fire=fire,
    reset=reset,
    detach_reset=detach_reset,
    v_th=v_th,
    unroll=unroll,
  )
  return spikes, state


def lif_scan_from(
  carry: tuple[jax.Array | float, Any],
  currents: jax.Array,
  *,
  tau: jax.Array | float = 0.25,
  fire: Fire | None = None,
  reset: str = 'hard',
  detach_reset: bool = False,
  v_th: jax.Array | float | None = None,
  unroll: int | bool = 1,
  scan: Callable[..., Any] = jax.lax.scan,
) -> tuple[tuple[jax.Array, Any], jax.Array]:
  """Returns what `lif_scan` does, from a given potential and state.

  The arguments are those of `lif_scan`. Two calls with a part of the steps each
  equal one call with all of them.

  Args:
    carry: (u_res, state): the potential kept from the step before the first,
      a scalar or broadcastable to one step, and the state of `fire`.
    currents: [T, ...].
    tau: see `lif_scan`, as all others.
    fire: predicate.
    reset: 'hard' or 'soft'.
    detach_reset: whether the gradient ignores the spikes in the reset.
    v_th: firing threshold.
    unroll: as in `jax.lax.scan`.
    scan: the loop, `jax.lax.scan` or a function that returns what it does.

  Returns:
    ((u_res, state) after the last step, spikes [T, ...]).

  Raises:
    InputError: as `lif_scan`, or u_res does not broadcast to one step.

  Example:
    >>> (u_res, _), spikes = lif_scan_from((0.4, None), jnp.array([0.4]))
    >>> u_res, spikes
    (Array(0.5, dtype=float32), Array([0.], dtype=float32))
  """
  if fire is None:
    v_th = 0.5 if v_th is None else v_th
    fire = fire_at(v_th)
  first = _checked_start(currents, carry[0], tau=tau, reset=reset, v_th=v_th)
  step = functools.partial(
    lif_step,
    tau=tau,
    fire=fire,
    reset=reset,
    detach_reset=detach_reset,
    v_th=v_th,
  )
  result: tuple[tuple[jax.Array, Any], jax.Array] = scan(
    step, (first, carry[1]), currents, unroll=unroll
  )
  return result


def _checked_start(currents, u_res, *, tau, reset, v_th):
  """Returns the potential before the first step, broadcast to one step."""
  check_tau(tau)
  check_reset(reset)
  if currents.ndim < 1 or currents.shape[0] < 1:
    raise InputError(
      f'currents must be [T, ...] with T >= 1, got shape {currents.shape}'
    )
  if not jnp.issubdtype(currents.dtype, jnp.floating):
    raise TypeError(
      f'expected currents of a floating dtype, got {currents.dtype}: call '
      'astype(jnp.float32)'
    )
  if reset == 'soft' and v_th is None:
    raise InputError('a soft reset subtracts v_th, got None: pass v_th')
  shape = currents.shape[1:]
  if jnp.broadcast_shapes(jnp.shape(u_res), shape) != shape:
    raise InputError(
      f'expected a potential that broadcasts to one step, {shape}, got shape '
      f'{jnp.shape(u_res)}'
    )
  return jnp.broadcast_to(jnp.asarray(u_res, currents.dtype), shape)


def potentials_of(
  currents: jax.Array,
  spikes: jax.Array,
  *,
  tau: jax.Array | float = 0.25,
  reset: str = 'hard',
  v_th: jax.Array | float | None = None,
  u_res: jax.Array | float = 0.0,
  unroll: int | bool = 1,
) -> jax.Array:
  """Returns the membrane potentials at which neurons fired given spikes.

      u[t] = tau * u_res[t-1] + c[t],  u_res[t] = u[t] * (1 - s[t])

  They follow from currents and spikes alone, whatever decided about the spikes
  (a threshold, MPBN in training or in evaluation), and have the same bits as in
  the network.

  Args:
    currents: [T, ...] input currents, time first.
    spikes: [T, ...] spikes that the neurons fired for these currents.
    tau: kept fraction of the membrane potential, in [0, 1).
    reset: 'hard' or 'soft'.
    v_th: subtracted by a soft reset.
    u_res: potential kept from the step before the first.
    unroll: as in `jax.lax.scan`.

  Returns:
    [T, ...], the potentials after charging and before the reset.

  Raises:
    InputError: the shapes differ, or as `lif_scan_from`.
    TypeError: the currents are not floating.

  Example:
    >>> currents = jnp.array([0.25, 0.5, 0.5])
    >>> spikes, _ = lif_scan(currents, tau=0.5)
    >>> potentials_of(currents, spikes, tau=0.5)
    Array([0.25 , 0.625, 0.5  ], dtype=float32)
  """
  if currents.shape != spikes.shape:
    raise InputError(
      f'expected spikes of the shape of the currents, {currents.shape}, got '
      f'{spikes.shape}'
    )
  u_res = _checked_start(currents, u_res, tau=tau, reset=reset, v_th=v_th)

  def step(u_res, inputs):
    current, fired = inputs
    (u_res, u), _ = lif_step(
      (u_res, None),
      current,
      tau=tau,
      fire=lambda _, u: (u, fired),  # the state is the potential itself
      reset=reset,
      v_th=v_th,
    )
    return u_res, u

  fired = spikes.astype(currents.dtype)
  _, potentials = jax.lax.scan(step, u_res, (currents, fired), unroll=unroll)
  return potentials
