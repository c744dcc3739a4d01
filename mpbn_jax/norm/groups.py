"""Batch statistics of groups of a batch (ghost batch normalization)."""

from collections.abc import Callable
from typing import Any

import jax

from mpbn_jax.errors import InputError
from mpbn_jax.norm import base


def check_groups(batch_size: int, groups: int) -> None:
  """Raises InputError unless the groups divide a batch."""
  if batch_size % groups:
    raise InputError(
      f'stats_groups must divide the batch of {batch_size} examples, got '
      f'{groups}: set another one, or another batch size'
    )


def in_groups(
  function: Callable[[jax.Array], tuple],
  x: jax.Array,
  *,
  stats: base.Leaves,
  groups: int,
  axis: int = 0,
) -> tuple[Any, ...]:
  """Returns function(x), with batch statistics for each group of the batch.

      x_g = the g-th of G parts of consecutive examples of x
      y_g, stats_g = function(x_g)
      y = y_1, ..., y_G along the batch,  stats = mean over g of stats_g

  With momentum m, the running statistics therefore move once, to (1 - m) * run
  + m * (mean over groups of their means and unbiased variances). They do not
  contain the variance between the means of groups. Hoffer et al. 2017
  (1705.08741), who introduced such groups, let running statistics decay once
  for each group instead. PyTorch's `DistributedDataParallel` without
  SyncBatchNorm has a group for each process, and keeps the running statistics
  of process 0 alone.

  Groups that lie whole on one device exchange nothing between devices but the
  running statistics. That is so if the number of groups is a multiple of the
  number of devices, which share the batch in the same order.

  Args:
    function: x -> (y, new statistics, *rest). y has the batch along `axis`,
      arrays in the rest have it first.
    x: [..., B, ...], with the batch along `axis`.
    stats: the statistics before. If all are constants, the function has no
      batch statistics and is called once, with the whole batch.
    groups: the number of groups G; 1 calls the function with the whole batch.
    axis: the batch axis of x and y.

  Raises:
    InputError: the groups do not divide the batch.

  Example:
    >>> stats = {'mean': jnp.zeros(())}
    >>> center = lambda x: (x - x.mean(), {'mean': x.mean()})
    >>> x = jnp.array([1.0, 3.0, 5.0, 9.0])
    >>> y, stats = in_groups(center, x, stats=stats, groups=2)
    >>> y
    Array([-1.,  1., -2.,  2.], dtype=float32)
    >>> float(stats['mean'])
    4.5
  """
  moving = stats.keys() - set(base.CONSTANTS)
  if groups == 1 or not moving:
    return function(x)
  check_groups(x.shape[axis], groups)

  def of_group(x):
    y, new, *rest = function(x)
    return y, {name: new[name] for name in moving}, rest

  y, new, rest = jax.vmap(of_group, in_axes=axis, out_axes=(axis, 0, 0))(
    _split(x, groups, axis=axis)
  )
  averaged = {name: value.mean(0) for name, value in new.items()}
  rest = jax.tree.map(lambda x: _merged(x, axis=0), rest)
  return _merged(y, axis=axis), {**stats, **averaged}, *rest


def _split(x, groups, *, axis):
  """Returns x with B replaced by G, B / G."""
  shape = groups, x.shape[axis] // groups
  return x.reshape((*x.shape[:axis], *shape, *x.shape[axis + 1 :]))


def _merged(x, *, axis):
  """Returns x with G, B / G replaced by B."""
  return x.reshape((*x.shape[:axis], -1, *x.shape[axis + 2 :]))
