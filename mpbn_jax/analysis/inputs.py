"""Nonzero inputs of the nodes of a graph, counted on a data set."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mpbn_jax import memory, sharding
from mpbn_jax.analysis.watching import after
from mpbn_jax.errors import InputError
from mpbn_jax.evaluation import sharded_batches
from mpbn_jax.experiment import Experiment
from mpbn_jax.graph import Graph, Node
from mpbn_jax.layers import average_pool, mean_over_space, over_time
from mpbn_jax.neuron import lif_scan_from
from mpbn_jax.ops.convolution import convolution

_LARGEST = np.iinfo(np.int32).max


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Output:
  """What a node of a graph returned on a data set: the input of its readers.

  Attributes:
    nonzero: int [T, ...]: for how many examples each value was not 0.
    binary: whether all values were 0 or 1.
    ternary: whether all values were -1, 0 or 1.
  """

  nonzero: np.ndarray
  binary: bool
  ternary: bool


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Inputs:
  """What the nodes of a graph returned on a data set.

  Attributes:
    examples: number of examples.
    outputs: {node: what it returned}. Currents, which only neurons and sums
      read, are not looked at: they count as real numbers that are not 0.
    static: whether every example was one image, shown at every step.
  """

  examples: int
  outputs: Mapping[str, Output]
  static: bool

  def of(self, node: Node) -> tuple[Output, ...]:
    """Returns what a node read."""
    return tuple(self.outputs[name] for name in node.inputs)


def count_inputs(
  graph: Graph, experiment: Experiment, *, split: str = 'test'
) -> Inputs:
  """Returns the nonzero inputs of all nodes of a graph on a split.

  Streamed like `analysis.activity`: the counts are integers, and memory does
  not grow with the data set.

  Args:
    graph: from `network_graph`, of the experiment's network.
    experiment: from `experiment.build`.
    split: usually 'test'.

  Raises:
    InputError: the split is too large to be counted.
  """
  size = len(experiment.dataset.splits[split])
  if size > _LARGEST:
    raise InputError(f'expected at most {_LARGEST:,} examples, got {size:,}')
  where = sharding.replicated(experiment.mesh)
  normalize = experiment.dataset.spec.normalize
  batches = (
    (normalize(batch['image']), batch['mask'])
    for batch in sharded_batches(experiment, split)
  )
  static = not experiment.dataset.spec.frames
  return _counts_of(graph, batches, where, examples=size, static=static)


def inputs_of(graph: Graph, frames: jax.Array) -> Inputs:
  """Returns the nonzero inputs of all nodes of a graph for given frames.

  Args:
    graph: from `network_graph`.
    frames: normalized frames [B, T, H, W, C], or images [B, H, W, C].

  Example:
    >>> from mpbn_jax import fold_all
    >>> from mpbn_jax.graph import network_graph
    >>> graph = network_graph(model, fold_all(variables), frame_shape=(8, 8, 1))
    >>> found = inputs_of(graph, x)
    >>> found.examples, found.outputs['lif1'].binary
    (8, True)
  """
  frames = jnp.asarray(frames, jnp.float32)
  mask = jnp.ones(len(frames), bool)
  return _counts_of(
    graph,
    [(frames, mask)],
    jax.sharding.SingleDeviceSharding(jax.devices()[0]),
    examples=len(frames),
    static=frames.ndim == 4,
  )


def _counts_of(graph, batches, where, *, examples, static):
  arrays = jax.device_put({n.name: dict(n.arrays) for n in graph.nodes}, where)
  counts = jax.device_put(_nothing(graph), where)
  add = _program(graph, where)
  for frames, mask in batches:
    counts = add(arrays, counts, frames, mask)
  outputs = {
    node.name: Output(
      nonzero=np.broadcast_to(
        np.int32(examples), (graph.num_steps, *node.shape)
      ),
      binary=False,
      ternary=False,
    )
    for node in graph.nodes
  }
  for name, (nonzero, *kinds) in jax.device_get(counts).items():
    binary, ternary = map(bool, kinds)
    outputs[name] = Output(nonzero=nonzero, binary=binary, ternary=ternary)
  return Inputs(examples=examples, outputs=outputs, static=static)


def _counted(graph):
  """Returns the names of nodes whose outputs are counted.

  What only neurons and sums read is currents: real numbers, never 0. Counting
  them would double the time of compilation.
  """
  readers = {node.name: graph.readers(node.name) for node in graph.nodes}
  return {
    node.name
    for node in graph.nodes
    if node.kind in ('input', 'neurons')
    or any(each.kind not in ('neurons', 'add') for each in readers[node.name])
  }


def _nothing(graph):
  """Returns the counts of no examples."""
  counted = _counted(graph)
  return {
    node.name: (
      np.zeros((graph.num_steps, *node.shape), np.int32),
      np.bool_(True),
      np.bool_(True),
    )
    for node in graph.nodes
    if node.name in counted
  }


def _program(graph, where):
  """Returns the compiled (arrays, counts, frames, mask) -> counts."""

  @functools.partial(
    jax.jit,
    donate_argnums=1,
    out_shardings=where,
    compiler_options=memory.compiler_options(),
  )
  def add(arrays, counts, x, mask):
    found = {}

    def count(node, value):
      if node.name not in counts:
        return value
      new = _added(counts[node.name], value, mask)
      found[node.name] = new
      return after(value, new)

    run(graph, arrays, x[:, None] if x.ndim == 4 else x, each=count)
    return found

  return add


def _added(counts, x, mask):
  """Returns the counts with those of a batch, x [B, T or 1, ...]."""
  nonzero, binary, ternary = counts
  real = mask.reshape((-1, *(1,) * (x.ndim - 1)))
  size = jnp.abs(x)
  of_three = ((x == 0) | (size == 1) | ~real).all()
  return (
    nonzero + ((x != 0) & real).sum(0, dtype=jnp.int32),
    binary & of_three & ((x >= 0) | ~real).all(),
    ternary & of_three,
  )


# ---- running a graph


def run(
  graph: Graph,
  arrays: Mapping,
  frames: jax.Array,
  *,
  each: Callable[[Node, jax.Array], jax.Array],
) -> jax.Array:
  """Returns the logits [B, K] of a graph.

  On the device, with the operations of the network itself;
  `graph.run_graph` is the slow reference.

  Args:
    graph: from `network_graph`.
    arrays: {node: its arrays}.
    frames: normalized frames [B, T, H, W, C], or [B, 1, H, W, C] for an image
      shown at every step.
    each: (node, output [B, T, ...]) -> the output that its readers get, called
      before the next node runs. T is 1 where all steps are alike.
  """
  values: dict[str, jax.Array] = {}
  for node in graph.nodes:
    inputs = [values[name] for name in node.inputs] or [frames]
    if per_step(node) or node.kind in ('neurons', 'filter'):
      inputs = [_all_steps(x, graph.num_steps) for x in inputs]
    value = _FUNCTIONS[node.kind](node, arrays[node.name], *inputs)
    values[node.name] = each(node, value)
  return value


# Axes of an array that is the same at all steps.
_AXES = {'kernel': 4, 'bias': 1, 'scale': 1, 'factor': 0}


def per_step(node: Node) -> bool:
  """Returns whether a node has weights that differ from step to step."""
  axes = {**_AXES, 'kernel': 4 if node.kind == 'convolution' else 2}
  return any(
    array.ndim > axes[name]
    for name, array in node.arrays.items()
    if name in axes
  )


def _all_steps(x, steps):
  return jnp.broadcast_to(x, (x.shape[0], steps, *x.shape[2:]))


def _weighted(x, arrays, product, *, ndim):
  kernel = arrays['kernel']
  if kernel.ndim > ndim:
    parts = [product(x[:, t : t + 1], kernel[t]) for t in range(x.shape[1])]
    y = jnp.concatenate(parts, 1)
  else:
    y = product(x, kernel)
  for name, operation in (('bias', jnp.add), ('factor', jnp.multiply)):
    if name in arrays:
      leaf = arrays[name]
      if leaf.ndim > _AXES[name]:  # [T, ...]
        middle = (1,) * (y.ndim - 2 - _AXES[name])
        leaf = leaf.reshape((len(leaf), *middle, *leaf.shape[1:]))
      y = operation(y, leaf)
  return y


def _convolution(node, arrays, x):
  stride, padding = node.settings['stride'], node.settings['padding']

  def product(x, kernel):
    convolve = functools.partial(
      convolution,
      kernel=kernel,
      strides=(stride, stride),
      padding=((padding, padding),) * 2,
      groups=node.settings['groups'],
    )
    return over_time(convolve, x)

  return _weighted(x, arrays, product, ndim=4)


def _dense(node, arrays, x):
  del node
  return _weighted(x.reshape((*x.shape[:2], -1)), arrays, jnp.matmul, ndim=2)


def _scale(node, arrays, x):
  del node
  scale = arrays['scale']
  if scale.ndim == 2:  # [T, C]
    scale = scale.reshape((len(scale), *(1,) * (x.ndim - 3), -1))
  return scale * x


def _average_pool(node, arrays, x):
  del arrays
  return over_time(functools.partial(average_pool, **node.settings), x)


def _neurons(node, arrays, currents):
  threshold, polarity = arrays['threshold'], arrays['polarity']

  def fire(state, u):
    fired = polarity * u > polarity * threshold
    return state, fired.astype(u.dtype)

  _, spikes = lif_scan_from(
    (arrays['start'], None),
    jnp.moveaxis(currents, 1, 0),
    tau=arrays['tau'],
    fire=fire,
    reset=node.settings['reset'],
    v_th=arrays.get('v_th'),
    unroll=True,
  )
  return jnp.moveaxis(spikes, 0, 1)


def _filter(node, arrays, spikes):
  del arrays

  def step(a, s):
    a = node.settings['tau_s'] * a + s
    return a, a

  by_time = jnp.moveaxis(spikes, 1, 0)
  _, filtered = jax.lax.scan(step, jnp.zeros_like(by_time[0]), by_time)
  return jnp.moveaxis(filtered, 0, 1)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
  'input': lambda node, arrays, frames: frames,
  'convolution': _convolution,
  'dense': _dense,
  'scale': _scale,
  'average_pool': _average_pool,
  'mean_over_space': lambda node, arrays, x: mean_over_space(x),
  'add': lambda node, arrays, x, y: x + y,
  'neurons': _neurons,
  'filter': _filter,
  'mean_over_time': lambda node, arrays, x: x.mean(1),
}
