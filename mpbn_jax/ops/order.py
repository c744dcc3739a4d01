"""The order in which a compiled program computes."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

_BITS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}


# Of fewer elements, the program has more operations than memory is saved.
_LARGE = 2**22


def is_large(x: jax.Array) -> bool:
  """Whether copies of x are worth avoiding, which XLA makes on a CPU."""
  return jax.default_backend() == 'cpu' and x.size >= _LARGE


def once(x: jax.Array, other: jax.Array) -> jax.Array:
  """Returns x, for a program that computes it once and then reads it.

  XLA's CPU backend computes what is cheap again in each operation that reads
  it, and keeps what it is computed from until the last of them. Some of the
  elements of x are therefore written to their own place, which XLA does in an
  array: their channel is 0, but XLA cannot know that.

  Args:
    x: [B, ..., C], floating. B may be sharded over a mesh.
    other: a floating array that exists anyway.
  """
  never = jnp.any(_bits(other[(slice(1),) * other.ndim]) | 1 == 0)
  first = x[:, *(slice(1),) * (x.ndim - 1)]
  channel = never.astype(jnp.int32)
  y: jax.Array = lax.dynamic_update_slice_in_dim(x, first, channel, axis=-1)
  return y


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
