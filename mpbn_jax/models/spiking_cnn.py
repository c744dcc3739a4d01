"""A small convolutional network for small images."""

import jax

from mpbn_jax.layers import Spikes, average_pool, over_time
from mpbn_jax.models import blocks
from mpbn_jax.models.network import SpikingNetwork


class SpikingCNN(SpikingNetwork):
  """Four [conv3x3 - norm - LIF] with a 2x2 average pool after the second.

  The channels are width, width, 2 width, 2 width. Accepts any image of at least
  2x2 pixels.
  """

  def encoder(self):
    settings = blocks.image_init(self.conv)
    return self.conv(self.width, name='conv1', **settings)

  def features(self, currents: jax.Array, *, train: bool) -> jax.Array | Spikes:
    x = self.lif(name='lif1')(currents, train=train)
    for i, times in ((2, 1), (3, 2), (4, 2)):
      y = self.conv(times * self.width, name=f'conv{i}')(x, train=train)
      x = self.lif(name=f'lif{i}')(y, train=train)
      if i == 2:
        x = over_time(lambda x: average_pool(x, window=2), x)
    return x
