"""Comparison of two graphs of the same neurons, for example in integers."""

import dataclasses

import numpy as np

from mpbn_jax.errors import InputError
from mpbn_jax.graph.interpreter import run_graph
from mpbn_jax.graph.nodes import Graph


@dataclasses.dataclass(frozen=True)
class GraphComparison:
  """How a graph differs from another one on the same frames.

  Attributes:
    logits: logits [B, K] of the first graph.
    other_logits: logits [B, K] of the second graph.
    spikes: number of spikes compared, neurons times steps times examples.
    flips: how many of them differ if each layer of the second graph is given
      the first graph's spikes.
    free_flips: how many differ if the second graph runs freely.
  """

  logits: np.ndarray
  other_logits: np.ndarray
  spikes: int
  flips: int
  free_flips: int


def compare_graphs(
  graph: Graph, other: Graph, frames: np.ndarray, *, batch_size: int = 64
) -> GraphComparison:
  """Returns how a graph differs from another, spike by spike.

  Args:
    graph: from `network_graph`.
    other: a graph with the same neuron layers, such as `quantize(graph)`.
    frames: [B, T, H, W, C] or images [B, H, W, C], B >= 1.
    batch_size: number of examples that are interpreted at once.

  Raises:
    InputError: the graphs have other neuron layers, or no frames are given.

  Example:
    >>> from mpbn_jax import fold_all
    >>> from mpbn_jax.graph import network_graph, quantize
    >>> graph = network_graph(model, fold_all(variables), frame_shape=(8, 8, 1))
    >>> found = compare_graphs(graph, quantize(graph), np.asarray(x))
    >>> found.flips < 0.01 * found.spikes
    True
  """
  layers = [
    [(node.name, node.shape) for node in one.of_kind('neurons')]
    for one in (graph, other)
  ]
  if layers[0] != layers[1]:
    raise InputError(
      'expected graphs with the same neuron layers, got '
      f'{", ".join(name for name, _ in layers[0])} and '
      f'{", ".join(name for name, _ in layers[1])}: compare graphs of one '
      'network'
    )
  if not (len(frames) and batch_size >= 1):
    raise InputError(
      f'expected frames and a batch_size >= 1, got {len(frames)} examples and '
      f'{batch_size}'
    )
  logits, other_logits, spikes, flips, free_flips = [], [], 0, 0, 0
  for start in range(0, len(frames), batch_size):
    batch = frames[start : start + batch_size]
    ours, y = run_graph(graph, batch)
    fed, _ = run_graph(other, batch, given_spikes=ours)
    free, other_y = run_graph(other, batch)
    logits.append(y)
    other_logits.append(other_y)
    for name, layer in ours.items():
      spikes += layer.size
      flips += int((fed[name] != layer).sum())
      free_flips += int((free[name] != layer).sum())
  return GraphComparison(
    logits=np.concatenate(logits),
    other_logits=np.concatenate(other_logits),
    spikes=spikes,
    flips=flips,
    free_flips=free_flips,
  )
