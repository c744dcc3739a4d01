"""Products of float32 as sums of TF32 products, which tensor cores compute."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

# TF32 has the exponent of float32 and 10 of its 23 stored bits.
_EXPONENT_BITS, _MANTISSA_BITS = 8, 10

Product = Callable[[jax.Array, jax.Array], jax.Array]


def parts(a: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns two numbers of TF32 whose sum is a, to one unit in its last place.

  Spikes are their first part, and so are averages of 2**k spikes. What is
  infinite or NaN is its first part, too.

  Args:
    a: float32, any shape.

  Example:
    >>> high, low = parts(jnp.float32(1 / 3))
    >>> float(high), abs(float(high + low - jnp.float32(1 / 3))) < 1e-7
    (0.333251953125, True)
  """
  high = _rounded(a)
  return high, _rounded(jnp.where(jnp.isfinite(high), a - high, 0))


def product(
  multiply: Product, a: jax.Array, b: jax.Array, *, spikes: bool = False
) -> jax.Array:
  """Returns a product of float32 from two or three products of TF32.

      a * b = a1 * b1 + a1 * b2 + a2 * b1,    with a = a1 + a2, b = b1 + b2

  The product that is left out, a2 * b2, is 2**-22 of the result. Sums are those
  of float32.

  Args:
    multiply: a bilinear function of float32 that may round its operands to
      TF32, for example a convolution.
    a: float32.
    b: float32.
    spikes: whether a may hold nothing but spikes. If it does, which is looked
      up whenever the program runs, a2 is 0, and a1 * b1 + a1 * b2 is all.

  Returns:
    multiply(a, b), with the relative error of products of about 22 bits;
    float32 has 24, and TF32 11.

  Example:
    >>> a, b = jnp.float32([[1, 0]]), jnp.float32([[0.2], [0.3]])
    >>> product(jnp.matmul, a, b, spikes=True).round(6)
    Array([[0.2]], dtype=float32)
  """
  a1, a2 = parts(a)
  b1, b2 = parts(b)

  def of_spikes():
    return multiply(a1, b2) + multiply(a1, b1)

  def of_numbers():
    return (multiply(a1, b2) + multiply(a2, b1)) + multiply(a1, b1)

  if not spikes:
    return of_numbers()
  return lax.cond(jnp.any(a2 != 0), of_numbers, of_spikes)


def _rounded(a):
  # A conversion and its inverse are no rounding: XLA removes such pairs.
  return lax.reduce_precision(a, _EXPONENT_BITS, _MANTISSA_BITS)
