"""A slow, plain interpreter of NIR graphs in NumPy, to verify what is written.

It knows the NIR specification and nothing of this package's graphs.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mpbn_jax.errors import InputError


def run_nir(
  graph: Any,
  frames: np.ndarray,
  *,
  dt: float,
  given_spikes: Mapping[str, np.ndarray] | None = None,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """Returns (spikes of every LIF node, outputs) of a NIR graph.

  Forward Euler with the step dt, in float32: v' = v + dt / tau * (v_leak - v +
  r * I); a neuron fires if v' > v_threshold and is then set to v_reset.
  Potentials start at v_leak. Edges into the same node add up.

  Args:
    graph: a `nir.NIRGraph` of Input, Conv2d, AvgPool2d, LIF and Output nodes
      without cycles.
    frames: [B, T, C, H, W], one input per step.
    dt: step, in the unit of tau.
    given_spikes: {LIF node: spikes [B, T, C, H, W]}, which its readers get in
      place of its own.

  Returns:
    ({LIF node: spikes [B, T, C, H, W]}, outputs [B, T, ...]).

  Raises:
    InputError: the graph has another kind of node, or a cycle; frames or spikes
      have another shape.
  """
  given, spikes = dict(given_spikes or {}), {}
  into: dict[str, list[str]] = {name: [] for name in graph.nodes}
  for source, target in graph.edges:
    into[target].append(source)
  values: dict[str, np.ndarray] = {}
  waiting = list(graph.nodes)
  while waiting:
    ready = [n for n in waiting if all(s in values for s in into[n])]
    if not ready:
      raise InputError(
        f'expected a NIR graph without cycles, got one of {", ".join(waiting)}'
      )
    for name in ready:
      waiting.remove(name)
      node, kind = graph.nodes[name], type(graph.nodes[name]).__name__
      if kind == 'Input':
        values[name] = np.asarray(frames, np.float32)
        side = tuple(map(int, node.input_type['input']))
        _check_shape(name, values[name], (*values[name].shape[:2], *side))
        continue
      x = _sum([values[source] for source in into[name]])
      if kind not in ('Output', 'LIF', *_STATELESS):
        raise InputError(
          f'expected Input, Conv2d, AvgPool2d, LIF and Output nodes, got '
          f'{kind} {name!r}: this interpreter knows what write_nir writes'
        )
      if kind == 'Output':
        values[name] = x
      elif kind == 'LIF':
        spikes[name] = _lif(node, x, dt)
        values[name] = np.asarray(given.pop(name, spikes[name]), np.float32)
        _check_shape(name, values[name], x.shape)
      else:
        merged = x.reshape((-1, *x.shape[2:]))
        y = _STATELESS[kind](node, merged)
        values[name] = y.reshape((*x.shape[:2], *y.shape[1:]))
  if given:
    raise InputError(
      f'expected spikes for the LIF nodes {", ".join(spikes)}, got some for '
      f'{", ".join(sorted(given))}: use nir_names'
    )
  (output,) = (
    n for n, v in graph.nodes.items() if type(v).__name__ == 'Output'
  )
  return spikes, values[output]


def _check_shape(name, array, shape):
  if array.shape != shape:
    raise InputError(
      f'expected {name!r} of shape [B, T, C, H, W], here {list(shape)}, got '
      f'{list(array.shape)}: channels come first'
    )


def _sum(terms: list[np.ndarray]) -> np.ndarray:
  """Returns the sum of what all edges bring."""
  total = terms[0]
  for term in terms[1:]:
    total = total + term
  return total


def _lif(node, currents, dt):
  """Returns spikes [B, T, ...] of currents [B, T, ...]."""
  step = (np.float32(dt) / node.tau).astype(np.float32)
  v, spikes = np.broadcast_to(node.v_leak, currents[:, 0].shape), []
  for t in range(currents.shape[1]):
    v = v + step * (node.v_leak - v + node.r * currents[:, t])
    fired = v > node.v_threshold
    v = np.where(fired, node.v_reset, v)
    spikes.append(fired.astype(np.float32))
  return np.stack(spikes, 1)


def _windows(x, size, stride, padding):
  """Returns windows [N, C, H', W', kh, kw] of maps [N, C, H, W]."""
  rows, columns = (int(side) for side in _pair(padding))
  x = np.pad(x, ((0, 0), (0, 0), (rows, rows), (columns, columns)))
  view = np.lib.stride_tricks.sliding_window_view(x, size, axis=(2, 3))
  down, right = _pair(stride)
  return view[:, :, ::down, ::right]


def _pair(value):
  values = tuple(np.atleast_1d(value).tolist())
  return values * 2 if len(values) == 1 else values


def _conv2d(node, x):
  if node.groups != 1 or _pair(node.dilation) != (1, 1):
    raise InputError(
      f'expected a Conv2d without groups and dilation, got {node.groups} and '
      f'{node.dilation}'
    )
  weight = node.weight.astype(np.float64)
  view = _windows(
    x.astype(np.float64), weight.shape[2:], node.stride, node.padding
  )
  y = np.zeros((len(x), len(weight), *view.shape[2:4]))
  for i, j in np.ndindex(weight.shape[2:]):  # a tap at a time: little memory
    y += np.einsum(
      'nchw,oc->nohw', view[..., i, j], weight[:, :, i, j], optimize=True
    )
  return (y + node.bias[:, None, None]).astype(np.float32)


def _avg_pool2d(node, x):
  size = _pair(node.kernel_size)
  view = _windows(x.astype(np.float64), size, node.stride, node.padding)
  return view.mean((4, 5)).astype(np.float32)


_STATELESS = {'Conv2d': _conv2d, 'AvgPool2d': _avg_pool2d}
