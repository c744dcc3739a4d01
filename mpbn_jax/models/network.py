"""What do all spiking networks share? Settings, encoding and readout."""

import dataclasses
import functools
import math
import numbers
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from mpbn_jax import norm as norms
from mpbn_jax.errors import InputError, unknown
from mpbn_jax.layers import (
  LIF,
  ConvNorm,
  Readout,
  SpikeNorm,
  Spikes,
  mean_over_space,
)
from mpbn_jax.neuron import RESETS, check_tau
from mpbn_jax.surrogate import get_surrogate

DTYPES = ('float32', 'bfloat16')


class SpikingNetwork(nn.Module):
  """Base of the networks: a subclass defines `features` and nothing else.

  `apply(variables, x, train=...)` returns logits [B, num_classes], the mean
  over T of a linear readout of the average-pooled spikes (paper, Eq. 3). x is
  [B, H, W, C], an image that is shown at every step (direct encoding), or
  [B, T, H, W, C], one frame a step.

  Attributes:
    num_classes: K.
    num_steps: T.
    width: channels of the first layer; all others scale with it.
    tau: kept fraction of the membrane potential, in [0, 1).
    v_th: firing threshold, stored with the variables of every membrane norm:
      the stored value is what counts.
    learn_tau: whether every neuron layer learns its tau.
    learn_v_th: whether every neuron layer learns v_th per channel.
    surrogate: a name in `surrogate.SURROGATES`.
    surrogate_parameter: its width or slope; None takes its default.
    reset: 'hard' or 'soft'.
    detach_reset: whether the gradient ignores the spikes in the reset.
    current_norm: after every convolution; see `norm.NORMS`.
    membrane_norm: before every firing.
    spike_norm: after every firing.
    tau_s: kept fraction of the synaptic filter between them, in [0, 1).
    momentum: weight of the new value in running statistics.
    eps: added to variances, and stored with the variables likewise.
    dtype: of activations and products, 'float32' or 'bfloat16'. Potentials,
      statistics, parameters and the readout are float32 in any case.
    unroll: whether the T steps are unrolled in the compiled program.
    depth: layers with weights, of networks that come in several depths.
    remat: whether the activations of a block are computed again in the
      backward pass and not stored (`jax.checkpoint`), where it has blocks.
    last_scale: what the scale of every residual block's last norm starts at;
      None takes the network's own: 1, and 1 / n in preact_resnet, n blocks a
      stage.
  """

  # Which of these a network has; `check_blocks` refuses the others.
  block_settings = ()

  num_classes: int = 10
  num_steps: int = 4
  width: int = 64
  tau: float = 0.25
  v_th: float = 0.5
  learn_tau: bool = False
  learn_v_th: bool = False
  surrogate: str = 'rect'
  surrogate_parameter: float | None = None
  reset: str = 'hard'
  detach_reset: bool = False
  current_norm: str = 'bn'
  membrane_norm: str = 'mpbn_channel'
  spike_norm: str = norms.NONE
  tau_s: float = 0.0
  momentum: float = norms.MOMENTUM
  eps: float = norms.EPS
  dtype: str = 'float32'
  unroll: bool = True
  depth: int | None = None
  remat: bool = False
  last_scale: float | None = None

  def check(self) -> None:
    """Raises InputError for settings with which no network can be built."""
    for name in ('num_classes', 'num_steps', 'width'):
      value = getattr(self, name)
      if not (isinstance(value, int) and value >= 1):
        raise InputError(f'{name} must be an integer >= 1, got {value!r}')
    self._check_types()
    for name in ('v_th', 'eps'):
      if not getattr(self, name) > 0:
        raise InputError(f'{name} must be positive, got {getattr(self, name)}')
    check_tau(self.tau)
    get_surrogate(self.surrogate, parameter=self.surrogate_parameter)
    if self.reset not in RESETS:
      raise unknown('reset', self.reset, RESETS)
    if self.dtype not in DTYPES:
      raise unknown('dtype', self.dtype, DTYPES)
    norms.check_norm(self.current_norm, place='current')
    norms.check_norm(self.membrane_norm, place='membrane')
    norms.check_norm(self.spike_norm, place='spikes')
    norms.check_tau_s(self.tau_s)
    self.check_blocks()
    if not 0 < self.momentum <= 1:
      raise InputError(
        'momentum is the weight of the new value in running statistics '
        f'and must lie in (0, 1], got {self.momentum}'
      )

  def _check_types(self):
    for field in dataclasses.fields(SpikingNetwork):
      value = getattr(self, field.name)
      if field.type is bool and not isinstance(value, bool):
        raise InputError(f'{field.name} must be True or False, got {value!r}')
      unset = value is None and field.type == float | None
      if field.type in (float, float | None) and not (unset or _finite(value)):
        raise InputError(f'{field.name} must be a finite number, got {value!r}')

  def check_blocks(self) -> None:
    """Raises InputError for settings that only networks of blocks have."""
    for name, unset in (
      ('depth', None),
      ('remat', False),
      ('last_scale', None),
    ):
      value = getattr(self, name)
      if value != unset and name not in self.block_settings:
        raise InputError(
          f'this network has no {name} to choose, got {name}={value}: set '
          f"{name}={unset}, or take another model ('preact_resnet' has it)"
        )

  def refuse_last_scale(self) -> None:
    """Raises InputError for a start of scales where no norm has one."""
    if self.last_scale is not None:
      raise InputError(
        'last_scale is what the scale of the last norm of a block starts at, '
        f'got {self.last_scale} with current_norm={self.current_norm!r} and '
        f'spike_norm={self.spike_norm!r}, where there is none: set '
        'last_scale=None, or another norm'
      )

  # -- what a subclass builds its layers with. Functions, not methods: a block
  # that is a module of its own calls them too.

  @property
  def conv_norm(self) -> Callable[..., ConvNorm]:
    """(features, *, name, ...) -> a convolution with the current norm."""
    return functools.partial(
      _conv_norm,
      v_th=self.v_th,
      norm=self.current_norm,
      momentum=self.momentum,
      eps=self.eps,
    )

  @property
  def lif(self) -> Callable[..., Callable]:
    """(*, name, ...) -> a neuron layer and the norm of its spikes."""
    return functools.partial(
      _lif,
      tau=self.tau,
      v_th=self.v_th,
      learn_tau=self.learn_tau,
      learn_v_th=self.learn_v_th,
      norm=self.membrane_norm,
      surrogate=self.surrogate,
      surrogate_parameter=self.surrogate_parameter,
      reset=self.reset,
      detach_reset=self.detach_reset,
      spike_norm=self.spike_norm,
      tau_s=self.tau_s,
      momentum=self.momentum,
      eps=self.eps,
      unroll=self.unroll,
    )

  def features(self, currents: jax.Array, *, train: bool) -> jax.Array | Spikes:
    """Returns the last spikes [B, T, H', W', C'] of the encoder's currents."""
    raise NotImplementedError

  def encoder(self) -> ConvNorm:
    """Returns the first convolution: images or frames into currents."""
    raise NotImplementedError

  # -- the whole

  @nn.compact
  def step_logits(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Returns the logits of every step, [B, T, num_classes]."""
    static = x.ndim == 4
    frames = self._frames(x)
    # The image is the same at every step: convolved and normalized once.
    copies = self.num_steps if static else 1
    currents = self.encoder()(frames, train=train, copies=copies)
    if currents.shape[1] != self.num_steps:
      shape = (currents.shape[0], self.num_steps, *currents.shape[2:])
      currents = jnp.broadcast_to(currents, shape)
    spikes = self.features(currents, train=train)
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


def _finite(value):
  return isinstance(value, numbers.Real) and math.isfinite(value)


def _conv_norm(
  features: int, *, v_th: float, joins: bool = False, **options
) -> ConvNorm:
  """Returns a `ConvNorm`; joins: a sum joins it with another `ConvNorm`."""
  alpha = 0.5**0.5 if joins else 1.0
  return ConvNorm(features, gain=alpha * v_th, **options)


def _lif(
  *,
  name: str,
  spike_norm: str,
  tau_s: float,
  scale_init: float = 1.0,
  **options,
) -> Callable:
  """Returns (currents, *, train) -> what readers of the spikes get.

  Args:
    name: of the neurons; the norm of their spikes is <name>_spikes.
    spike_norm: after every firing.
    tau_s: kept fraction of the synaptic filter.
    scale_init: what that norm's scale starts at.
    **options: attributes of `LIF`.
  """
  neurons = LIF(name=name, **options)
  if spike_norm == norms.NONE and tau_s == 0:
    return neurons
  normalize = SpikeNorm(
    norm=spike_norm,
    tau_s=tau_s,
    scale_init=scale_init,
    momentum=options['momentum'],
    eps=options['eps'],
    unroll=options['unroll'],
    name=f'{name}_spikes',
  )
  return lambda currents, *, train: normalize(
    neurons(currents, train=train), train=train
  )
