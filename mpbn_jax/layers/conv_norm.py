"""Layers with a kernel, and the norm of their currents."""

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
  """A convolution over every time step, and the norm of its currents.

      c = norm(conv(x))

  Variables: params/{kernel, bias?, <norm>/...}, batch_stats/<norm>/.... At
  this path of a `folded` collection, a kernel takes the kernel's place (with
  the norm of the spikes that it reads, `folding.fold_spike_norms`), a bias
  that of the bias and the norm (`folding.fold_convolutions`). Where a norm
  told the steps apart, the kernel is [T, k, k, C_in, C_out], the bias
  [T, C_out], or there is a factor [T] beside them (TEBN).

  Attributes:
    features: output channels.
    kernel_size: side of the square kernel.
    stride: of both axes.
    padding: zeros on every side.
    groups: that the channels are split into; as many as there are input
      channels make the convolution a depthwise one.
    norm: of the currents, a key of `norm.NORMS`, or 'none'.
    use_bias: whether the convolution has a bias of its own.
    scale_init: what the norm's scale starts at.
    v_th: of the neurons that get the currents. `tdbn` scales by it.
    joins: whether a sum joins these currents with those of another `ConvNorm`.
      Then `tdbn` scales by v_th / sqrt(2), so that the sum has the variance of
      one of them.
    kernel_init: initializer of the kernel.
    momentum: weight of the new value in running statistics.
    eps: added to variances. It and what `tdbn` scales by are what the layer
      starts with; they are stored with the variables, and the stored values
      count.
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
      x: spikes, or images.
      train: whether batch statistics are used, and running ones advanced.
      copies: how many equal time steps each step of x stands for. An image
        that is the same at every step is convolved once, T = 1 with `copies`
        of it; only the unbiased running variance needs to know. A norm that
        tells the steps apart returns them all.

    Raises:
      InputError: groups that do not divide the channels of x, or the features.
      TypeError: x that is not floating.
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
  """A linear layer on every time step, and the norm of its currents.

      c = norm(x @ kernel)

  Variables and fold: as of `ConvNorm`, with kernels [C_in, features].

  Attributes:
    features: output channels.
    flatten: whether all axes of x after T are taken as one, as of images.
    norm: of the currents, a key of `norm.NORMS`, or 'none'.
    use_bias: whether the layer has a bias of its own.
    scale_init: what the norm's scale starts at.
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
      x: spikes, or images.
      train: whether batch statistics are used, and running ones advanced.
      copies: as in `ConvNorm`.

    Raises:
      InputError: x are normed spikes of maps that would be flattened: their
        norm has a gain for each channel.
      TypeError: x that is not floating.
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
