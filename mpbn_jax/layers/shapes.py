"""How is a function of images applied to every step, and how is pooled?"""

from collections.abc import Callable

import flax.linen as nn
import jax

from mpbn_jax.errors import InputError


def over_time(function: Callable, x: jax.Array) -> jax.Array:
  """Returns function applied to every step of x: [B, T, ...] -> [B, T, ...].

  Batch-major merging: with B sharded, a time-major merge (T, B) makes XLA
  all-gather and every device compute the whole batch, in silence.
  """
  merged = function(x.reshape((-1, *x.shape[2:])))
  return merged.reshape((*x.shape[:2], *merged.shape[1:]))


def average_pool(
  x: jax.Array, *, window: int, stride: int | None = None, padding: int = 0
) -> jax.Array:
  """Returns the means of square windows: [N, H, W, C] -> [N, H', W', C].

  As PyTorch's AvgPool2d: incomplete windows are dropped, padding is counted.

  Raises:
    InputError: the maps are smaller than the window.
  """
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
