"""A graph as a function of JAX, for exporters and for fast comparisons."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from mpbn_jax import layers
from mpbn_jax.graph.nodes import Graph, Node
from mpbn_jax.neuron import kept, lif_step


def function_of(
  graph: Graph, *, normalize: Callable[[jax.Array], jax.Array] = lambda x: x
) -> Callable[[jax.Array], tuple[jax.Array, dict[str, jax.Array]]]:
  """Returns a graph as a pure function, with its loop over time unrolled.

  Args:
    graph: from `network_graph`, `quantize` or `read_network`.
    normalize: what becomes of images first, `Spec.normalize` for those of a
      data set.

  Returns:
    images [B, H, W, C], or frames [B, T, H, W, C], -> (logits [B, K], {neuron
    layer: spikes [B, T, ..., C]}).

  Example:
    >>> from mpbn_jax import fold_all
    >>> from mpbn_jax.graph import network_graph
    >>> graph = network_graph(model, fold_all(variables), frame_shape=(8, 8, 1))
    >>> logits, spikes = jax.jit(function_of(graph))(x)
    >>> logits.shape, spikes['lif1'].shape
    ((8, 10), (8, 3, 8, 8, 4))
  """

  def run(images):
    x = normalize(images)
    potentials: dict[str, Any] = {}
    spikes: dict[str, list] = {n.name: [] for n in graph.of_kind('neurons')}
    total: Any = 0
    for t in range(graph.num_steps):
      values = {graph.nodes[0].name: x[:, t] if x.ndim == 5 else x}
      for node in graph.nodes[1:-1]:
        inputs = [values[name] for name in node.inputs]
        if node.kind in _WITH_POTENTIAL:
          y, potentials[node.name] = _WITH_POTENTIAL[node.kind](
            node, *inputs, potentials.get(node.name)
          )
        else:
          y = _FUNCTIONS[node.kind](node, t, *inputs)
        values[node.name] = y
        if node.kind == 'neurons':
          spikes[node.name].append(y)
      total = total + values[graph.nodes[-1].inputs[0]]
    by_layer = {name: jnp.stack(s, 1) for name, s in spikes.items()}
    return total / graph.num_steps, by_layer

  return run


# ---- one step of each kind of node (`graph.KINDS`)


def _weights(node: Node, t: int, *, ndim: int):
  """Returns (kernel, what biases and factors make of a product) of a step."""

  def of_step(name, rank):
    array = node.arrays.get(name)
    return array if array is None or array.ndim == rank else array[t]

  kernel, bias = of_step('kernel', ndim), of_step('bias', 1)
  factor = of_step('factor', 0)

  def rest(y):
    y = y if bias is None else y + bias
    return y if factor is None else y * factor

  return kernel, rest


def _convolution(node, t, x):
  kernel, rest = _weights(node, t, ndim=4)
  side = (node.settings['padding'],) * 2
  y = lax.conv_general_dilated(
    x,
    kernel,
    (node.settings['stride'],) * 2,
    (side, side),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=node.settings['groups'],
  )
  return rest(y)


def _dense(node, t, x):
  kernel, rest = _weights(node, t, ndim=2)
  return rest(x.reshape((x.shape[0], -1)) @ kernel)


def _scale(node, t, x):
  scale = node.arrays['scale']
  return x * (scale[t] if scale.ndim == 2 else scale)


def _average_pool(node, t, x):
  del t
  if node.settings['ceil_mode']:
    return layers.average_pool(x, **node.settings)
  window, stride = node.settings['window'], node.settings['stride']
  side = (node.settings['padding'],) * 2
  # jax2onnx replaces this function, by one that takes its arguments by name
  # only, and that would leave the padding out of the means.
  return nn.avg_pool(
    jnp.pad(x, ((0, 0), side, side, (0, 0))),
    window_shape=(window, window),
    strides=(stride, stride),
    padding='VALID',
  )


def _neurons(node, currents, u_res):
  threshold, polarity = node.arrays['threshold'], node.arrays['polarity']

  def fire(state, u):
    fired = polarity * u > polarity * threshold
    return state, fired.astype(currents.dtype)

  if u_res is None:
    u_res = jnp.full_like(currents, node.arrays['start'])
  (u_res, _), spikes = lif_step(
    (u_res, None),
    currents,
    tau=node.arrays['tau'],
    fire=fire,
    reset=node.settings['reset'],
    v_th=node.arrays.get('v_th'),
  )
  return spikes, u_res


def _filter(node, spikes, a):
  a = spikes if a is None else kept(node.settings['tau_s'], a) + spikes
  return a, a


_WITH_POTENTIAL: dict[str, Callable] = {'neurons': _neurons, 'filter': _filter}
_FUNCTIONS: dict[str, Callable] = {
  'convolution': _convolution,
  'dense': _dense,
  'scale': _scale,
  'average_pool': _average_pool,
  'mean_over_space': lambda node, t, x: x.mean(tuple(range(1, x.ndim - 1))),
  'add': lambda node, t, x, y: x + y,
}
