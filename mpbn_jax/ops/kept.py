"""What the forward pass of a network keeps for its backward pass.

The rest is computed again by `jax.checkpoint`, whose policies save arrays by
their names.
"""

import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from mpbn_jax.errors import unknown

Array = TypeVar('Array')

PRODUCTS, MOMENTS, SPIKES = 'products', 'moments', 'spikes'

# {setting: names of what is kept}; None keeps whatever derivatives read.
KEEP: dict[str, tuple[str, ...] | None] = {
  'all': None,
  # Outputs of convolutions and linear layers; norms, membrane potentials and
  # pooling are computed again.
  'products': (PRODUCTS, MOMENTS, SPIKES),
  # Only bits: every layer is computed once more.
  'spikes': (MOMENTS, SPIKES),
}


def check_keep(keep: str) -> None:
  """Raises InputError unless `keep` is a key of `KEEP`."""
  if keep not in KEEP:
    raise unknown('keep', keep, KEEP)


def policy(keep: str) -> Callable:
  """Returns the policy of `jax.checkpoint` for a key of `KEEP`."""
  names = KEEP[keep]
  if names is None:
    return jax.checkpoint_policies.everything_saveable
  return jax.checkpoint_policies.save_only_these_names(*names)


def named(x: Array, name: str) -> Array:
  """Returns x, with a name for policies. No program changes by it."""
  result: Array = checkpoint_name(x, name)
  return result


@jax.custom_vjp
def as_bits(spikes: jax.Array) -> jax.Array:
  """Returns spikes [B, ...] of 0 and 1, packed into bits and unpacked again.

  The bits are named 'spikes': a policy that saves this name stores one bit per
  spike. Other values than 0 and 1 are not preserved.
  """
  packed = named(pack(spikes), SPIKES)
  return unpack(packed, shape=spikes.shape, dtype=spikes.dtype)


as_bits.defvjp(
  lambda spikes: (as_bits.fun(spikes), None),
  lambda _, cotangent: (cotangent,),
)


def pack(spikes: jax.Array) -> jax.Array:
  """Returns spikes [B, ...] of 0 and 1 as bytes [B, n], eight in each.

  The batch may be sharded over several devices.

  Example:
    >>> pack(jnp.array([[1.0, 0, 0, 0, 0, 0, 0, 1, 1]]))
    Array([[17,  8]], dtype=uint8)
  """
  flat = spikes.reshape(spikes.shape[0], -1).astype(jnp.uint8)
  flat = jnp.pad(flat, ((0, 0), (0, -flat.shape[1] % 8)))
  # Bit i of all bytes is one part of the spikes, so that whole vectors are
  # shifted at once.
  parts = flat.reshape(flat.shape[0], 8, -1)
  return (parts << _shifts()).sum(1, dtype=jnp.uint8)


def unpack(
  packed: jax.Array, *, shape: tuple[int, ...], dtype: jnp.dtype
) -> jax.Array:
  """Returns the spikes [B, ...] that `pack` packed."""
  # A comparison, and not the bytes: XLA's CPU backend leaves the conversion of
  # bytes to the library that sums them, which copies all of them as numbers.
  parts = (packed[:, None] >> _shifts()) & 1 != 0
  flat = parts.reshape(packed.shape[0], -1)[:, : math.prod(shape[1:])]
  return flat.reshape(shape).astype(dtype)


def _shifts():
  return jnp.arange(8, dtype=jnp.uint8)[:, None]
