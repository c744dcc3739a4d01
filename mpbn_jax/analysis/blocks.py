"""Recorded layers, block by block where a program scans over blocks."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from mpbn_jax.evaluation import stacked_axes


def unstacked(layer: Mapping[str, jax.Array], key: str) -> jax.Array:
  """Returns what a layer recorded with the blocks first, [blocks, B, T, ...].

  A layer that is not scanned over is one block.

  Args:
    layer: from `evaluation.recorded`.
    key: the name of an array with the axes of the layer's spikes.
  """
  axes = stacked_axes(layer)
  x = jnp.moveaxis(layer[key], axes, tuple(range(len(axes))))
  return x.reshape((-1, *x.shape[len(axes) :]))


def labels_of(name: str, layer: Mapping[str, jax.Array]) -> list[str]:
  """Returns the names of a layer's blocks, in the order of `unstacked`.

  Returns [name] if it is not scanned over, else 'name[0]', 'name[1]', ....
  """
  sides = [layer['spikes'].shape[axis] for axis in stacked_axes(layer)]
  return [
    f'{name}[{",".join(map(str, index))}]' if index else name
    for index in np.ndindex(*sides)
  ]
