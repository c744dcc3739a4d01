"""Float32 as sums of bfloat16 numbers, which tensor cores multiply."""

import jax
import jax.numpy as jnp
from jax import lax

# bfloat16 has the exponent of float32 and 7 of its 23 stored bits.
_EXPONENT_BITS, _MANTISSA_BITS = 8, 7
_PARTS = 3


def parts(a: jax.Array) -> tuple[jax.Array, ...]:
  """Returns three numbers of bfloat16 whose sum is a.

  The sum is exact unless a part is smaller than float32 can hold (below about
  2**-126). What is infinite or NaN is its first part, and so is what exceeds
  the largest number of bfloat16, as infinity.

  Args:
    a: float32, any shape.

  Example:
    >>> third = jnp.float32(1 / 3)
    >>> [float(part) for part in parts(third)]
    [0.333984375, -0.000652313232421875, 1.2814998626708984e-06]
    >>> sum(float(part) for part in parts(third)) == float(third)
    True
  """
  found = []
  for _ in range(_PARTS):
    # A conversion and its inverse are no rounding: XLA removes such pairs.
    part = lax.reduce_precision(a, _EXPONENT_BITS, _MANTISSA_BITS)
    a = jnp.where(jnp.isfinite(part), a - part, 0)
    found.append(part.astype(jnp.bfloat16))
  return tuple(found)


def pairs(m: int, n: int) -> list[tuple[int, int]]:
  """Returns which parts of two numbers to multiply, smallest products first.

      a * b = sum of a_i * b_j over i + j < 3

  The products that are left out are at most 2**-24 of the result, as is the
  error of a product of float32.

  Args:
    m: number of parts of a: 3, or 1 where a is a number of bfloat16.
    n: number of parts of b.

  Example:
    >>> pairs(1, 3)
    [(0, 2), (0, 1), (0, 0)]
    >>> len(pairs(3, 3))
    6
  """
  found = [(i, j) for i in range(m) for j in range(n) if i + j < _PARTS]
  return sorted(found, key=sum, reverse=True)
