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
  x: jax.Array,
  *,
  window: int,
  stride: int | None = None,
  padding: int = 0,
  ceil_mode: bool = False,
) -> jax.Array:
  """Returns the means of square windows: [N, H, W, C] -> [N, H', W', C].

  As PyTorch's AvgPool2d: incomplete windows are dropped, padding is counted.
  With `ceil_mode`, windows that stick out of the far edges are kept, and their
  means are over what lies in the map (PyTorch's `ceil_mode=True` with
  `count_include_pad=False`).

  Args:
    x: maps.
    window: side of a window.
    stride: of both axes; the window where it is None.
    padding: zeros on every side.
    ceil_mode: whether incomplete windows are kept. The windows must then
      touch without overlap or padding.

  Raises:
    InputError: the maps are smaller than the window; ceil_mode with a stride
      or padding.
  """
  stride = window if stride is None else stride
  apart = window == stride and padding == 0
  height, width = x.shape[1:3]
  if ceil_mode:
    if not apart:
      raise InputError(
        'ceil_mode needs windows side by side, got window='
        f'{window}, stride={stride}, padding={padding}: use stride=None and '
        'padding=0'
      )
    over = (0, -height % window), (0, -width % window)
    if over != ((0, 0), (0, 0)):
      size = (window, window)
      pooled = nn.avg_pool(x, size, size, over, count_include_pad=False)
      return pooled.astype(x.dtype)  # the counts are float32
  if min(height, width) + 2 * padding < window:
    raise InputError(
      f'average pooling with a window of {window}x{window} came to maps of '
      f'{height}x{width}: this network needs larger images'
    )
  if apart:  # no overlap: a reshape and a mean
    n, *_, channels = x.shape
    height, width = height // window, width // window
    x = x[:, : height * window, : width * window]
    x = x.reshape((n, height, window, width, window, channels))
    return x.mean((2, 4))
  pads = ((padding, padding),) * 2
  return nn.avg_pool(x, (window, window), (stride, stride), pads)
