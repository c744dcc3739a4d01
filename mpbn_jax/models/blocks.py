"""Helpers for networks: rematerialization and initial kernels."""

from collections.abc import Callable

import flax.linen as nn
import jax

from mpbn_jax import initializers
from mpbn_jax import norm as norms
from mpbn_jax.errors import InputError
from mpbn_jax.layers import Spikes
from mpbn_jax.layers.spikes import closed, opened


def rematerialized(
  function: Callable, module: nn.Module, *, policy: Callable | None = None
) -> Callable:
  """Returns x -> function(module, x) that stores no activations.

  The backward pass recomputes them (`jax.checkpoint`). Only useful in training:
  evaluation stores none anyway.

  Args:
    function: (module, x) -> y, which applies the layers of a block; x and y are
      arrays or `Spikes`.
    module: the network.
    policy: says what is stored nevertheless, as in `jax.checkpoint`.
  """

  def call(x: jax.Array | Spikes) -> jax.Array | Spikes:
    arrays, form = opened(x)
    forms = []

    def run(module, *arrays):
      arrays, form_of_y = opened(function(module, closed(arrays, form)))
      forms.append(form_of_y)
      return arrays

    arrays = nn.remat(run, policy=policy)(module, *arrays)
    return closed(arrays, forms[-1])

  return call


def norm_after_convolution(conv: Callable) -> str:
  """Returns the norm of the convolutions that a factory creates."""
  return getattr(conv(1, parent=None), 'norm', norms.NONE)


def norm_after_firing(lif: Callable) -> str:
  """Returns the spike norm of the neurons that a factory creates."""
  return getattr(lif(parent=None), 'spike_norm', norms.NONE)


def kept_by(lif: Callable) -> str:
  """Returns what is kept for the backward pass of a factory's neurons."""
  return getattr(lif(parent=None), 'keep', 'all')


def image_init(conv: Callable) -> dict:
  """Returns the argument of a factory's convolution that reads the images."""
  init = getattr(conv(1, parent=None), 'kernel_init', None)
  if init is None or initializers.of_images(init) is init:
    return {}
  return {'kernel_init': initializers.of_images(init)}


def kernel_scale(conv: Callable, scale: float | None) -> dict:
  """Returns the argument of a convolution that scales its initial kernel.

  Args:
    conv: factory of convolutions.
    scale: the factor; None and 1 leave the kernel as it is.

  Raises:
    InputError: these convolutions have no kernel_init to scale.
  """
  if scale in (None, 1):
    return {}
  init = getattr(conv(1, parent=None), 'kernel_init', None)
  if init is None:
    raise InputError(
      'last_scale is that of the last kernel of a block if no norm has a '
      f'scale, got {scale} for convolutions without a kernel_init: set '
      'last_scale=None, or give them one'
    )
  return {'kernel_init': initializers.Scaled(init, scale)}
