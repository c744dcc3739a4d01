"""The smallest network in which norms of every place meet."""

from mpbn_jax.layers import average_pool, over_time
from mpbn_jax.models.network import SpikingNetwork


class TwoLayers(SpikingNetwork):
  """conv - norm - LIF - pool - conv - norm - LIF.

  It stands for 'spiking_cnn' in tests of programs, and compiles in half the
  time.
  """

  def encoder(self):
    return self.conv(self.width, name='conv1')

  def features(self, currents, *, train):
    x = self.lif(name='lif1')(currents, train=train)
    x = over_time(lambda x: average_pool(x, window=2), x)
    x = self.conv(self.width, name='conv2')(x, train=train)
    return self.lif(name='lif2')(x, train=train)
