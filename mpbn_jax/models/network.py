"""The base class of spiking networks: encoding, readout and settings."""

import functools
import operator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mpbn_jax.errors import InputError, unknown
from mpbn_jax.layers import (
  LIF,
  ConvNorm,
  DenseNorm,
  Factory,
  Readout,
  Spikes,
  mean_over_space,
)
from mpbn_jax.layers.attributes import check_positive, check_types
from mpbn_jax.models import blocks
from mpbn_jax.models.rematerialization import rematerialized
from mpbn_jax.ops import kept

DTYPES = ('float32', 'bfloat16')
ModuleDef = Any  # module factory: (*arguments, name, **attributes) -> module


class SpikingNetwork(nn.Module):
  """Base class of networks: subclasses define `encoder` and `features`.

  Both make their layers inline, as in an `nn.compact` method, and so does
  `head`, which may be overridden; its layer must be named 'head'.

  `apply(variables, x, train=...)` returns logits [B, num_classes], the mean
  over T of a linear readout of the average-pooled spikes (paper, Eq. 3). x is
  [B, H, W, C], an image shown at every time step (direct encoding), or
  [B, T, H, W, C], one frame per time step.

  Attributes:
    num_classes: number of classes K.
    num_steps: number of time steps T.
    width: channels of the first layer; all others scale with it.
    conv: factory of convolutions, `ConvNorm` with its settings.
    dense: factory of linear layers, `DenseNorm` with its settings.
    lif: factory of neuron layers, `LIF` with its settings.
    dtype: dtype of activations and products, 'float32' or 'bfloat16'. Membrane
      potentials, statistics, parameters and the readout are always float32.
  """

  num_classes: int = 10
  num_steps: int = 4
  width: int = 64
  conv: ModuleDef = ConvNorm
  dense: ModuleDef = DenseNorm
  lif: ModuleDef = Factory(LIF, norm='mpbn_channel')
  dtype: str = 'float32'

  def __post_init__(self):
    check_positive(self, 'num_classes', 'num_steps', 'width')
    check_types(self)
    if self.dtype not in DTYPES:
      raise unknown('dtype', self.dtype, DTYPES)
    keep = blocks.kept_by(self.lif)
    if keep != 'all' and getattr(self, 'remat', False):
      raise InputError(
        'remat=True keeps the inputs of blocks, and keep says what else to '
        f"keep, got both, keep={keep!r}: set remat=False, or keep='all'"
      )
    super().__post_init__()

  def encoder(self) -> nn.Module:
    """Returns the first layer, usually self.conv(...) or self.dense(...).

    It is called as layer(frames [B, T or 1, H, W, C], train=..., copies=...)
    and returns currents.
    """
    raise NotImplementedError

  def features(self, currents: jax.Array, *, train: bool) -> jax.Array | Spikes:
    """Returns the last spikes [B, T, H', W', C'] for the encoder's currents."""
    raise NotImplementedError

  def _currents(self, frames, *, train, copies):
    return self.encoder()(frames, train=train, copies=copies)

  @nn.compact
  def step_logits(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Returns the logits of every time step, [B, T, num_classes]."""
    frames, keep = self._frames(x), blocks.kept_by(self.lif)
    spikes_of = functools.partial(_spikes, train=train)
    if train and keep != 'all':
      policy = kept.policy(keep)
      spikes = rematerialized(spikes_of, self, policy=policy)(frames)
    else:
      spikes = spikes_of(self, frames)
    pooled = mean_over_space(spikes)  # [B, T, C']
    return self.head(pooled.shape[-1])(pooled)

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Returns the mean over T of `step_logits`, [B, num_classes]."""
    return self.step_logits(x, train=train).mean(1)

  def head(self, fan_in: int) -> Readout:
    """Returns the linear readout; kernel N(0, 1 / fan_in^2), bias 0."""
    return Readout(
      self.num_classes,
      kernel_init=nn.initializers.normal(1 / fan_in),
      name='head',
    )

  def _frames(self, x):
    if x.ndim not in (4, 5):
      raise InputError(
        'the input must be images [B, H, W, C] or frames [B, T, H, W, C], '
        f'got shape {x.shape}'
      )
    if x.ndim == 5 and x.shape[1] != self.num_steps:
      raise InputError(
        f'the network has num_steps={self.num_steps}, but the frames '
        f'[B, T, H, W, C] have T = {x.shape[1]}: build it with '
        f'num_steps={x.shape[1]} or give {self.num_steps} frames'
      )
    x = x.astype(self.dtype)
    return x[:, None] if x.ndim == 4 else x


def _spikes(network, frames, *, train):
  """Returns the last spikes of frames, [B, 1, H, W, C] for a static image."""
  # The image is the same at every step: convolve and normalize it once.
  copies = network.num_steps // frames.shape[1]
  currents = network._currents(frames, train=train, copies=copies)
  if currents.shape[1] != network.num_steps:
    currents = _repeated(currents, network.num_steps)
  return network.features(currents, train=train)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _repeated(x, num_steps):
  """Returns x [B, 1, ...] at every time step, [B, T, ...].

  Its gradient adds the time steps one by one. XLA's CPU backend gives a sum
  along an axis to a library, which copies [B, T, ...].
  """
  return jnp.broadcast_to(x, (x.shape[0], num_steps, *x.shape[2:]))


_repeated.defvjp(
  lambda x, num_steps: (_repeated(x, num_steps), None),
  lambda num_steps, _, cotangent: (
    functools.reduce(
      operator.add, [cotangent[:, t : t + 1] for t in range(num_steps)]
    ),
  ),
)
