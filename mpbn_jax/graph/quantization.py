"""Graphs with integer kernels and thresholds, for chips that know no floats."""

import dataclasses
import math

import numpy as np

from mpbn_jax.errors import InputError
from mpbn_jax.graph.nodes import Graph, Node

# Neurons and sums keep more bits than kernels.
_LARGEST = 2**31 - 1


def quantize(graph: Graph, *, bits: int = 8) -> Graph:
  """Returns the graph with integer kernels, biases and thresholds.

      kernel = step * integer of `bits` bits
      bias   = step / d * integer,  threshold = step / d * integer

  Integers are rounded to the nearest, symmetric, and at most 2^(bits - 1) - 1
  in kernels. All kernels whose currents add up at the same neurons share one
  step per channel, the largest weight of the channel divided by the largest
  integer, so that their integer products can be added. An identity shortcut
  adds the integer nearest to 1 / step, which may have more bits than kernels. d
  is the number of pixels that an average pool before a kernel divides by (1
  without one): a chip sums spikes instead of averaging them. Thresholds thus
  count in the unit of the accumulated integer potential, and are int32. tau is
  rounded to a multiple of 2^-bits: potentials leak by an integer product and a
  shift, (u * n) >> bits with n = tau * 2^bits; tau = 0.25 is exact.

  Frames stay as they are, real-valued, and so do the first layer's currents;
  potentials are not rounded after the leak, nor is the start.

  Args:
    graph: from `network_graph`.
    bits: bits of kernels, 2 to 8, including the sign.

  Returns:
    A graph of float32 values, each a product of an integer and the array `step`
    of its node; `write_network` writes the integers.

  Raises:
    InputError: bits are out of range; the graph is already quantized, has a
      factor per step, or kernels that read neither spikes nor frames.

  Example:
    >>> from mpbn_jax import fold_all
    >>> from mpbn_jax.graph import network_graph
    >>> graph = network_graph(model, fold_all(variables), frame_shape=(8, 8, 1))
    >>> arrays = quantize(graph)['conv2'].arrays
    >>> int(np.abs(np.rint(arrays['kernel'] / arrays['step'])).max())
    127
  """
  if not (type(bits) is int and 2 <= bits <= 8):
    raise InputError(f'expected 2 to 8 bits of kernels, got {bits!r}')
  _check_quantizable(graph)
  graph = _with_explicit_identities(graph)
  groups = _groups(graph)
  steps, parts = _steps(graph, groups, bits), _parts(graph, groups)
  nodes = []
  for node in graph.nodes:
    group = groups.get(node.name)
    if node.kind == 'neurons':
      group = groups.get(node.inputs[0])
    if group is None:
      nodes.append(node)
      continue
    arrays = _quantized(node, steps[group], parts[group], bits)
    nodes.append(dataclasses.replace(node, arrays=arrays))
  return Graph(nodes=tuple(nodes), num_steps=graph.num_steps)


def _check_quantizable(graph):
  spiking = _spiking(graph)
  for node in graph.nodes:
    if 'step' in node.arrays:
      raise InputError(
        f'expected a graph of real numbers, got {node.name!r} with integers: '
        'quantize the graph that network_graph returned'
      )
    if 'factor' in node.arrays:
      raise InputError(
        f'expected kernels without a factor per step, got one in {node.name!r} '
        "(conv_norm='tebn'): its currents have no common unit"
      )
    weighted = node.kind in ('convolution', 'dense', 'scale')
    if weighted and node.inputs[0] not in spiking:
      raise InputError(
        f'expected {node.name!r} to read spikes or frames, got the real values '
        f'of {node.inputs[0]!r}: they are no multiples of one unit'
      )


def multiple(integers: np.ndarray, step: np.ndarray) -> np.ndarray:
  """Returns integers times a step per channel, as float32."""
  return (integers.astype(np.float64) * step).astype(np.float32)


def integers_of(values: np.ndarray, step: np.ndarray) -> np.ndarray:
  """Returns the integers nearest to values / step, within int32."""
  return np.clip(
    np.rint(values.astype(np.float64) / step), -_LARGEST, _LARGEST
  ).astype(np.int64)


# ---- signals: spikes, or currents that add up


def _spiking(graph: Graph) -> dict[str, int | None]:
  """Returns {node: d} of nodes whose values are multiples of 1 / d.

  None for the real values of frames. Currents, and what a synaptic filter
  makes of spikes, are left out.
  """
  found: dict[str, int | None] = {}
  for node in graph.nodes:
    if node.kind == 'neurons':
      found[node.name] = 1
    elif node.kind == 'input':
      found[node.name] = None
    elif node.kind in ('average_pool', 'mean_over_space'):
      source = node.inputs[0]
      if source in found:
        count = _pixels(graph, node)
        d = found[source]
        found[node.name] = None if d is None else d * count
  return found


