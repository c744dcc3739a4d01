"""The order in which a compiled program computes."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

_BITS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}


@jax.custom_vjp
def after(x: jax.Array, others: Sequence[jax.Array]) -> jax.Array:
  """Returns x, for a program that reads it only after computing the others.

  XLA's CPU backend removes `lax.optimization_barrier` before it merges equal
  operations and schedules them. On a CPU, x is therefore combined with a number
  that depends on the others, by an exclusive or. The number is always 0, but
  XLA cannot know that. On other platforms this is a barrier.

  Args:
    x: [...], floating or uint8.
    others: floating arrays; small ones, such as a few elements of large ones.
  """
  if not others:
    return x
  if jax.default_backend() != 'cpu':
    first: jax.Array = lax.optimization_barrier((x, *others))[0]
    return first
  dtype = _BITS[x.dtype.itemsize]
  never = sum(jnp.any(_bits(other) | 1 == 0) for other in others)
  changed = _bits(x) ^ jnp.asarray(never, dtype)
  y: jax.Array = lax.bitcast_convert_type(changed, x.dtype)
  return y


def _bits(x):
  return lax.bitcast_convert_type(x, _BITS[x.dtype.itemsize])


after.defvjp(
  lambda x, others: (after(x, others), others),
  lambda others, cotangent: (cotangent, jax.tree.map(jnp.zeros_like, others)),
)
