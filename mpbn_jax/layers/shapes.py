"""Pooling, and functions of images applied at every time step."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mpbn_jax.errors import InputError
from mpbn_jax.layers.signal import AVERAGE_POOL, MEAN_OVER_SPACE, Signal
from mpbn_jax.layers.spikes import Spikes, check_merged, on_array


def over_time(function: Callable, x: jax.Array | Spikes) -> jax.Array | Spikes:
  """Returns a function applied to every step: [B, T, ...] -> [B, T, ...].

  Merges the axes batch-major: with B sharded, a time-major merge (T, B) makes
  XLA silently all-gather, and every device computes the whole batch.

  Raises:
    InputError: x holds normed spikes, which the function does not accept.
  """
  steps = x.shape[:2]

  def merge(x):
    if isinstance(x, Signal):
      return x.merged()
    return x.reshape((-1, *x.shape[2:]))

  def split(x):
    if isinstance(x, Signal):
      return x.split()
    return x.reshape((*steps, *x.shape[1:]))

  if isinstance(x, Spikes):
    check_merged(x, 'over_time', merged=False)
    y = function(on_array(x, merge, merged=True))
  else:
    y = function(merge(x))
  if isinstance(y, Spikes):
    check_merged(y, 'the result of a function', merged=True)
    return on_array(y, split, merged=False)
  return split(y)


def mean_over_space(x: jax.Array | Spikes) -> jax.Array | Spikes:
  """Returns the float32 means of whole maps: [B, T, ..., C] -> [B, T, C]."""
  if isinstance(x, Spikes):
    check_merged(x, 'mean_over_space', merged=False)
    return on_array(x, mean_over_space)
  if isinstance(x, Signal):
    x.check_steps('mean_over_space')
    return x.then(MEAN_OVER_SPACE, shape=x.shape[-1:])
  return x.mean(tuple(range(2, x.ndim - 1)), dtype=jnp.float32)


def _pool_of_signal(x, **settings):
  x.check_merged('average_pool')
  like = jax.ShapeDtypeStruct(x.shape, x.dtype)
  pooled = jax.eval_shape(lambda x: average_pool(x, **settings), like)
  return x.then(AVERAGE_POOL, shape=pooled.shape[1:], settings=settings)


def _average_pool_of_parts(x, window):
  """Returns the means of windows over their part inside the map.

  Not by `jax.lax.reduce_window`: XLA's CPU backend (jax 0.10.2) returns wrong
  sums for windows that are padded at one end on 1x1 maps, in batches of 356 and
  more (in those of 128 they are right).
  """
  n, *sides, channels = x.shape
  rows, columns = (
    np.minimum(window, side - np.arange(0, side, window)) for side in sides
  )
  over = [(0, -side % window) for side in sides]
  x = jnp.pad(x, ((0, 0), *over, (0, 0)))
  x = x.reshape((n, len(rows), window, len(columns), window, channels))
  inside = np.multiply.outer(rows, columns)[..., None]
  return x.sum((2, 4)) / inside.astype(x.dtype)


def average_pool(
  x: jax.Array | Spikes,
  *,
  window: int,
  stride: int | None = None,
  padding: int = 0,
  ceil_mode: bool = False,
) -> jax.Array | Spikes:
  """Returns the means of square windows: [N, H, W, C] -> [N, H', W', C].

  Like PyTorch's AvgPool2d: incomplete windows are dropped, padding is counted.
  With `ceil_mode`, windows that extend past the far edges are kept and averaged
  over their part inside the map (PyTorch's `ceil_mode=True` with
  `count_include_pad=False`).

  Args:
    x: maps.
    window: side of a window.
    stride: stride along both axes; None uses the window.
    padding: zeros on every side.
    ceil_mode: whether to keep incomplete windows. The windows must then tile
      the map, without overlap or padding.

  Raises:
    InputError: the maps are smaller than the window; ceil_mode with another
      stride or padding.
  """
  if isinstance(x, Spikes):
    check_merged(x, 'average_pool', merged=True)
    pool = functools.partial(
      average_pool,
      window=window,
      stride=stride,
      padding=padding,
      ceil_mode=ceil_mode,
    )
    return on_array(x, pool)
  stride = window if stride is None else stride
  if isinstance(x, Signal):
    return _pool_of_signal(
      x, window=window, stride=stride, padding=padding, ceil_mode=ceil_mode
    )
  apart = window == stride and padding == 0
  height, width = x.shape[1:3]
  if ceil_mode:
    if not apart:
      raise InputError(
        'ceil_mode needs windows side by side, got window='
        f'{window}, stride={stride}, padding={padding}: use stride=None and '
        'padding=0'
      )
    if height % window or width % window:
      return _average_pool_of_parts(x, window)
  if min(height, width) + 2 * padding < window:
    raise InputError(
      f'average pooling with a window of {window}x{window} got maps of '
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
