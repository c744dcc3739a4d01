"""The spiking network of pre-activation blocks, 100 layers deep and more."""

import flax.linen as nn
import jax

from mpbn_jax import norm as norms
from mpbn_jax.errors import InputError
from mpbn_jax.layers import Spikes
from mpbn_jax.models import blocks
from mpbn_jax.models.network import ModuleDef, SpikingNetwork

# Collections with one entry of each block, along their first axis.
_STACKED = (
  *('params', 'batch_stats', 'intermediates'),
  *('threshold', 'folded', 'given_spikes'),
)


class PreActBlock(nn.Module):
  """x + norm(conv(LIF(norm(conv(LIF(x)))))), x being real-valued.

  With a norm of the spikes: x + conv(norm(LIF(conv(norm(LIF(x)))))). The
  shortcut is the identity; where the shape changes, a convolution of 1x1 of
  what the first convolution reads (He et al. 2016, 1603.05027).

  Attributes:
    conv: as in `SpikingNetwork`.
    lif: as in `SpikingNetwork`.
    features: output channels.
    stride: of the first convolution and the shortcut.
    projects: whether the shape changes.
    spike_scale: what the scale of the last norm of the spikes starts at.
    conv_scale: what that of the last norm of the currents starts at.
    train: whether batch statistics are used, and running ones advanced.
  """

  conv: ModuleDef
  lif: ModuleDef
  features: int
  stride: int
  projects: bool
  spike_scale: float
  conv_scale: float
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
    )
    return x + conv(y, train=train)


class SpikingPreActResNet(SpikingNetwork):
  """A convolution, three stages of n blocks, LIF, linear: depth 6n + 4.

  Counted are the stem, 2n convolutions of each stage, two projections and the
  linear layer; n = 17 has 106. Stage i has width * 2^i channels and, from the
  second, half the resolution. Blocks of one shape are one block in the
  compiled program, scanned over variables that are stacked along their first
  axis: a deep network compiles as fast as a shallow one.

  PSP-BN carries spikes through more than 100 layers of it (Ikegawa et al.
  2022, 2203.01544).

  Attributes:
    depth: layers with weights, 6n + 4.
    last_scale: what the scale of the last norm of every block starts at; None:
      1 / n.
    remat: whether the activations of a block are computed again in the
      backward pass and not stored.
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
    conv, spike = self._norms()
    if conv == norms.NONE and spike in (norms.NONE, 'neunorm'):
      blocks.refuse_last_scale(self.last_scale, conv=conv, spike=spike)

  def _norms(self):
    return (
      blocks.norm_after_convolution(self.conv),
      blocks.norm_after_firing(self.lif),
    )

  def encoder(self):
    return self.conv(self.width, name='stem_conv')

  def features(self, currents: jax.Array, *, train: bool) -> jax.Array | Spikes:
    x = currents
    count = (self.depth - 4) // 6
    for stage in (1, 2, 3):
      if stage > 1:
        name = f'stage{stage}_first'
        x = self._block(stage, projects=True, name=name, train=train)(x)
      alike = count - (stage > 1)
      if alike:
        x, _ = nn.scan(
          lambda block, x, _: (block(x), None),
          variable_axes=dict.fromkeys(_STACKED, 0),
          split_rngs={'params': True},
          length=alike,
        )(
          self._block(
            stage, projects=False, name=f'stage{stage}_blocks', train=train
          ),
          x,
          None,
        )
    return self.lif(name='last_lif')(x, train=train)

  def _block(self, stage, *, projects, name, train):
    conv_norm, _ = self._norms()
    last_scale = self.last_scale
    if last_scale is None:
      # The branches of a stage add up: to as much at every depth. With 0,
      # kernels would wait for scales, and scales for kernels.
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
      train=train,
      name=name,
    )
