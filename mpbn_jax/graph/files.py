"""Graphs as files that NumPy and a JSON reader can open: weights and wiring."""

import dataclasses
import hashlib
import io
import json
import pathlib
from typing import Any

import numpy as np

from mpbn_jax.errors import InputError
from mpbn_jax.files import check_writable, write_whole
from mpbn_jax.graph.nodes import Graph, Node
from mpbn_jax.graph.quantization import integers_of, multiple

_ARRAYS, _WIRING = 'network.npz', 'network.json'
_FORMAT = 1
# In a quantized graph, the arrays that are integers times a unit.
_UNITS = {
  'kernel': 'step',
  'scale': 'step',
  'threshold': 'step',
  'v_th': 'step',
  'bias': 'bias_step',
}
# A neuron that always or never fires.
_INFINITE = 2**31 - 1


def write_network(directory: pathlib.Path | str, graph: Graph) -> None:
  """Writes a graph as network.npz and network.json.

  The JSON file lists the nodes in the order in which they run: {name, kind,
  inputs, shape, settings, arrays}, as documented in `graph.nodes`. Each entry
  of `arrays` names an array of the .npz file, <node>/<array>. In a quantized
  graph, kernels are int8 and scales, biases, thresholds and v_th are int32; an
  entry then also names its `unit`, the array per channel that they are
  multiplied by. Infinite thresholds are +-(2^31 - 1).

  Files are written whole, the JSON file last: it has the checksum of the other
  one.

  Args:
    directory: created if needed.
    graph: from `network_graph` or `quantize`.

  Raises:
    InputError: a file cannot be written.

  Example:
    >>> import tempfile
    >>> from mpbn_jax import fold_all
    >>> from mpbn_jax.graph import network_graph
    >>> graph = network_graph(model, fold_all(variables), frame_shape=(8, 8, 1))
    >>> directory = tempfile.mkdtemp()
    >>> write_network(directory, graph)
    >>> read_network(directory)['lif1'].inputs
    ('conv1',)
  """
  directory = pathlib.Path(directory)
  check_writable(directory)
  arrays: dict[str, np.ndarray] = {}
  nodes = []
  for node in graph.nodes:
    entries = {}
    for name, array in node.arrays.items():
      key, unit = f'{node.name}/{name}', _UNITS.get(name)
      entries[name] = {'array': key}
      if unit is not None and unit in node.arrays:
        array = _to_integers(array, node.arrays[unit], name)
        entries[name]['unit'] = f'{node.name}/{unit}'
      arrays[key] = array
    nodes.append({**vars(node), 'arrays': entries})
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
  content = buffer.getvalue()
  wiring = {
    'format': _FORMAT,
    'num_steps': graph.num_steps,
    'sha256': hashlib.sha256(content).hexdigest(),
    'nodes': nodes,
  }
  write_whole(directory / _ARRAYS, content)
  write_whole(directory / _WIRING, json.dumps(wiring, indent=1))


def read_network(directory: pathlib.Path | str) -> Graph:
  """Returns the graph that `write_network` wrote, bit by bit.

  Nothing in the files is run.

  Raises:
    InputError: a file is missing, damaged or inconsistent.
  """
  directory = pathlib.Path(directory)
  try:
    wiring = json.loads((directory / _WIRING).read_text())
    if wiring['format'] != _FORMAT:
      raise ValueError(f'it has format {wiring["format"]}, expected {_FORMAT}')
    content = (directory / _ARRAYS).read_bytes()
    if hashlib.sha256(content).hexdigest() != wiring['sha256']:
      raise ValueError(f'{_ARRAYS} is not the file that {_WIRING} describes')
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
      arrays = {key: file[key] for key in file.files}
    nodes = tuple(_node(entry, arrays) for entry in wiring['nodes'])
    if arrays:
      raise ValueError(f'no node has the array {min(arrays)!r}')
    return Graph(nodes=nodes, num_steps=wiring['num_steps'])
  except OSError as error:
    raise InputError(
      f'expected {_WIRING} and {_ARRAYS} in {directory}, which cannot be read '
      f'({error.strerror or error}): export the network again'
    ) from error
  except Exception as error:
    lines = str(error).strip().splitlines() or ['']
    reason = lines[0][:200]
    if not isinstance(error, ValueError):
      reason = f'{type(error).__name__}: {reason}'
    raise InputError(
      f'expected a network in {directory}, whose files are damaged ({reason}): '
      'export it again'
    ) from error


def _to_integers(array, unit, name):
  integers = integers_of(np.where(np.isinf(array), 0, array), unit)
  infinite = np.where(array > 0, _INFINITE, -_INFINITE)
  integers = np.where(np.isinf(array), infinite, integers)
  return integers.astype(np.int8 if name == 'kernel' else np.int32)


def _node(entry: dict[str, Any], arrays: dict[str, np.ndarray]) -> Node:
  """Returns a node, taking its arrays out of `arrays`."""
  if set(entry) != {field.name for field in dataclasses.fields(Node)}:
    raise ValueError(f'a node has the entries {sorted(entry)}')
  units = {
    e['unit']: arrays[e['unit']]
    for e in entry['arrays'].values()
    if 'unit' in e
  }
  found = {}
  for name, description in entry['arrays'].items():
    array = arrays.pop(description['array'])
    if 'unit' in description:
      unit, integers = units[description['unit']], array
      if not np.issubdtype(integers.dtype, np.integer):
        raise ValueError(f'{description["array"]} has no integers')
      array = multiple(integers, unit)
      if name == 'threshold':
        infinite = np.abs(integers.astype(np.int64)) == _INFINITE
        array = np.where(infinite, np.copysign(np.inf, integers), array)
    found[name] = np.asarray(array)
  return Node(
    name=str(entry['name']),
    kind=str(entry['kind']),
    inputs=tuple(map(str, entry['inputs'])),
    shape=tuple(entry['shape']),
    settings=dict(entry['settings']),
    arrays={
      name: array.astype(np.float32) if name == 'threshold' else array
      for name, array in found.items()
    },
  )
