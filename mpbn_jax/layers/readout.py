"""The layers without a norm that read spikes: shortcut and linear readout."""

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
    variables.check_input('spikes', x)
    spikes = x
    x, scale = absorption.read(self, spikes)
    if scale is not None:
      absorption.keep(self, spikes, 'scale', scale)
    elif self.has_variable('folded', 'scale'):
      scale = self.get_variable('folded', 'scale')
    else:
      return x
    if scale.ndim == 2:
      variables.check_steps_equal(self, scale.shape[0], x.shape[1])
    return (norms.along(scale, x) * x).astype(x.dtype)


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
    shape = (x.shape[-1], self.features)
    kernel = variables.weight(self, 'kernel', self.kernel_init, shape)
    x, kernel = absorption.read_with(self, x, kernel)
    zeros = nn.initializers.zeros
    bias = self.param('bias', zeros, (self.features,), jnp.float32)
    if kernel.ndim == 2:
      return jnp.dot(x, kernel) + bias
    variables.check_steps_equal(self, kernel.shape[0], x.shape[1])
    return jnp.einsum('btc,tck->btk', x, kernel) + bias