def _pixels(graph, node):
  """Returns what an average divides by, a multiple of it if that varies."""
  shape = graph[node.inputs[0]].shape
  if node.kind == 'mean_over_space':
    return math.prod(shape[:-1])
  window = node.settings['window']
  counts = [{window}, {window}]
  if node.settings['ceil_mode']:
    for sides, side in zip(counts, shape[:2], strict=True):
      sides.add(side % window or window)
  return math.lcm(
    *(rows * columns for rows in counts[0] for columns in counts[1])
  )


def _with_explicit_identities(graph: Graph) -> Graph:
  """Returns the graph with a scale of 1 where spikes enter a sum or neurons."""
  spiking, nodes = _spiking(graph), []
  for node in graph.nodes:
    inputs = list(node.inputs)
    if node.kind in ('add', 'neurons'):
      for i, name in enumerate(inputs):
        if name not in spiking:
          continue
        shape = graph[name].shape
        inputs[i] = f'{node.name}/identity{i + 1}'
        nodes.append(
          Node(
            name=inputs[i],
            kind='scale',
            inputs=(name,),
            shape=shape,
            arrays={'scale': np.ones(shape[-1:], np.float32)},
          )
        )
    nodes.append(dataclasses.replace(node, inputs=tuple(inputs)))
  return Graph(nodes=tuple(nodes), num_steps=graph.num_steps)


def _groups(graph: Graph) -> dict[str, str]:
  """Returns {node of currents: representative of those it adds up with}."""
  spiking = _spiking(graph)
  parent: dict[str, str] = {}

  def root(name):
    while parent[name] != name:
      name = parent[name]
    return name

  for node in graph.nodes:
    if node.name in spiking or node.kind == 'mean_over_time':
      continue
    parent[node.name] = node.name
    if node.kind in ('add', 'average_pool', 'mean_over_space'):
      for name in node.inputs:
        parent[root(name)] = node.name
  return {name: root(name) for name in parent}


def _steps(graph, groups, bits):
  """Returns {group: step per channel of its kernels} in float64."""
  largest: dict[str, np.ndarray] = {}
  scales: dict[str, np.ndarray] = {}
  for name, group in groups.items():
    arrays = graph[name].arrays
    for key, into in (('kernel', largest), ('scale', scales)):
      if key in arrays:
        found = np.abs(arrays[key].astype(np.float64))
        found = found.reshape((-1, found.shape[-1])).max(0)
        into[group] = np.maximum(into.get(group, 0), found)
  steps = {}
  for group in set(groups.values()):
    # Scales have as many bits as they need, unless there is nothing else.
    top = largest.get(group, scales.get(group))
    top = np.where(top > 0, top, 1.0)
    # Rounded first: the file has it in float32.
    steps[group] = (top / (2 ** (bits - 1) - 1)).astype(np.float32)
  return steps


def _parts(graph, groups):
  """Returns {group: d}: its currents are multiples of step / d."""
  spiking = _spiking(graph)
  parts = dict.fromkeys(groups.values(), 1)
  for name, group in groups.items():
    node = graph[name]
    if node.kind in ('convolution', 'dense', 'scale'):
      d = spiking.get(node.inputs[0])
    elif node.kind in ('average_pool', 'mean_over_space'):
      d = _pixels(graph, node)
    else:
      d = 1
    parts[group] = math.lcm(parts[group], d or 1)
  return parts


def _quantized(node, step, part, bits):
  """Returns the arrays of a node, each a multiple of its `step`."""
  arrays = dict(node.arrays)
  unit = (step.astype(np.float64) / part).astype(np.float32)
  if node.kind == 'neurons':
    for name in ('threshold', 'v_th'):
      if name not in arrays:
        continue
      values = np.broadcast_to(arrays[name], arrays[name].shape or unit.shape)
      infinite = np.isinf(values)
      rounded = multiple(integers_of(np.where(infinite, 0, values), unit), unit)
      arrays[name] = np.where(infinite, values, rounded)
    whole = 2**bits
    n = min(np.rint(float(arrays['tau']) * whole), whole - 1)
    return arrays | {'tau': np.float32(n / whole), 'step': unit}
  if node.kind in ('convolution', 'dense'):
    arrays['kernel'] = multiple(integers_of(arrays['kernel'], step), step)
    if 'bias' in arrays:
      arrays['bias'] = multiple(integers_of(arrays['bias'], unit), unit)
    return arrays | {'step': step, 'bias_step': unit}
  if node.kind == 'scale':
    arrays['scale'] = multiple(integers_of(arrays['scale'], step), step)
    return arrays | {'step': step}
  return arrays
