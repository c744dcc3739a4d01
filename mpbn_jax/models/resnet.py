"""Spiking residual networks: ResNet-18, 19, 20 and 34."""

import functools
import math
from collections.abc import Callable

import jax

from mpbn_jax import norm as norms
from mpbn_jax.layers import Identity, Spikes, average_pool, over_time
from mpbn_jax.models import blocks
from mpbn_jax.models.network import SpikingNetwork
from mpbn_jax.models.rematerialization import in_order


class SpikingResNet(SpikingNetwork):
  """A stem and stages of basic blocks; stage i has width * 2^i channels.

  Block: conv3x3 - norm - LIF - conv3x3 - norm - (+ shortcut) - LIF; the first
  block of every stage after the first has stride 2. The shortcut is the
  identity if the shapes agree.

  Attributes:
    stage_sizes: number of blocks of each stage.
    stem: 'triple', three [conv3x3 - norm - LIF] and a 2x2 average pool;
      'single', conv3x3 - norm - LIF; 'imagenet', conv7x7 with stride 2 - norm -
      LIF and a 3x3 average pool with stride 2.
    shortcut: 'pool', average pool - conv1x1 - norm, which keeps incomplete
      windows at the far edge of an odd map; 'stride', strided conv1x1 - norm.
    last_scale: initial scale of the last norm of every block, or of its last
      kernel without a norm; None uses 1, as in the reference.
    remat: whether to recompute the activations of blocks, and of the layers of
      the stem, in the backward pass. Only what lies between them is stored: as
      bits, if all neurons are `LIF` without a spike norm. On a CPU, `LIF` whose
      maps are smaller than the first ones then loop over more than two time
      steps, for a smaller program.
  """

  stage_sizes: tuple[int, ...] = (2, 2, 2, 2)
  stem: str = 'triple'
  shortcut: str = 'pool'
  last_scale: float | None = None
  remat: bool = False

  def encoder(self):
    settings = blocks.image_init(self.conv)
    if self.stem == 'imagenet':
      settings |= {'kernel_size': 7, 'stride': 2, 'padding': 3}
    return self.conv(self.width, name='stem_conv1', **settings)

  def _currents(self, frames, **settings):
    encode = self._part(SpikingNetwork._currents, of_spikes=False, **settings)
    return encode(frames)

  def features(self, currents: jax.Array, *, train: bool) -> jax.Array | Spikes:
    pool: Callable | None = None
    whole = math.prod(currents.shape[2:])
    x = self._part(SpikingResNet._stem, of_spikes=False, train=train, index=1)(
      currents
    )
    if self.stem == 'triple':
      for i in (2, 3):
        x = self._part(SpikingResNet._stem, train=train, index=i)(x)
      pool = functools.partial(average_pool, window=2)
    elif self.stem == 'imagenet':
      pool = functools.partial(average_pool, window=3, stride=2, padding=1)
    for stage, count in enumerate(self.stage_sizes):
      for i in range(count):
        x = self._part(
          SpikingResNet._block,
          train=train,
          features=self.width * 2**stage,
          stride=2 if stage > 0 and i == 0 else 1,
          pool=pool,  # within the first block: what it pools is stored as bits
          whole=whole,
          name=f'stage{stage + 1}_block{i + 1}',
        )(x)
        pool = None
    return x if pool is None else over_time(pool, x)

  def _part(self, function, *, of_spikes=True, **settings):
    """Returns x -> function(self, x, **settings), recomputed if `remat`."""
    part = functools.partial(function, **settings)
    if not (self.remat and settings['train']):
      return functools.partial(part, self)
    # Spikes that are given may have other values.
    own = 'given_spikes' not in self.variables
    bits = of_spikes and own and blocks.fires_bits(self.lif)
    return in_order(part, self, spikes=bits)

  def _stem(self, x, *, index, train):
    if index > 1:  # the first convolution is the encoder
      x = self.conv(self.width, name=f'stem_conv{index}')(x, train=train)
    return self.lif(name=f'stem_lif{index}')(x, train=train)

  def _block(self, x, *, features, stride, pool, name, train, whole):
    if pool is not None:
      x = over_time(pool, x)
    projects = stride != 1 or x.shape[-1] != features
    y = self.conv(features, stride=stride, name=f'{name}_conv1')(x, train=train)
    lif, small = self.lif, math.prod(y.shape[2:]) < whole
    if self.remat and train and small and self.num_steps > 2:
      lif = functools.partial(lif, **blocks.looped(lif))
    y = lif(name=f'{name}_lif1')(y, train=train)
    scale = 1.0 if self.last_scale is None else self.last_scale
    normed = blocks.norm_after_convolution(self.conv) != norms.NONE
    y = self.conv(
      features,
      scale_init=scale,
      joins=projects,
      name=f'{name}_conv2',
      **blocks.kernel_scale(self.conv, None if normed else scale),
    )(y, train=train)
    if projects:
      x = self._shortcut(x, features, stride, f'{name}_shortcut', train)
    else:
      x = Identity(name=f'{name}_shortcut')(x)
    return lif(name=f'{name}_lif2')(y + x, train=train)

  def _shortcut(self, x, features, stride, name, train):
    if self.shortcut == 'pool':
      pool = functools.partial(average_pool, window=stride, ceil_mode=True)
      x, stride = over_time(pool, x), 1
    return self.conv(
      features, kernel_size=1, stride=stride, padding=0, joins=True, name=name
    )(x, train=train)


# The paper's ResNet-20 for CIFAR; width 64.
SpikingResNet20 = functools.partial(
  SpikingResNet, stage_sizes=(2, 2, 2, 2), stem='triple', shortcut='pool'
)
# Zheng et al. 2021 (2011.05280); width 128.
SpikingResNet19 = functools.partial(
  SpikingResNet, stage_sizes=(3, 3, 2), stem='single', shortcut='stride'
)
# For ImageNet; width 64.
SpikingResNet18 = functools.partial(
  SpikingResNet, stage_sizes=(2, 2, 2, 2), stem='imagenet', shortcut='stride'
)
SpikingResNet34 = functools.partial(
  SpikingResNet, stage_sizes=(3, 4, 6, 3), stem='imagenet', shortcut='stride'
)
