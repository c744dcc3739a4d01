"""The graph of a network: its nodes, and what each kind of node must have."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mpbn_jax.errors import InputError, unknown
from mpbn_jax.neuron import RESETS

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Node:
  """One operation of a graph.

  Attributes:
    name: unique in the graph: the path of a layer, 'stage1_block1/conv1'
      (followed by '(2)', ... where the layer runs again), or the kind of a
      function and a number, 'add3'.
    kind: a key of `KINDS`, which documents the kinds.
    inputs: names of the nodes that it reads.
    shape: shape of its output for one example at one step, [H, W, C] or [C].
    settings: {name: number, text or bool}.
    arrays: {name: float32 array}.
  """

  name: str
  kind: str
  inputs: tuple[str, ...] = ()
  shape: Shape = ()
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
  """What nodes of a kind have, and the shape of their output.

  Attributes:
    inputs: number of inputs.
    settings: {name: type}, all required.
    arrays: names of required arrays.
    optional: names of further arrays.
    shape: (node, *shapes of the inputs) -> shape; raises InputError for arrays
      that do not fit.
  """

  inputs: int = 1
  settings: Mapping[str, type] = dataclasses.field(default_factory=dict)
  arrays: tuple[str, ...] = ()
  optional: tuple[str, ...] = ()
  shape: Callable = lambda node, shape: shape


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Graph:
  """A network in evaluation, as nodes in the order in which they run.

  The first node is the input, a frame at each step; the last one has the
  logits. Every node but the last, which averages over time, runs at each of the
  `num_steps` steps.

  Attributes:
    nodes: nodes after all the nodes that they read.
    num_steps: number of steps T.

  Raises:
    InputError: a node is not as its kind demands, reads an unknown or later
      node, or its shape is not that of its inputs and arrays (names the node).
  """

  nodes: tuple[Node, ...]
  num_steps: int

  def __post_init__(self):
    check_graph(self)

  def __getitem__(self, name: str) -> Node:
    for node in self.nodes:
      if node.name == name:
        return node
    raise unknown('node', name, [node.name for node in self.nodes])

  def of_kind(self, *kinds: str) -> tuple[Node, ...]:
    """Returns the nodes of these kinds, in their order."""
    for kind in kinds:
      if kind not in KINDS:
        raise unknown('kind of node', kind, KINDS)
    return tuple(node for node in self.nodes if node.kind in kinds)

  def readers(self, name: str) -> tuple[Node, ...]:
    """Returns the nodes that read a node."""
    return tuple(node for node in self.nodes if name in node.inputs)


# ---- the shape of each kind; `_expect` raises for what does not fit


def _expect(node, what, good):
  if not good:
    shapes = {name: array.shape for name, array in node.arrays.items()}
    raise InputError(
      f'expected {node.kind} {node.name!r} with {what}, got {shapes or "none"} '
      f'and {dict(node.settings)}: the graph is not one that was written whole'
    )


def steps_of(array: np.ndarray, ndim: int) -> int | None:
  """Returns T of an array with one entry per step, or None."""
  return array.shape[0] if array.ndim == ndim + 1 else None


def _check_bias_and_factor(node, features):
  bias, factor = node.arrays.get('bias'), node.arrays.get('factor')
  ok = bias is None or (bias.ndim in (1, 2) and bias.shape[-1] == features)
  _expect(node, f'a bias of {features} channels', ok)
  _expect(node, 'a factor per step', factor is None or factor.ndim == 1)


def _convolution(node, shape):
  kernel = node.arrays['kernel']
  groups, stride = node.settings['groups'], node.settings['stride']
  padding = node.settings['padding']
  good = kernel.ndim in (4, 5) and len(shape) == 3
  good = good and groups >= 1 and stride >= 1 and padding >= 0
  _expect(node, 'a kernel [k, k, C_in, C_out] on maps', good)
  *_, rows, columns, fan_in, features = kernel.shape
  good = fan_in * groups == shape[-1] and features % groups == 0
  _expect(node, f'a kernel for {shape[-1]} channels', good)
  _check_bias_and_factor(node, features)
  sides = tuple(
    (side + 2 * padding - size) // stride + 1
    for side, size in zip(shape[:2], (rows, columns), strict=True)
  )
  _expect(node, f'a kernel within maps of {shape[:2]}', min(sides) > 0)
  return (*sides, features)


def _dense(node, shape):
  kernel = node.arrays['kernel']
  good = kernel.ndim in (2, 3) and kernel.shape[-2] == math.prod(shape)
  _expect(node, f'a kernel for inputs of shape {shape}', good)
  _check_bias_and_factor(node, kernel.shape[-1])
  return kernel.shape[-1:]


def _scale(node, shape):
  scale = node.arrays['scale']
  good = scale.ndim in (1, 2) and scale.shape[-1] == shape[-1]
  _expect(node, f'a scale of {shape[-1]} channels', good)
  return shape


def _average_pool(node, shape):
  window, stride = node.settings['window'], node.settings['stride']
  padding = node.settings['padding']
  ceil = node.settings['ceil_mode']
  good = len(shape) == 3 and window >= 1 and stride >= 1 and padding >= 0
  good = good and not (ceil and (padding or window != stride))
  _expect(node, 'windows on maps', good)
  if ceil:
    sides = tuple(-(-side // window) for side in shape[:2])
  else:
    sides = tuple(
      (side + 2 * padding - window) // stride + 1 for side in shape[:2]
    )
  _expect(node, f'windows within maps of {shape[:2]}', min(sides) > 0)
  return (*sides, shape[-1])


def _neurons(node, shape):
  threshold, polarity = node.arrays['threshold'], node.arrays['polarity']
  good = threshold.shape in (shape[-1:], shape)
  good = good and threshold.shape == polarity.shape
  _expect(node, f'thresholds and polarities of {shape}', good)
  _expect(node, 'polarities +1 and -1', np.isin(polarity, (-1, 1)).all())
  tau, start = node.arrays['tau'], node.arrays['start']
  good = tau.shape == start.shape == () and 0 <= tau <= 1
  _expect(node, 'a tau in [0, 1] and a start', good)
  reset, v_th = node.settings['reset'], node.arrays.get('v_th')
  _expect(node, f'one of the resets {", ".join(RESETS)}', reset in RESETS)
  good = (v_th is not None) == (reset == 'soft')
  good = good and (v_th is None or v_th.shape in ((), shape[-1:]))
  _expect(node, 'a v_th, if the reset is soft', good)
  return shape


def _add(node, shape, other):
  _expect(node, f'inputs of one shape ({shape} and {other})', shape == other)
  return shape


def _filter(node, shape):
  _expect(node, 'a tau_s in [0, 1)', 0 <= node.settings['tau_s'] < 1)
  return shape


# Weights with a leading axis T differ from step to step. `factor`, [T],
# multiplies the currents of each step. `step` and `bias_step`, [C], are the
# units of a quantized graph (`quantize`): kernel or scale, bias, and threshold
# and v_th are integers times these.
KINDS: dict[str, Kind] = {
  # Frames.
  'input': Kind(inputs=0),
  # kernel [(T,) k, k, C_in / groups, C_out], bias [(T,) C_out]; cross-
  # correlation, zeros on every side.
  'convolution': Kind(
    settings={'stride': int, 'padding': int, 'groups': int},
    arrays=('kernel',),
    optional=('bias', 'factor', 'step', 'bias_step'),
    shape=_convolution,
  ),
  # kernel [(T,) C_in, C_out], bias [(T,) C_out]; reads maps flattened, row by
  # row.
  'dense': Kind(
    arrays=('kernel',),
    optional=('bias', 'factor', 'step', 'bias_step'),
    shape=_dense,
  ),
  # scale [(T,) C].
  'scale': Kind(arrays=('scale',), optional=('step',), shape=_scale),
  # As `layers.average_pool`.
  'average_pool': Kind(
    settings={'window': int, 'stride': int, 'padding': int, 'ceil_mode': bool},
    shape=_average_pool,
  ),
  'mean_over_space': Kind(shape=lambda node, shape: shape[-1:]),
  'add': Kind(inputs=2, shape=_add),
  # u = tau * u_res + c; fire if polarity * u > polarity * threshold; then reset
  # to 0, or subtract v_th. threshold and polarity [C] or [H, W, C]; tau and
  # start, u_res before the first step, are scalars.
  'neurons': Kind(
    settings={'reset': str},
    arrays=('threshold', 'polarity', 'tau', 'start'),
    optional=('v_th', 'step'),
    shape=_neurons,
  ),
  # a = tau_s * a + s, the synaptic filter.
  'filter': Kind(settings={'tau_s': float}, shape=_filter),
  'mean_over_time': Kind(),
}


def check_graph(graph: Graph) -> None:
  """Raises InputError unless a graph is consistent; see `Graph`."""
  if not (type(graph.num_steps) is int and graph.num_steps >= 1):
    raise InputError(
      f'expected a number of steps >= 1, got {graph.num_steps!r}: give a graph '
      'that network_graph returned'
    )
  shapes: dict[str, Shape] = {}
  for node in graph.nodes:
    _check_node(node, graph.num_steps)
    if node.name in shapes:
      raise InputError(f'expected one node {node.name!r} in a graph, got two')
    for name in node.inputs:
      if name not in shapes:
        raise InputError(
          f'expected {node.name!r} to read nodes before it, got {name!r}: give '
          'nodes in the order in which they run'
        )
    inputs = [shapes[name] for name in node.inputs]
    shape = KINDS[node.kind].shape(node, *inputs) if inputs else node.shape
    _expect(node, f'an output of shape {shape}', node.shape == shape)
    for name in ('step', 'bias_step'):
      if name in node.arrays:
        good = node.arrays[name].shape == node.shape[-1:]
        _expect(node, f'a {name} per channel', good)
    shapes[node.name] = node.shape
  kinds = [node.kind for node in graph.nodes]
  if kinds[:1] != ['input'] or kinds.count('input') != 1:
    raise InputError('expected a graph that starts with its only input')
  if kinds[-1] != 'mean_over_time' or kinds.count('mean_over_time') != 1:
    raise InputError('expected a graph that ends with its only mean over time')


def _check_node(node, num_steps):
  if node.kind not in KINDS:
    raise unknown('kind of node', node.kind, KINDS)
  kind = KINDS[node.kind]
  good = len(node.inputs) == kind.inputs
  _expect(node, f'{kind.inputs} inputs', good)
  good = all(type(side) is int and side >= 1 for side in node.shape)
  _expect(node, 'a shape', good and node.shape)
  types = {name: type(value) for name, value in node.settings.items()}
  _expect(node, f'settings {list(kind.settings)}', types == kind.settings)
  names = set(node.arrays)
  good = set(kind.arrays) <= names <= {*kind.arrays, *kind.optional}
  _expect(node, f'arrays {[*kind.arrays]}', good)
  for name, array in node.arrays.items():
    _expect(node, f'a float32 {name}', array.dtype == np.float32)
    # A neuron that always or never fires has an infinite threshold.
    bad = np.isnan(array) if name == 'threshold' else ~np.isfinite(array)
    _expect(node, f'a {name} without NaN or infinity', not bad.any())
    ranks = {'kernel': 4 if node.kind == 'convolution' else 2, 'factor': 0}
    if name in ('kernel', 'bias', 'scale', 'factor'):
      steps = steps_of(array, ranks.get(name, 1))
      _expect(
        node, f'a {name} of {num_steps} steps', steps in (None, num_steps)
      )
