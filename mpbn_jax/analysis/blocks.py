"""Recorded layers, block by block where a program scans over blocks."""

import itertools
from collections.abc import Mapping, Sequence

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


def in_order(labels: Mapping[str, Sequence[str]]) -> list[tuple[str, int]]:
  """Returns (layer, block) in the order in which they run.

  A scan runs all layers of its first block, then those of the second.

  Args:
    labels: {layer: names of its blocks}, in the order of the first blocks.

  Example:
    >>> in_order({'a/lif1': ['0', '1'], 'a/lif2': ['0', '1'], 'b': ['']})
    [('a/lif1', 0), ('a/lif2', 0), ('a/lif1', 1), ('a/lif2', 1), ('b', 0)]
  """

  def scan_of(name):
    count = len(labels[name])
    return (name.split('/')[0], count) if count > 1 else name

  order = []
  for _, together in itertools.groupby(labels, scan_of):
    names = list(together)
    blocks = range(len(labels[names[0]]))
    order += [(name, block) for block in blocks for name in names]
  return order
