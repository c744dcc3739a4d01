"""Operations of each kind of node of a graph: (MACs, ACs) for one example."""

import functools
from collections.abc import Callable
from fractions import Fraction

import numpy as np

from mpbn_jax.analysis.conventions import Convention
from mpbn_jax.analysis.inputs import Inputs
from mpbn_jax.graph import Node

Counts = tuple[Fraction, Fraction]  # MACs, ACs


def count(
  node: Node, inputs: Inputs, convention: Convention, *, steps: int
) -> Counts:
  """Returns (MACs, ACs) of a node for one example, the mean over a data set.

  Args:
    node: any node.
    inputs: what the nodes of its graph returned.
    convention: how to count.
    steps: the number of first steps that are counted.
  """
  function = COUNTS.get(node.kind)
  if function is None:
    return Fraction(0), Fraction(0)
  return function(node, inputs, convention, steps)


def _read(inputs, node, convention, steps):
  """Returns ([counts of nonzero [steps, ...]], whether all are binary)."""
  outputs = inputs.of(node)
  ternary = convention.spikes == '-1, 0, 1'
  binary = all(out.ternary if ternary else out.binary for out in outputs)
  counts = [out.nonzero[:steps].astype(np.int64) for out in outputs]
  return counts, binary


def _as(binary, operations):
  operations = Fraction(operations)
  zero = Fraction(0)
  return (zero, operations) if binary else (operations, zero)


def _weighted(node, inputs, convention, steps):
  """Counts a convolution or a linear layer."""
  (nonzero,), binary = _read(inputs, node, convention, steps)
  weights = _weights(node, convention.zero_weights)[:steps]
  if node.kind == 'dense':
    nonzero = nonzero.reshape((len(nonzero), 1, 1, -1))
  met = functools.partial(_met, node, weights)
  if convention.padding:
    one = weights.sum((1, 2, 3)) * int(np.prod(node.shape[:-1]))
  else:
    one = met(np.ones((len(weights), *nonzero.shape[1:]), np.int64))
  dense = int(np.broadcast_to(one, steps).sum())
  bias = 0
  if convention.bias and 'bias' in node.arrays:
    bias = steps * int(np.prod(node.shape))
  rule = convention.accumulates if binary else convention.multiplies
  if rule == 'rate':
    share = Fraction(int(nonzero.sum()), inputs.examples * nonzero.size)
    return _as(binary, (dense + bias) * share)
  if rule == 'dense':
    return _as(binary, dense + bias)
  exact = Fraction(int(met(nonzero).sum()), inputs.examples)
  return _as(binary, exact + bias)


def _weights(node, zeros_too):
  """Returns how many weights each input channel has at each tap, int64.

  [T or 1, rows, columns, C_in].
  """
  kernel = node.arrays['kernel'] != 0
  if zeros_too:
    kernel = np.ones_like(kernel)
  if node.kind == 'dense':
    counts = kernel.sum(-1, dtype=np.int64)  # [(T,) C_in]
    return counts.reshape((-1, 1, 1, counts.shape[-1]))
  groups = node.settings['groups']
  *_, rows, columns, fan_in, features = kernel.shape
  kernel = kernel.reshape(
    (-1, rows, columns, fan_in, groups, features // groups)
  )
  counts = kernel.sum(
    -1, dtype=np.int64
  )  # [T or 1, rows, columns, C_in / g, g]
  counts = np.swapaxes(counts, -1, -2)
  return counts.reshape((len(counts), rows, columns, groups * fan_in))


def _met(node, weights, nonzero):
  """Returns how many weights nonzero inputs [t, H, W, C] meet, int64 [t]."""
  if node.kind == 'dense':
    reach = [np.ones((1, 1), np.int64)] * 2
  else:
    reach = [
      _reach(
        side,
        outputs=outputs,
        size=size,
        stride=node.settings['stride'],
        padding=node.settings['padding'],
      )
      for side, outputs, size in zip(
        nonzero.shape[1:3], node.shape[:2], weights.shape[1:3], strict=True
      )
    ]
  # [t, rows, columns, C]: how often a nonzero input is under each tap.
  under = np.einsum('thwc,hi->tiwc', nonzero, reach[0])
  under = np.einsum('tiwc,wj->tijc', under, reach[1])
  return (under * weights).sum((1, 2, 3))


def _reach(side, *, outputs, size, stride, padding):
  """Returns whether an output has each input under each tap, int64 [H, k]."""
  place = np.arange(side)[:, None] + padding - np.arange(size)
  inside = (place % stride == 0) & (place >= 0) & (place // stride < outputs)
  return inside.astype(np.int64)


def _scale(node, inputs, convention, steps):
  (nonzero,), binary = _read(inputs, node, convention, steps)
  if not convention.scales:
    return _as(binary, 0)
  if not binary and convention.multiplies == 'dense':
    return _as(binary, nonzero.size)
  return _as(binary, Fraction(int(nonzero.sum()), inputs.examples))


def _pool(node, inputs, convention, steps):
  (nonzero,), binary = _read(inputs, node, convention, steps)
  if convention.pooling == 'none':
    return _as(True, 0)
  if convention.pooling == 'inputs':
    share = Fraction(1)
    if binary:
      share = Fraction(int(nonzero.sum()), inputs.examples * nonzero.size)
    return _as(binary, nonzero.size * share)
  outputs = int(np.prod(node.shape)) * len(nonzero)
  if node.kind == 'average_pool':
    return _as(True, outputs * (node.settings['window'] ** 2 - 1))
  return _as(True, nonzero.size - outputs)


def _mean_over_time(node, inputs, convention, steps):
  (nonzero,), _ = _read(inputs, node, convention, steps)
  additions = nonzero.size - int(np.prod(node.shape))
  return _as(True, additions * (convention.pooling == 'additions'))


def _add(node, inputs, convention, steps):
  counts, binary = _read(inputs, node, convention, steps)
  if not convention.sums:
    return _as(True, 0)
  if binary:
    total = sum(int(each.sum()) for each in counts)
    return _as(True, Fraction(total, inputs.examples))
  return _as(True, counts[0].size)


def _neurons(node, inputs, convention, steps):
  del inputs
  return _as(True, steps * int(np.prod(node.shape)) * convention.neurons)


COUNTS: dict[str, Callable[..., Counts]] = {
  'convolution': _weighted,
  'dense': _weighted,
  'scale': _scale,
  'average_pool': _pool,
  'mean_over_space': _pool,
  'mean_over_time': _mean_over_time,
  'add': _add,
  'neurons': _neurons,
}
