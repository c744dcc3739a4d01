"""The layers without a norm that read spikes: shortcut and linear readout."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mpbn_jax import norm as norms
from mpbn_jax.layers import absorption, variables
from mpbn_jax.layers.spikes import Spikes


class Identity(nn.Module):
  """A shortcut that returns its input as an array.

  It reads spikes as a convolution does, so a spike norm folds into it:
  `folded/scale`, [C] or [T, C], then multiplies every channel.

  Example:
    >>> spikes = jnp.ones((8, 4, 5))  # [B, T, C]
    >>> Identity().apply({}, spikes).shape
    (8, 4, 5)
  """

  @nn.compact
  def __call__(self, x: jax.Array | Spikes) -> jax.Array:
    """Returns x [B, T, ..., C] times the gain of its norm."""
    array, scale = scale_of(self, x)
    if scale is None:
      return array
    return (norms.along(scale, array) * array).astype(array.dtype)


# Functions, not methods: a subclass could override methods.
def scale_of(layer: Identity, spikes: Any) -> tuple[Any, jax.Array | None]:
  """Returns (x, scale): what an identity reads, and its factor per channel.

  The scale is [C], [T, C], or None if there is none.
  """
  variables.check_input('spikes', spikes)
  x, scale = absorption.read(layer, spikes)
  if scale is not None:
    absorption.keep(layer, spikes, 'scale', scale)
  elif layer.has_variable('folded', 'scale'):
    scale = layer.get_variable('folded', 'scale')
  if scale is not None and scale.ndim == 2:
    variables.check_steps_equal(layer, scale.shape[0], x.shape[1])
  return x, scale


class Readout(nn.Module):
  """The linear layer on the pooled spikes: x @ kernel + bias.

  Variables: params/{kernel, bias}; `folded/kernel` replaces the kernel: [C, K],
  or [T, C, K] if the folded spike norm was per time step.

  Attributes:
    features: number of outputs K.
    kernel_init: initializer of the kernel.

  Example:
    >>> layer = Readout(10, kernel_init=nn.initializers.normal(0.1))
    >>> x = jnp.ones((8, 4, 5))  # [B, T, C]
    >>> variables = layer.init(jax.random.key(0), x)
    >>> layer.apply(variables, x).shape
    (8, 4, 10)
  """

  features: int
  kernel_init: nn.initializers.Initializer

  @nn.compact
  def __call__(self, x: jax.Array | Spikes) -> jax.Array:
    """Returns [B, T, K] of x [B, T, C]."""
    array, kernel, bias = readout_weights(self, x)
    if kernel.ndim == 2:
      return jnp.dot(array, kernel) + bias
    return jnp.einsum('btc,tck->btk', array, kernel) + bias


def readout_weights(layer: Readout, x: Any) -> tuple[Any, jax.Array, jax.Array]:
  """Returns (x, kernel, bias): what a readout multiplies, and by what.

  The kernel is [C, K] or [T, C, K].
  """
  shape = (x.shape[-1], layer.features)
  kernel = variables.weight(layer, 'kernel', layer.kernel_init, shape)
  x, kernel = absorption.read_with(layer, x, kernel)
  zeros = nn.initializers.zeros
  bias = variables.parameter(layer, 'bias', zeros, (layer.features,))
  if kernel.ndim == 3:
    variables.check_steps_equal(layer, kernel.shape[0], x.shape[1])
  return x, kernel, bias
