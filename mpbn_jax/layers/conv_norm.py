"""Convolution and linear layers with a norm of their output currents."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from mpbn_jax import norm as norms
from mpbn_jax.errors import InputError
from mpbn_jax.layers.attributes import check_positive, check_types
from mpbn_jax.layers.currents import normed_currents
from mpbn_jax.layers.normed import Spikes
from mpbn_jax.layers.shapes import over_time
from mpbn_jax.ops.convolution import convolution


class ConvNorm(nn.Module):
  """A convolution at every time step, followed by a norm of its currents.

      c = norm(conv(x))

  Variables: params/{kernel, bias?, <norm>/...}, batch_stats/<norm>/.... A
  `folded` collection may have, at the same path, a kernel that replaces the
  kernel (and absorbs the norm of the spikes that it reads,
  `folding.fold_spike_norms`) and a bias that replaces the bias and the norm
  (`folding.fold_convolutions`). If the folded norm was per time step, the
  kernel is [T, k, k, C_in, C_out] and the bias [T, C_out], or there is also a
  factor [T] (TEBN).

  Attributes:
    features: number of output channels.
    kernel_size: side of the square kernel.
    stride: stride along both axes.
    padding: zeros on every side.
    groups: number of channel groups; equal to the number of input channels, it
      makes the convolution depthwise.
    norm: norm of the currents, a key of `norm.NORMS`, or 'none'.
    use_bias: whether the convolution has its own bias.
    scale_init: initial value of the norm's scale.
    v_th: threshold of the neurons that receive the currents. `tdbn` scales by
      it.
    joins: whether these currents are added to those of another `ConvNorm`.
      `tdbn` then scales by v_th / sqrt(2), so that the sum has the variance of
      a single branch.
    kernel_init: initializer of the kernel.
    momentum: weight of the new value in running statistics.
    eps: added to variances. It and the factor by which `tdbn` scales are
      initial values: they are stored with the variables, and the layer uses the
      stored values.
  """

  features: int
  kernel_size: int = 3
  stride: int = 1
  padding: int = 1
  groups: int = 1
  norm: str = 'bn'
  use_bias: bool = False
  scale_init: float = 1.0
  v_th: float = 0.5
  joins: bool = False
  # N(0, 2 / (k * k * C_out))
  kernel_init: Callable = nn.initializers.variance_scaling(
    2.0, 'fan_out', 'normal'
  )
  momentum: float = norms.MOMENTUM
  eps: float = norms.EPS

  def __post_init__(self):
    check_positive(self, 'features', 'kernel_size', 'stride', 'groups')
    _check(self)
    super().__post_init__()

  @nn.compact
  def __call__(
    self, x: jax.Array | Spikes, *, train: bool, copies: int = 1
  ) -> jax.Array:
    """Returns currents [B, T, H', W', features] of x [B, T, H, W, C].

    Args:
      x: spikes or images.
      train: whether to use batch statistics and update running statistics.
      copies: how many equal time steps each step of x represents. An image
        that is the same at every step is convolved once, as T = 1 with
        `copies`; only the unbiased running variance depends on it. A norm with
        parameters per time step returns all steps.

    Raises:
      InputError: groups do not divide the channels of x or the features.
      TypeError: x is not floating.
    """
    channels, groups = x.shape[-1], self.groups
    if channels % groups or self.features % groups:
      raise InputError(
        f'groups must divide the {channels} input channels and the '
        f'{self.features} features, got {groups}'
      )
    side = (self.padding, self.padding)

    def product(x, kernel):
      convolve = functools.partial(
        convolution,
        kernel=kernel,
        strides=(self.stride, self.stride),
        padding=(side, side),
        groups=groups,
      )
      return over_time(convolve, x)

    size = self.kernel_size
    return normed_currents(
      self,
      x,
      shape=(size, size, channels // groups, self.features),
      product=product,
      train=train,
      copies=copies,
      groups=groups,
    )


class DenseNorm(nn.Module):
  """A linear layer at every time step, followed by a norm of its currents.

      c = norm(x @ kernel)

  Variables and fold are as in `ConvNorm`, with kernels [C_in, features].

  Attributes:
    features: number of output channels.
    flatten: whether to flatten all axes of x after T, for example of images.
    norm: norm of the currents, a key of `norm.NORMS`, or 'none'.
    use_bias: whether the layer has its own bias.
    scale_init: initial value of the norm's scale.
    v_th: as in `ConvNorm`.
    joins: as in `ConvNorm`.
    kernel_init: initializer of the kernel.
    momentum: weight of the new value in running statistics.
    eps: as in `ConvNorm`.
  """

  features: int
  flatten: bool = False
  norm: str = 'bn'
  use_bias: bool = False
  scale_init: float = 1.0
  v_th: float = 0.5
  joins: bool = False
  # N(0, 2 / C_out)
  kernel_init: Callable = nn.initializers.variance_scaling(
    2.0, 'fan_out', 'normal'
  )
  momentum: float = norms.MOMENTUM
  eps: float = norms.EPS

  def __post_init__(self):
    check_positive(self, 'features')
    _check(self)
    super().__post_init__()

  @nn.compact
  def __call__(
    self, x: jax.Array | Spikes, *, train: bool, copies: int = 1
  ) -> jax.Array:
    """Returns currents [B, T, ..., features] of x [B, T, ..., C].

    Args:
      x: spikes or images.
      train: whether to use batch statistics and update running statistics.
      copies: as in `ConvNorm`.

    Raises:
      InputError: x holds normed spikes of maps that would be flattened: their
        norm has a gain per channel.
      TypeError: x is not floating.
    """
    if self.flatten and x.ndim > 3:
      if isinstance(x, Spikes):
        raise InputError(
          'expected an array to flatten, or spikes [B, T, C], got the normed '
          f'spikes of {x.source!r}, {x.ndim} axes: take mean_over_space of '
          'them, or read them through an Identity'
        )
      x = x.reshape((*x.shape[:2], -1))
    return normed_currents(
      self,
      x,
      shape=(x.shape[-1], self.features),
      product=jnp.matmul,
      train=train,
      copies=copies,
    )


def _check(layer):
  check_types(layer)
  norms.check_settings(eps=layer.eps, momentum=layer.momentum)
  norms.check_norm(layer.norm, place='conv')
