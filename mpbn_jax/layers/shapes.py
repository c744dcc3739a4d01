"""How is a function of images applied to every step, and how is pooled?"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from mpbn_jax.errors import InputError
from mpbn_jax.layers import normed
from mpbn_jax.layers.normed import Spikes


def over_time(function: Callable, x: jax.Array | Spikes) -> jax.Array | Spikes:
  """Returns function applied to every step of x: [B, T, ...] -> [B, T, ...].

  Batch-major merging: with B sharded, a time-major merge (T, B) makes XLA
  all-gather and every device compute the whole batch, in silence.

  Raises:
    InputError: x are normed spikes and the function does not accept those.
  """
  steps = x.shape[:2]

  def merge(x):
    return x.reshape((-1, *x.shape[2:]))

  def split(x):
    return x.reshape((*steps, *x.shape[1:]))

  if isinstance(x, Spikes):
    normed.check_merged(x, 'over_time', merged=False)
    y = function(normed.on_array(x, merge, merged=True))
  else:
    y = function(merge(x))
  if isinstance(y, Spikes):
    normed.check_merged(y, 'the result of a function', merged=True)
    return normed.on_array(y, split, merged=False)
  return split(y)


def mean_over_space(x: jax.Array | Spikes) -> jax.Array | Spikes:
  """Returns the means of whole maps, float32: [B, T, ..., C] -> [B, T, C]."""
  if isinstance(x, Spikes):
    normed.check_merged(x, 'mean_over_space', merged=False)
    return normed.on_array(x, mean_over_space)
  return x.mean(tuple(range(2, x.ndim - 1)), dtype=jnp.float32)


def average_pool(
  x: jax.Array | Spikes,
  *,
  window: int,
  stride: int | None = None,
  padding: int = 0,
) -> jax.Array | Spikes:
  """Returns the means of square windows: [N, H, W, C] -> [N, H', W', C].

  As PyTorch's AvgPool2d: incomplete windows are dropped, padding is counted.

  Raises:
    InputError: the maps are smaller than the window.
  """
  if isinstance(x, Spikes):
    normed.check_merged(x, 'average_pool', merged=True)
    pool = functools.partial(
      average_pool, window=window, stride=stride, padding=padding
    )
    return normed.on_array(x, pool)
  stride = window if stride is None else stride
  if min(x.shape[1:3]) + 2 * padding < window:
    raise InputError(
      f'average pooling with a window of {window}x{window} came to maps of '
      f'{x.shape[1]}x{x.shape[2]}: this network needs larger images'
    )
  if window == stride and padding == 0:  # no overlap: a reshape and a mean
    n, height, width, channels = x.shape
    height, width = height // window, width // window
    x = x[:, : height * window, : width * window]
    x = x.reshape((n, height, window, width, window, channels))
    return x.mean((2, 4))
  pads = ((padding, padding),) * 2
  return nn.avg_pool(x, (window, window), (stride, stride), pads)
