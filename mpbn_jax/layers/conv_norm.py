"""Convolution and linear layers with a norm of their output currents."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mpbn_jax.errors import InputError
from mpbn_jax.layers.attributes import check_positive
from mpbn_jax.layers.currents import NormedLayer, normed_currents
from mpbn_jax.layers.shapes import over_time
from mpbn_jax.layers.spikes import Spikes
from mpbn_jax.ops.convolution import convolution


class ConvNorm(NormedLayer):
  """A convolution at every time step, followed by a norm of its currents.

      c = norm(conv(x))

  `currents.NormedLayer` documents the variables, folds and further attributes.

  Attributes:
    features: number of output channels.
    kernel_size: side of the square kernel.
    stride: stride along both axes.
    padding: zeros on every side.
    groups: number of channel groups; equal to the number of input channels, it
      makes the convolution depthwise.
  """

  features: int
  kernel_size: int = 3
  stride: int = 1
  padding: int = 1
  groups: int = 1

  def __post_init__(self):
    check_positive(self, 'features', 'kernel_size', 'stride', 'groups')
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
    groups, side = self.groups, (self.padding, self.padding)

    def product(x, kernel):
      convolve = functools.partial(
        convolution,
        kernel=kernel,
        strides=(self.stride, self.stride),
        padding=(side, side),
        groups=groups,
      )
      return over_time(convolve, x)

    return normed_currents(
      self,
      x,
      shape=kernel_shape(self, x.shape[-1]),
      product=product,
      train=train,
      copies=copies,
      groups=groups,
    )


def kernel_shape(layer: ConvNorm, channels: int) -> tuple[int, int, int, int]:
  """Returns [k, k, C_in / groups, C_out] for a number of input channels.

  Raises:
    InputError: the layer's groups do not divide them or its features.
  """
  groups, size = layer.groups, layer.kernel_size
  if channels % groups or layer.features % groups:
    raise InputError(
      f'groups must divide the {channels} input channels and the '
      f'{layer.features} features, got {groups}'
    )
  return size, size, channels // groups, layer.features


class DenseNorm(NormedLayer):
  """A linear layer at every time step, followed by a norm of its currents.

      c = norm(x @ kernel)

  `currents.NormedLayer` documents the variables, folds and further attributes.
  Kernels are [C_in, features].

  Attributes:
    features: number of output channels.
    flatten: whether to flatten all axes of x after T, for example of images.
  """

  features: int
  flatten: bool = False

  def __post_init__(self):
    check_positive(self, 'features')
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
    if flattens(self, x):
      x = x.reshape((*x.shape[:2], -1))
    return normed_currents(
      self,
      x,
      shape=(x.shape[-1], self.features),
      product=jnp.matmul,
      train=train,
      copies=copies,
    )


def flattens(layer: DenseNorm, x: Any) -> bool:
  """Returns whether a layer flattens x.

  Raises:
    InputError: x holds normed spikes: their norm has a gain per channel.
  """
  if not (layer.flatten and x.ndim > 3):
    return False
  if isinstance(x, Spikes):
    raise InputError(
      'expected an array to flatten, or spikes [B, T, C], got the normed '
      f'spikes of {x.source!r}, with {x.ndim} axes: apply mean_over_space '
      'to them, or read them through an Identity'
    )
  return True
