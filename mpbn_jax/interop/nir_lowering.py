"""Lowering of graphs to the nodes and edges of NIR."""

import re
from typing import Any

import numpy as np

from mpbn_jax.errors import InputError
from mpbn_jax.graph import Graph, Node


class Names:
  """Unique names that programs can use as identifiers."""

  def __init__(self, taken: set[str]):
    self._taken = set(taken)

  def of(self, name: str) -> str:
    """Returns a name that was not returned before."""
    base = re.sub(r'\W', '_', name, flags=re.ASCII).strip('_') or 'node'
    unique, run = base, 1
    while unique in self._taken:
      run += 1
      unique = f'{base}_{run}'
    self._taken.add(unique)
    return unique


class Lowering:
  """The NIR nodes and edges of a graph; `interop.nir.write_nir` explains them.

  Each node of the graph has a factor per channel, by which its NIR node's
  output exceeds its own: that which all of its readers want, or none.
  """

  def __init__(self, nir: Any, graph: Graph, dt: float):
    self._nir, self._graph, self._dt = nir, graph, dt
    self._names = Names({'input', 'output'})
    # In the order of `nir_names`: neurons first.
    self._name = {
      node.name: self._names.of(node.name)
      for kinds in (True, False)
      for node in graph.nodes
      if (node.kind == 'neurons') is kinds
    }
    self._name[graph.nodes[0].name] = 'input'
    self._factors: dict[str, np.ndarray | None] = {}
    self._nodes: dict[str, Any] = {}
    self._edges: list[tuple[str, str]] = []
    # Names of the NIR nodes whose sum is a node's output.
    self._sources: dict[str, list[str]] = {}

  def graph(self) -> Any:
    """Returns the `nir.NIRGraph`."""
    nodes = self._graph.nodes
    for node in reversed(nodes):
      self._factors[node.name] = self._factor(node)
    for node in nodes:
      getattr(self, f'_{node.kind}')(node)
    return self._nir.NIRGraph(
      nodes=self._nodes,
      edges=self._edges,
      metadata={'dt': self._dt, 'num_steps': self._graph.num_steps},
    )

  # ---- factors

  def _factor(self, node):
    """Returns the factor per channel of a node's output; None is 1."""
    if node.kind in ('input', 'neurons'):
      return None
    wanted = [self._wanted(r) for r in self._graph.readers(node.name)]
    if not wanted or any(w is None for w in wanted):
      return None
    alike = all(np.array_equal(wanted[0], other) for other in wanted)
    return wanted[0] if alike else None

  def _wanted(self, reader):
    """Returns the factor that a reader wants of its input; None is 1."""
    if reader.kind == 'neurons':
      gain = _polarity(reader) / _leak(reader)
      return None if (gain == 1).all() else gain
    if reader.kind in ('add', 'average_pool', 'mean_over_space'):
      return self._factors[reader.name]
    return None  # a reader with weights takes its input as it is

  # ---- nodes

  def _put(self, node: Node, value: Any) -> None:
    """Adds the NIR node of a node with one input."""
    name = self._name[node.name]
    sources = self._into(node, node.inputs[0])
    self._nodes[name] = value
    self._edges += [(source, name) for source in sources]
    self._sources[node.name] = [name]

  def _into(self, reader: Node, name: str) -> list[str]:
    """Returns the NIR nodes whose sum a reader gets from a node."""
    wanted, sources = self._wanted(reader), self._sources[name]
    # A node has the factor that its readers want, or none.
    if wanted is None or self._factors[name] is not None:
      return sources
    return [self._diagonal(name, sources, wanted)]

  def _diagonal(self, name, sources, factor):
    """Adds a 1x1 convolution that multiplies each channel by a factor."""
    new = self._names.of(f'{self._name[name]}_scaled')
    kernel = np.diag(np.asarray(factor, np.float64))[None, None]
    shape = _maps(self._graph[name].shape)
    self._nodes[new] = self._conv2d(kernel, None, shape)
    self._edges += [(source, new) for source in sources]
    return new

  def _conv2d(self, kernel, bias, shape, *, stride=1, padding=0):
    """Returns a Conv2d of a kernel HWIO in float64, rounded once."""
    bias = np.zeros(kernel.shape[-1]) if bias is None else bias
    kernel = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1), np.float32)
    return self._nir.Conv2d(
      input_shape=tuple(shape[:2]),
      weight=kernel,
      bias=np.asarray(bias, np.float32),
      stride=(stride, stride),
      padding=(padding, padding),
      dilation=(1, 1),
      groups=1,
    )

  def _scaled(self, node, kernel):
    """Returns kernel and bias in float64, times the node's factor."""
    bias, factor = node.arrays.get('bias'), self._factors[node.name]
    kernel = np.asarray(kernel, np.float64)
    bias = None if bias is None else bias.astype(np.float64)
    if factor is None:
      return kernel, bias
    return kernel * factor, None if bias is None else bias * factor

  def _input(self, node):
    shape = np.array(_channels_first(_maps(node.shape)))
    self._nodes['input'] = self._nir.Input(input_type={'input': shape})
    self._sources[node.name] = ['input']

  def _convolution(self, node):
    kernel, bias = self._scaled(node, _dense_kernel(node))
    settings = node.settings
    value = self._conv2d(
      kernel,
      bias,
      self._graph[node.inputs[0]].shape,
      stride=settings['stride'],
      padding=settings['padding'],
    )
    self._put(node, value)

  def _dense(self, node):
    _check_same_at_every_step(node)
    shape = _maps(self._graph[node.inputs[0]].shape)
    if shape[0] != shape[1]:
      raise _refusal(
        node, f'a linear layer on square maps, got {shape[0]}x{shape[1]}'
      )
    kernel = node.arrays['kernel'].reshape((*shape, -1))
    self._put(node, self._conv2d(*self._scaled(node, kernel), shape))

  def _scale(self, node):
    scale = node.arrays['scale']
    if scale.ndim == 2:
      raise _refusal(node, 'the same scale at every step, got one for each')
    kernel, _ = self._scaled(node, np.diag(scale)[None, None])
    shape = _maps(node.shape)
    self._put(node, self._conv2d(kernel, None, shape))

  def _average_pool(self, node):
    settings = node.settings
    window, sides = settings['window'], self._graph[node.inputs[0]].shape[:2]
    if settings['ceil_mode'] and any(side % window for side in sides):
      raise _refusal(
        node,
        f'windows of {window}x{window} that tile its maps, got maps of '
        f'{sides[0]}x{sides[1]}, at whose edges windows are incomplete',
      )
    self._pool(
      node, (window,) * 2, (settings['stride'],) * 2, settings['padding']
    )

  def _mean_over_space(self, node):
    sides = _maps(self._graph[node.inputs[0]].shape)[:2]
    self._pool(node, sides, sides, 0)

  def _pool(self, node, window, stride, padding):
    value = self._nir.AvgPool2d(
      kernel_size=np.array(window),
      stride=np.array(stride),
      padding=np.array((padding, padding)),
    )
    self._put(node, value)

  def _add(self, node):
    sources = []
    for name in node.inputs:
      for source in self._into(node, name):
        if source in sources:  # edges are a set
          ones = np.ones(node.shape[-1])
          source = self._diagonal(name, [source], ones)
        sources.append(source)
    self._sources[node.name] = sources
    if len(self._graph.readers(node.name)) > 1:
      # One node in place of the same edges into every reader.
      sum_of_all = self._diagonal(node.name, sources, np.ones(node.shape[-1]))
      self._sources[node.name] = [sum_of_all]

  def _neurons(self, node):
    if node.settings['reset'] != 'hard':
      raise _refusal(node, f'a hard reset, got {node.settings["reset"]!r}')
    if node.arrays['start'] != 0:
      raise _refusal(
        node, f'neurons that start at 0, got {node.arrays["start"]}'
      )
    shape = _maps(node.shape)
    threshold = node.arrays['polarity'] * node.arrays['threshold']
    whole = np.broadcast_to(threshold, node.shape).reshape(shape)
    zeros = np.zeros(_channels_first(shape), np.float32)
    self._put(
      node,
      self._nir.LIF(
        tau=zeros + np.float32(self._dt / _leak(node)),
        r=zeros + 1,
        v_leak=zeros,
        v_reset=zeros,
        v_threshold=np.ascontiguousarray(whole.transpose(2, 0, 1), np.float32),
      ),
    )

  def _filter(self, node):
    raise _refusal(
      node, f'no synaptic filter, got tau_s = {node.settings["tau_s"]}'
    )

  def _mean_over_time(self, node):
    shape = np.array(_channels_first(_maps(node.shape)))
    self._nodes['output'] = self._nir.Output(output_type={'output': shape})
    sources = self._into(node, node.inputs[0])
    self._edges += [(source, 'output') for source in sources]


