"""The spiking pre-activation ResNet, for 100 layers and more."""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax

from mpbn_jax import norm as norms
from mpbn_jax.errors import InputError
from mpbn_jax.layers import Spikes
from mpbn_jax.models import blocks
from mpbn_jax.models.network import ModuleDef, SpikingNetwork

# Collections with one entry per block along their first axis.
_STACKED = (
  *('params', 'batch_stats', 'intermediates'),
  *('threshold', 'folded', 'given_spikes', 'potentials', 'carry'),
)


class PreActBlock(nn.Module):
  """x + norm(conv(LIF(norm(conv(LIF(x)))))) for real-valued x.

  With a spike norm: x + conv(norm(LIF(conv(norm(LIF(x)))))). The shortcut is
  the identity or, if the shape changes, a 1x1 convolution of the input of the
  first convolution (He et al. 2016, 1603.05027).

  Attributes:
    conv: as in `SpikingNetwork`.
    lif: as in `SpikingNetwork`.
    features: output channels.
    stride: stride of the first convolution and the shortcut.
    projects: whether the shape changes.
    spike_scale: initial scale of the last spike norm.
    conv_scale: initial scale of the last norm of the currents.
    kernel_scale: initial scale of the last kernel.
    train: whether to use batch statistics and update running statistics.
  """

  conv: ModuleDef
  lif: ModuleDef
  features: int
  stride: int
  projects: bool
  spike_scale: float
  conv_scale: float
  kernel_scale: float
  train: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns x [B, T, H', W', features] after the block."""
    train = self.train
    y = self.lif(name='lif1')(x, train=train)
    if self.projects:
      x = self.conv(
        self.features,
        kernel_size=1,
        stride=self.stride,
        padding=0,
        joins=True,
        name='shortcut',
      )(y, train=train)
    conv = self.conv(self.features, stride=self.stride, name='conv1')
    y = conv(y, train=train)
    lif = self.lif(name='lif2', spike_scale_init=self.spike_scale)
    y = lif(y, train=train)
    conv = self.conv(
      self.features,
      scale_init=self.conv_scale,
      joins=self.projects,
      name='conv2',
      **blocks.kernel_scale(self.conv, self.kernel_scale),
    )
    return x + conv(y, train=train)


class SpikingPreActResNet(SpikingNetwork):
  """A convolution, three stages of n blocks, LIF, linear: depth 6n + 4.

  The depth counts the stem, 2n convolutions per stage, two projections and the
  linear layer; n = 17 gives 106. Stage i has width * 2^i channels; each stage
  after the first halves the resolution. Blocks of equal shape are compiled as
  one block, scanned over variables stacked along their first axis: a deep
  network compiles as fast as a shallow one.

  PSP-BN can train it with more than 100 layers (Ikegawa et al. 2022,
  2203.01544).

  Attributes:
    depth: number of layers with weights, 6n + 4.
    last_scale: initial scale of the last norm of every block; None uses 1 / n.
      Without a norm that has a scale, of its last kernel; None uses 1.
    remat: whether to recompute the activations of a block in the backward pass
      instead of storing them.
  """

  depth: int = 22
  last_scale: float | None = None
  remat: bool = False

  def __post_init__(self):
    super().__post_init__()
    depth = self.depth
    if not (depth >= 10 and depth % 6 == 4):
      raise InputError(
        'the depth of preact_resnet is 6n + 4 with n >= 1 blocks a stage '
        f'(10, 16, 22, 40, 58, 106, ...), got {depth}'
      )

  def _norms(self):
    return (
      blocks.norm_after_convolution(self.conv),
      blocks.norm_after_firing(self.lif),
    )

  def encoder(self):
    settings = blocks.image_init(self.conv)
    return self.conv(self.width, name='stem_conv', **settings)

  def features(self, currents: jax.Array, *, train: bool) -> jax.Array | Spikes:
    x = currents
    count = (self.depth - 4) // 6
    for stage in (1, 2, 3):
      if stage > 1:
        name = f'stage{stage}_first'
        x = self._block(stage, projects=True, name=name, train=train)(x)
      alike = count - (stage > 1)
      if alike:
        x = self._alike(x, stage=stage, count=alike, train=train)
    return self.lif(name='last_lif')(x, train=train)

  def _alike(self, x, *, stage, count, train):
    """Returns x after the blocks of equal shape of a stage."""
    x, _ = nn.scan(
      lambda block, x, _: (block(x), None),
      variable_axes=dict.fromkeys(_STACKED, 0),
      split_rngs={'params': True},
      length=count,
    )(
      self._block(
        stage, projects=False, name=f'stage{stage}_blocks', train=train
      ),
      x,
      None,
    )
    return x

  @nn.nowrap
  def unstacked(
    self, variables: Mapping
  ) -> tuple['UnstackedPreActResNet', dict]:
    """Returns the network with a name and variables for each of its blocks.

    Block i of 'stage1_blocks' becomes 'stage1_blocks_<i>', from 0.

    Raises:
      InputError: this network is of a subclass, or the variables have another
        number of blocks.
    """
    if type(self) is not SpikingPreActResNet:
      raise InputError(
        'expected a SpikingPreActResNet to unstack, got its subclass '
        f'{type(self).__name__}: define its `unstacked` too'
      )
    settings = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
      if field.init and field.name not in ('parent', 'name')
    }
    model = UnstackedPreActResNet(**settings | {'remat': False, 'parent': None})
    counts = {
      f'stage{stage}_blocks': (self.depth - 4) // 6 - (stage > 1)
      for stage in (1, 2, 3)
    }
    return model, {
      collection: _unstacked(tree, counts)
      for collection, tree in variables.items()
    }

  def _block(self, stage, *, projects, name, train):
    conv_norm, spike_norm = self._norms()
    without_scale = conv_norm == norms.NONE and (
      spike_norm in (norms.NONE, 'neunorm')
    )
    last_scale = self.last_scale
    kernel_scale = 1.0
    if without_scale and last_scale is not None:
      kernel_scale = last_scale
    if last_scale is None:
      # The branches of a stage add up, to the same total at every depth. With
      # 0, kernels would wait for scales, and scales for kernels.
      last_scale = 6 / (self.depth - 4)
    block = nn.remat(PreActBlock) if self.remat else PreActBlock
    return block(
      conv=self.conv,
      lif=self.lif,
      features=self.width * 2 ** (stage - 1),
      stride=2 if projects else 1,
      projects=projects,
      spike_scale=1.0 if conv_norm != norms.NONE else last_scale,
      conv_scale=last_scale,
      kernel_scale=kernel_scale,
      train=train,
      name=name,
    )


class UnstackedPreActResNet(SpikingPreActResNet):
  """A `SpikingPreActResNet` whose blocks have names and variables of their own.

  For exports, which know no scan over stacked variables. Its programs grow with
  its depth.
  """

  def _alike(self, x, *, stage, count, train):
    for i in range(count):
      name = f'stage{stage}_blocks_{i}'
      x = self._block(stage, projects=False, name=name, train=train)(x)
    return x

  @nn.nowrap
  def unstacked(
    self, variables: Mapping
  ) -> tuple['UnstackedPreActResNet', dict]:
    """Returns the network and its variables as they are."""
    return self, dict(variables)


def _unstacked(tree, counts):
  """Returns a collection with the stacked blocks apart, {name: number}."""
  result = {}
  for name, child in tree.items():
    if name not in counts:
      result[name] = child
      continue
    for leaf in jax.tree.leaves(child):
      if leaf.shape[:1] != (counts[name],):
        raise InputError(
          f'expected {counts[name]} blocks in {name!r}, got a variable of '
          f'shape {leaf.shape}: use the variables of a network of this depth'
        )
    for i in range(counts[name]):
      result[f'{name}_{i}'] = jax.tree.map(lambda leaf, i=i: leaf[i], child)
  return result
