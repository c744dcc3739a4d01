"""Square roots and quotients of float32 that every platform rounds alike.

GPUs approximate both in compiled programs, while compilers compute those of
constants exactly: a neuron would decide one way in a program that receives its
variables as arguments, and another way where they are closed over. These
functions correct what the platform returns with integers, which are exact. CPUs
round both correctly by themselves, so programs that are traced where a CPU is
the default platform have no correction, even if they are exported for a GPU.
"""

import jax
import jax.numpy as jnp
import numpy as np

TINY = float(np.finfo(np.float32).tiny)  # the smallest normal number
# Corrections by one unit in the last place. CUDA promises 1 for square roots
# and 2 for quotients; truncation adds another.
_CORRECTIONS = 3


def normal(x: jax.Array) -> jax.Array:
  """Returns x with subnormal numbers replaced by 0.

  CPUs flush them to 0 at run time, while compilers keep them in constant
  folding. Without them both agree.
  """
  return jnp.where(jnp.abs(x) < TINY, 0.0, x)


def square_root(x: jax.Array) -> jax.Array:
  """Returns the square root of x [...], float32, correctly rounded.

  Subnormal, negative and infinite numbers and NaN have that of the platform.

  Example:
    >>> square_root(jnp.float32(2.0))
    Array(1.4142135, dtype=float32)
  """
  if jax.default_backend() == 'cpu':
    return jnp.sqrt(x)
  return _square_root(x)


@jax.jit
def _square_root(x):
  mantissa, exponent = _split(x)
  odd = exponent & 1
  root = jnp.sqrt((mantissa << (odd + 1)).astype(jnp.float32))
  root = _corrected_root(mantissa, odd, (root * 2**11).astype(jnp.int32))
  y = root.astype(jnp.float32) * _power_of_two((exponent - odd) // 2 - 23)
  return jnp.where((x >= TINY) & (x < jnp.inf), y, jnp.sqrt(x))


def _corrected_root(mantissa, odd, root):
  """Returns the integer nearest to the square root of mantissa * 2^(23 + odd).

  Of 48 bits, the lower 32 suffice for the difference to a root that is almost
  right.
  """
  for _ in range(_CORRECTIONS):
    rest = (mantissa << (23 + odd)) - root * root
    root = root + _one_if(rest > root) - _one_if(rest <= -root)
  return root


def quotient(a: jax.Array, b: jax.Array) -> jax.Array:
  """Returns a / b, float32, correctly rounded.

  If a or b is 0, subnormal, infinite or NaN, or the quotient overflows or is
  subnormal, it is that of the platform.

  Args:
    a: [...].
    b: broadcastable to a.

  Example:
    >>> quotient(jnp.float32(1.0), jnp.float32(3.0))
    Array(0.33333334, dtype=float32)
  """
  if jax.default_backend() == 'cpu':
    return a / b
  return _quotient(a, b)


@jax.jit
def _quotient(a, b):
  (of_a, exponent_of_a), (of_b, exponent_of_b) = _split(a), _split(b)
  shift = 23 + _one_if(of_a < of_b)
  ratio = of_a.astype(jnp.float32) / of_b.astype(jnp.float32)
  ratio = (ratio * _power_of_two(shift)).astype(jnp.int32)
  ratio = _corrected_ratio(of_a, of_b, shift, ratio)
  exponent = exponent_of_a - exponent_of_b - shift
  half = exponent // 2  # the whole power may be out of range
  y = ratio.astype(jnp.float32) * _power_of_two(half)
  y = y * _power_of_two(exponent - half) * jnp.sign(a) * jnp.sign(b)
  # Of the operands and of the result: no other quotient is rounded only once.
  within = _is_normal(a) & _is_normal(b) & _is_normal(y)
  return jnp.where(within, y, a / b)


def _corrected_ratio(a, b, shift, ratio):
  """Returns the integer nearest to a * 2^shift / b."""
  for _ in range(_CORRECTIONS):
    rest = (a << shift) - ratio * b
    ratio = ratio + _one_if(2 * rest > b) - _one_if(2 * rest < -b)
  return ratio


def gain(scale: jax.Array, variance: jax.Array) -> jax.Array:
  """Returns scale / sqrt(variance), the same number in every program.

  The square root and the quotient are rounded separately; a compiler would turn
  them into `rsqrt`, whose last bit differs between programs.
  """
  deviation = jax.lax.optimization_barrier(square_root(variance))
  return quotient(scale, deviation)


def _split(x):
  """Returns (m of 24 bits, e) of normal numbers: |x| = m * 2^(e - 23)."""
  bits = jax.lax.bitcast_convert_type(x, jnp.int32)
  return (bits & 0x7FFFFF) | 0x800000, ((bits >> 23) & 0xFF) - 127


def _power_of_two(exponent):
  return jax.lax.bitcast_convert_type((exponent + 127) << 23, jnp.float32)


def _is_normal(x):
  return (jnp.abs(x) >= TINY) & (jnp.abs(x) < jnp.inf)


def _one_if(condition):
  return condition.astype(jnp.int32)
