"""A slow, plain interpreter of graphs in NumPy, to verify what is written."""

from collections.abc import Callable, Mapping

import numpy as np

from mpbn_jax.errors import InputError
from mpbn_jax.graph.nodes import Graph, Node


def run_graph(
  graph: Graph,
  frames: np.ndarray,
  *,
  given_spikes: Mapping[str, np.ndarray] | None = None,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """Returns (spikes of every neuron layer, logits) of a graph.

  Sums of products are accumulated in float64 and rounded to float32 once;
  membrane potentials are float32, operation by operation, as in the network.

  Args:
    graph: from `network_graph`.
    frames: [B, T, H, W, C], or images [B, H, W, C] shown at every step.
    given_spikes: {neuron layer: spikes [B, T, ..., C]}, which its readers get
      in place of its own. Each layer can thus receive another network's spikes,
      so that differences do not accumulate.

  Returns:
    ({name of a neuron layer: spikes [B, T, ..., C]}, logits [B, K]).

  Raises:
    InputError: frames or given spikes have another shape.

  Example:
    >>> from mpbn_jax import fold_all
    >>> from mpbn_jax.graph import network_graph
    >>> graph = network_graph(model, fold_all(variables), frame_shape=(8, 8, 1))
    >>> spikes, logits = run_graph(graph, np.asarray(x))
    >>> spikes['lif1'].shape, logits.shape
    ((8, 3, 8, 8, 4), (8, 10))
  """
  frames = np.asarray(frames, np.float32)
  entry, steps = graph.nodes[0].shape, graph.num_steps
  if frames.shape[1:] == entry:
    frames = np.repeat(frames[:, None], steps, 1)
  if frames.shape[1:] != (steps, *entry):
    raise InputError(
      f'expected frames {["B", steps, *entry]} or images {["B", *entry]}, got '
      f'shape {list(frames.shape)}: give inputs of the network of this graph'
    )
  given = dict(given_spikes or {})
  values: dict[str, np.ndarray] = {}
  spikes: dict[str, np.ndarray] = {}
  for node in graph.nodes:
    inputs = [values[name] for name in node.inputs]
    value = _FUNCTIONS[node.kind](node, *(inputs or [frames]))
    if node.kind == 'neurons':
      spikes[node.name] = value
      if node.name in given:
        replaced = np.asarray(given.pop(node.name), np.float32)
        if replaced.shape != value.shape:
          raise InputError(
            f'expected spikes {list(value.shape)} for {node.name!r}, got '
            f'{list(replaced.shape)}: give those for the same frames'
          )
        value = replaced
    values[node.name] = value
  if given:
    raise InputError(
      f'expected spikes for the neuron layers {", ".join(spikes)}, got some '
      f'for {", ".join(sorted(given))}: give those of the network of this graph'
    )
  return spikes, values[graph.nodes[-1].name]


def _of_steps(node: Node, name: str, ndim: int, steps: int) -> list:
  """Returns an array of each step; None if there is none."""
  array = node.arrays.get(name)
  if array is None or array.ndim == ndim:
    return [array] * steps
  return list(array)


def _weighted(node, x, product, *, ndim):
  """Returns the products with kernels, [B, T, ..., C], plus the biases."""
  steps = x.shape[1]
  kernels = _of_steps(node, 'kernel', ndim, steps)
  biases = _of_steps(node, 'bias', 1, steps)
  factors = _of_steps(node, 'factor', 0, steps)
  outputs = []
  for t in range(steps):
    y = product(x[:, t].astype(np.float64), kernels[t].astype(np.float64))
    y = y.astype(np.float32)
    if biases[t] is not None:
      y = y + biases[t]
    outputs.append(y if factors[t] is None else y * factors[t])
  return np.stack(outputs, 1)


def _convolution(node, x):
  stride, padding = node.settings['stride'], node.settings['padding']
  groups, (height, width, features) = node.settings['groups'], node.shape
  side = (padding, padding)

  def product(x, kernel):
    x = np.pad(x, ((0, 0), side, side, (0, 0)))
    maps, kernels = np.split(x, groups, 3), np.split(kernel, groups, 3)
    y = np.zeros((len(x), height, width, features))
    parts = np.split(y, groups, 3)  # views
    for part, inputs, weights in zip(parts, maps, kernels, strict=True):
      for i, j in np.ndindex(kernel.shape[:2]):  # less memory than windows
        down = slice(i, i + stride * (height - 1) + 1, stride)
        right = slice(j, j + stride * (width - 1) + 1, stride)
        part += inputs[:, down, right] @ weights[i, j]
    return y

  return _weighted(node, x, product, ndim=4)


def _dense(node, x):
  x = x.reshape((*x.shape[:2], -1))
  return _weighted(node, x, np.matmul, ndim=2)


def _scale(node, x):
  scale = node.arrays['scale']
  if scale.ndim == 2:  # [T, C]
    scale = scale.reshape((len(scale), *(1,) * (x.ndim - 3), -1))
  return scale * x


def _average_pool(node, x):
  window, stride = node.settings['window'], node.settings['stride']
  padding = node.settings['padding']
  *_, height, width, _ = x.shape
  x = x.astype(np.float64)
  if node.settings['ceil_mode']:  # means over the part inside the map
    rows = [x[:, :, i : i + window] for i in range(0, height, window)]
    pooled = [
      [row[:, :, :, j : j + window].mean((2, 3)) for row in rows]
      for j in range(0, width, window)
    ]
    return np.stack([np.stack(c, 2) for c in pooled], 3).astype(np.float32)
  side = (padding, padding)
  x = np.pad(x, ((0, 0), (0, 0), side, side, (0, 0)))
  windows = np.lib.stride_tricks.sliding_window_view(
    x, (window, window), axis=(2, 3)
  )[:, :, ::stride, ::stride]
  return windows.mean((-2, -1)).astype(np.float32)


def _neurons(node, currents):
  arrays, soft = node.arrays, node.settings['reset'] == 'soft'
  threshold, polarity = arrays['threshold'], arrays['polarity']
  kept, spikes = arrays['start'], []
  for t in range(currents.shape[1]):
    u = arrays['tau'] * kept + currents[:, t]
    fired = (polarity * u > polarity * threshold).astype(np.float32)
    kept = u - arrays['v_th'] * fired if soft else u * (1 - fired)
    spikes.append(fired)
  return np.stack(spikes, 1)


def _filter(node, spikes):
  tau_s, a, filtered = np.float32(node.settings['tau_s']), np.float32(0), []
  for t in range(spikes.shape[1]):
    a = tau_s * a + spikes[:, t]
    filtered.append(a)
  return np.stack(filtered, 1)


def _mean(x, axes):
  return x.mean(axes, dtype=np.float64).astype(np.float32)


_FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {
  'input': lambda node, frames: frames,
  'convolution': _convolution,
  'dense': _dense,
  'scale': _scale,
  'average_pool': _average_pool,
  'mean_over_space': lambda node, x: _mean(x, tuple(range(2, x.ndim - 1))),
  'add': lambda node, x, y: x + y,
  'neurons': _neurons,
  'filter': _filter,
  'mean_over_time': lambda node, x: _mean(x, 1),
}
