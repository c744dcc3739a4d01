"""Which layers has a spiking residual network?"""

import jax

from mpbn_jax.layers import ConvNorm, average_pool, over_time
from mpbn_jax.models.network import SpikingNetwork


class SpikingResNet20(SpikingNetwork):
  """Spiking ResNet20 of the MPBN paper (the default width, 64, is its).

  A stem of three [conv3x3 - norm - LIF] and a 2x2 average pool, then four
  stages of two basic blocks with width * (1, 2, 4, 8) channels, halving the
  map from the second stage on. Block: conv - norm - LIF - conv - norm -
  (+ shortcut) - LIF; the shortcut of a strided block is average pool - conv1x1
  - norm. The last scale of every block starts at 0, so that a block starts as
  its shortcut.
  """

  def encoder(self) -> ConvNorm:
    return self.conv_norm(self.width, name='stem_conv1')

  def features(self, currents: jax.Array, *, train: bool) -> jax.Array:
    x = self.lif(name='stem_lif1')(currents, train=train)
    for i in (2, 3):
      x = self.conv_norm(self.width, name=f'stem_conv{i}')(x, train=train)
      x = self.lif(name=f'stem_lif{i}')(x, train=train)
    x = over_time(lambda x: average_pool(x, window=2), x)
    for stage in range(4):
      for block in range(2):
        stride = 2 if stage > 0 and block == 0 else 1
        x = self._block(
          x,
          self.width * 2**stage,
          stride=stride,
          name=f'stage{stage + 1}_block{block + 1}',
          train=train,
        )
    return x

  def _block(self, x, features, *, stride, name, train):
    conv1 = self.conv_norm(features, stride=stride, name=f'{name}_conv1')
    conv2 = self.conv_norm(features, scale_init=0.0, name=f'{name}_conv2')
    y = self.lif(name=f'{name}_lif1')(conv1(x, train=train), train=train)
    y = conv2(y, train=train)
    if stride != 1 or x.shape[-1] != features:
      pooled = over_time(lambda x: average_pool(x, window=stride), x)
      shortcut = self.conv_norm(
        features, kernel_size=1, padding=0, name=f'{name}_shortcut'
      )
      x = shortcut(pooled, train=train)
    return self.lif(name=f'{name}_lif2')(y + x, train=train)
