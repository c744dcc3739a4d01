"""The spiking VGG-16."""

import functools

import flax.linen as nn
import jax

from mpbn_jax.layers import Readout, Spikes, average_pool, over_time
from mpbn_jax.models import blocks
from mpbn_jax.models.network import SpikingNetwork


class SpikingVGG(SpikingNetwork):
  """Groups of [conv3x3 with bias - norm - LIF], with 2x2 average pools.

  Attributes:
    groups: (number of layers, multiple of `width` channels) of each group.
  """

  groups: tuple[tuple[int, int], ...] = ()

  def encoder(self):
    settings = blocks.image_init(self.conv)
    return self.conv(self.width, use_bias=True, name='conv1', **settings)

  def features(self, currents: jax.Array, *, train: bool) -> jax.Array | Spikes:
    x: jax.Array | Spikes = currents
    layer = 0
    for layers, times in self.groups:
      for _ in range(layers):
        layer += 1
        if layer > 1:  # the first is the encoder
          x = self.conv(self.width * times, use_bias=True, name=f'conv{layer}')(
            x, train=train
          )
        x = self.lif(name=f'lif{layer}')(x, train=train)
      x = over_time(lambda x: average_pool(x, window=2), x)
    return x

  def head(self, fan_in: int) -> Readout:
    """Returns the linear readout; kernel N(0, 0.01^2), bias 0."""
    del fan_in
    return Readout(
      self.num_classes, kernel_init=nn.initializers.normal(0.01), name='head'
    )


# The paper's VGG-16; width 64.
SpikingVGG16 = functools.partial(
  SpikingVGG, groups=((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))
)
