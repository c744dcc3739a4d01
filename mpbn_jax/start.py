"""The membrane potential from which neurons start: 0, or a running mean.

With T steps, neurons that start at 0 need the first of them to reach the
potentials that they have later on: currents and spikes of early and late steps
differ in distribution. MP-Init (Kook et al., WACV 2026, 2511.08708) starts
every neuron of a layer at the mean potential that its neurons had after the
last step of earlier batches.
"""

import jax
import jax.numpy as jnp

from mpbn_jax.errors import unknown

# 'zero': u_res[0] = 0. 'mean': u_res[0] is a running mean, one per layer.
STARTS = ('zero', 'mean')


def check_start(start: str) -> None:
  """Raises InputError unless `start` is one of `STARTS`."""
  if start not in STARTS:
    raise unknown('start', start, STARTS)


def advance(
  running: jax.Array,
  u_res: jax.Array,
  spikes: jax.Array,
  *,
  momentum: float,
) -> jax.Array:
  """Returns the running mean of the last potentials after one more batch.

      m = mean of u_res[T] over the neurons that fired in any step
      running = (1 - momentum) * running + momentum * m

  m is 0 if none fired. Neurons that stay silent are left out, because those
  that are inhibited have potentials far below 0. No gradient flows through it.

  Args:
    running: a scalar.
    u_res: [B, ..., C], potentials after the reset of the last step.
    spikes: [T, B, ..., C].
    momentum: weight of the new value.
  """
  fired = (spikes > 0).any(0)
  total = jnp.where(fired, u_res, 0.0).sum()
  mean = total / jnp.maximum(fired.sum(), 1)
  return jax.lax.stop_gradient((1 - momentum) * running + momentum * mean)
