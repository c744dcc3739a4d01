"""Helpers for networks: what their factories make, and initial kernels."""

from collections.abc import Callable

import jax

from mpbn_jax import initializers
from mpbn_jax import norm as norms
from mpbn_jax.errors import InputError
from mpbn_jax.layers import LIF


def norm_after_convolution(conv: Callable) -> str:
  """Returns the norm of the convolutions that a factory creates."""
  return getattr(conv(1, parent=None), 'norm', norms.NONE)


def norm_after_firing(lif: Callable) -> str:
  """Returns the spike norm of the neurons that a factory creates."""
  return getattr(lif(parent=None), 'spike_norm', norms.NONE)


def kept_by(lif: Callable) -> str:
  """Returns what is kept for the backward pass of a factory's neurons."""
  return getattr(lif(parent=None), 'keep', 'all')


def fires_bits(lif: Callable) -> bool:
  """Returns whether a factory's neurons are known to return only 0 and 1."""
  layer = lif(parent=None)
  # A subclass may return something else.
  plain = type(layer) is LIF and layer.tau_s == 0
  return plain and layer.spike_norm == norms.NONE


def looped(lif: Callable) -> dict:
  """Returns the argument with which a factory's neurons loop over time.

  On a CPU, whose programs with loops take less memory, and if they are `LIF`.
  """
  unrolls = isinstance(lif(parent=None), LIF)
  return {'unroll': False} if unrolls and jax.default_backend() == 'cpu' else {}


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