def _maps(shape):
  """Returns [H, W, C] of the shape of maps or of a vector."""
  return shape if len(shape) == 3 else (1, 1, *shape)


def _channels_first(shape):
  return (shape[2], *shape[:2])


def _leak(node):
  """Returns 1 - tau."""
  leak = 1 - float(node.arrays['tau'])
  if leak == 0:
    raise _refusal(node, 'a tau below 1, got 1')
  return leak


def _polarity(node):
  """Returns the polarity of each channel."""
  polarity = np.broadcast_to(node.arrays['polarity'], node.shape)
  polarity = polarity.reshape((-1, node.shape[-1])).astype(np.float64)
  if (polarity != polarity[0]).any():
    raise _refusal(
      node,
      'one polarity per channel, got both in one (element-wise scales of both '
      'signs), which no kernel can absorb',
    )
  return polarity[0]


def _check_same_at_every_step(node):
  for name, ndim in (
    ('kernel', 4 if node.kind == 'convolution' else 2),
    ('bias', 1),
  ):
    array = node.arrays.get(name)
    if array is not None and array.ndim > ndim:
      raise _refusal(node, f'the same {name} at every step, got one for each')
  if 'factor' in node.arrays:
    raise _refusal(node, 'the same factor at every step, got one for each')


def _dense_kernel(node):
  """Returns a kernel without groups: a grouped one is not read back."""
  _check_same_at_every_step(node)
  kernel, groups = node.arrays['kernel'], node.settings['groups']
  if groups == 1:
    return kernel
  rows, columns, fan_in, features = kernel.shape
  whole = np.zeros((rows, columns, fan_in * groups, features), np.float32)
  each = features // groups
  for g in range(groups):
    into = slice(g * each, (g + 1) * each)
    whole[:, :, g * fan_in : (g + 1) * fan_in, into] = kernel[..., into]
  return whole


def _refusal(node, expected_and_got):
  return InputError(
    f'expected {node.name!r} to have {expected_and_got}: NIR cannot express '
    'this, export it as network.npz'
  )
