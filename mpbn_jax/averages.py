"""Exponential moving averages of a network's variables."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mpbn_jax.errors import InputError

_LEAST_BITS = 32


def start(variables: Mapping) -> dict[str, Any]:
  """Returns the averages before the first update: copies of the variables.

  Args:
    variables: {'params', 'batch_stats'} of a network.

  Raises:
    InputError: a floating-point variable has less than 32 bits, too few for
      the small steps of an average.

  Example:
    >>> averages = start(variables)
  """
  for path, leaf in jax.tree_util.tree_leaves_with_path(dict(variables)):
    if _is_averaged(leaf) and jnp.finfo(leaf.dtype).bits < _LEAST_BITS:
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      raise InputError(
        f'averages need variables of float32, got {name} of {leaf.dtype}, '
        'which rounds small steps away: store it in float32, or set '
        '--config.optimizer.ema=0'
      )
  # Copies, because training donates the variables and their averages.
  return jax.tree.map(jnp.copy, dict(variables))


def update(
  averages: Mapping, variables: Mapping, *, decay: float, step: jax.Array | int
) -> dict[str, Any]:
  """Returns the averages after one update of the variables.

      average = d * average + (1 - d) * variable
      d = min(decay, (1 + step) / (10 + step))

  The smaller d of the first steps forgets the initial variables sooner. It is
  that of TensorFlow's `tf.train.ExponentialMovingAverage`.

  Running statistics are averaged like parameters, as in timm's `ModelEmaV2`:
  those of the latest parameters would not be the statistics of a network with
  averaged ones. Numbers that are equal stay as they are, so constants among the
  statistics (`norm.CONSTANTS`) keep their bits. What is not floating-point is
  that of `variables`.

  In float32, an average does not follow a variable whose distance to it is less
  than about 6e-8 / (1 - decay) of its value.

  Args:
    averages: of `start`, or of the update before.
    variables: {'params', 'batch_stats'} after the update.
    decay: in (0, 1), usually 0.99 to 0.9999.
    step: number of updates before this one.

  Example:
    >>> averages = start(variables)
    >>> averages = update(averages, variables, decay=0.999, step=0)
  """
  # 1 - d, without rounding 1 - decay to float32. `optax.incremental_update`
  # would change the last bit of equal numbers.
  rate = jnp.maximum(1 - decay, 9 / (10 + step))

  def one(average, variable):
    if not _is_averaged(variable):
      return variable
    return average + (rate * (variable - average)).astype(average.dtype)

  return jax.tree.map(one, dict(averages), dict(variables))


def _is_averaged(leaf):
  return jnp.issubdtype(leaf.dtype, jnp.inexact)
