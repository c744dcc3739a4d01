"""Sums of products of large activations."""

import jax
import jax.numpy as jnp

from mpbn_jax.ops import order
from mpbn_jax.ops.convolution_cpu import lies_side_by_side


def of_products(
  g: jax.Array, x: jax.Array, shift: jax.Array, axes: tuple[int, ...]
) -> jax.Array:
  """Returns the sum of g * (x + shift) over axes.

  XLA's CPU backend gives sums to a library, which reads them from memory. The
  results of some convolutions must be copied for that (`convolution_cpu`). Of
  large ones, one time step is copied at a time.

  Args:
    g: [B, T, ..., C] or any other shape.
    x: with the shape of g.
    shift: broadcasts to x.
    axes: leading axes of x.
  """
  channels = x.shape[-1]
  copied = order.is_large(x) and lies_side_by_side(channels, channels)
  by_steps = x.ndim == 5 and axes == (0, 1, 2, 3) and shift.ndim == 1
  if not (copied and by_steps):
    return jnp.sum(g * (x + shift), axes)
  steps = [
    jnp.sum(g[:, t] * (x[:, t] + shift), axes[:-1]) for t in range(x.shape[1])
  ]
  return sum(steps[1:], steps[0])
