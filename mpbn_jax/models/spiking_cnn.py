"""Which layers has the small network for small images?"""

import jax

from mpbn_jax.layers import ConvNorm, average_pool, over_time
from mpbn_jax.models.network import SpikingNetwork


class SpikingCNN(SpikingNetwork):
  """Four [conv3x3 - norm - LIF], a 2x2 average pool after the second.

  Channels width, width, 2 width, 2 width; any image of at least 2x2.
  """

  def encoder(self) -> ConvNorm:
    return self.conv_norm(self.width, name='conv1')

  def features(self, currents: jax.Array, *, train: bool) -> jax.Array:
    x = self.lif(name='lif1')(currents, train=train)
    for i, features in ((2, 1), (3, 2), (4, 2)):
      conv = self.conv_norm(features * self.width, name=f'conv{i}')
      x = self.lif(name=f'lif{i}')(conv(x, train=train), train=train)
      if i == 2:
        x = over_time(lambda x: average_pool(x, window=2), x)
    return x
