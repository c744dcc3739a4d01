"""Loops over time steps that are unrolled, and how their results are joined.

XLA's CPU backend fuses the elementwise operations of all time steps into the
one that joins their results, and computes there, for each step, those before it
again. The functions here end such chains where that costs more than an array.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mpbn_jax.ops import order

# Time steps that may be computed again from the one before them.
_STEPS = 4
# XLA computes up to so many results where it joins them, and copies more.
JOINED = 8
# Time steps of fewer elements are left as XLA fuses them.
_LEAST = 2**14

Step = Callable[[Any, Any], tuple[Any, Any]]


def applies(inputs: Any, unroll: int | bool) -> bool:
  """Whether a loop over these inputs [T, ...] is unrolled here, on a CPU."""
  steps = jax.tree.leaves(inputs)[0].shape[0]
  return unroll is True and steps > 0 and jax.default_backend() == 'cpu'


def scan(
  step: Step, carry: Any, inputs: Any, *, unroll: int | bool
) -> tuple[Any, Any]:
  """Returns what `jax.lax.scan` does, for steps that are elementwise.

  Unrolled on a CPU, every fourth carry is computed only once, and results lie
  as [B, T, ...], which is what a network reads. Gradients may take longer than
  those of `jax.lax.scan`.

  Args:
    step: (carry, input) -> (carry, result).
    carry: the first one.
    inputs: a tree of arrays [T, ...].
    unroll: as in `jax.lax.scan`.

  Example:
    >>> total = lambda carry, x: (carry + x, carry + x)
    >>> scan(total, jnp.zeros(2), jnp.ones((3, 2)), unroll=True)[1][:, 0]
    Array([1., 2., 3.], dtype=float32)
  """
  if not applies(inputs, unroll):
    return jax.lax.scan(step, carry, inputs, unroll=unroll)
  carry, results = run(step, carry, inputs, computed_once=True)
  return carry, jax.tree.map(lambda *xs: join(xs), *results)


def run(
  step: Step,
  carry: Any,
  inputs: Any,
  *,
  reverse: bool = False,
  computed_once: bool = False,
) -> tuple[Any, list[Any]]:
  """Returns (the last carry, the results in the order of time) of all steps.

  Args:
    step: (carry, input) -> (carry, result).
    carry: the first one.
    inputs: a tree of arrays [T, ...], T > 0.
    reverse: whether the last step is the first one to run.
    computed_once: whether the program computes every fourth carry only once.
      Needless where the carries are among the results.

  Example:
    >>> total = lambda carry, x: (carry + x, carry + x)
    >>> run(total, 0.0, jnp.ones(3))[0]
    Array(3., dtype=float32)
  """
  step = jax.jit(step, inline=True)  # traced once
  other = jax.tree.leaves(inputs)[0]
  count = other.shape[0]
  results = [None] * count
  for number in range(count):
    t = count - 1 - number if reverse else number
    carry, results[t] = step(carry, jax.tree.map(lambda x, t=t: x[t], inputs))
    if computed_once and (number + 1) % _STEPS == 0 and number + 1 < count:
      carry = jax.tree.map(lambda x: _once(x, other), carry)
  return carry, results


def join(results: Sequence[jax.Array], *, in_groups: bool = False) -> jax.Array:
  """Returns results [B, ...] of T time steps as [T, B, ...].

  In memory they lie as [B, T, ...], which is what a network reads; those of
  `jax.lax.scan` lie as [T, B, ...], of which XLA makes a transposed copy.

  Args:
    results: arrays of one shape.
    in_groups: whether more than eight are joined in groups of at most eight, so
      that XLA computes them there. Pays where they are cheap to compute from
      arrays that the program stores in any case.

  Example:
    >>> join([jnp.zeros(2), jnp.ones(2)])
    Array([[0., 0.],
           [1., 1.]], dtype=float32)
  """
  axis = min(results[0].ndim, 1)
  groups = -(-len(results) // JOINED) if in_groups else 1
  if groups == 1 or results[0].size < _LEAST:
    return jnp.stack(results, axis).swapaxes(0, axis)
  size = -(-len(results) // groups)
  joined = [
    _once(jnp.stack(results[start : start + size], axis), results[0])
    for start in range(0, len(results), size)
  ]
  return jnp.concatenate(joined, axis).swapaxes(0, axis)


def _once(x: jax.Array, other: jax.Array) -> jax.Array:
  if x.ndim < 2 or x.size < _LEAST:
    return x
  return order.once(x, other)
