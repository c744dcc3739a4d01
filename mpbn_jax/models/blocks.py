"""Helpers for networks: rematerialization and the last scale."""

from collections.abc import Callable

import flax.linen as nn
import jax

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


def refuse_last_scale(value: float | None, *, conv: str, spike: str) -> None:
  """Raises InputError if last_scale is set but no norm has a scale."""
  if value is not None:
    raise InputError(
      'last_scale is the initial scale of the last norm of a block, '
      f'got {value} with conv_norm={conv!r} and spike_norm={spike!r}, where '
      'there is none: set last_scale=None, or choose another norm'
    )
