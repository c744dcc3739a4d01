"""Graphs of folded networks as NIR files (package `nir`), and golden spikes.

NIR (Pedersen et al. 2024, Nature Communications 15, 8122) describes networks by
differential equations. The files that are written here are meant for forward
Euler with the step dt:

    v' = v + dt / tau * (v_leak - v + r * I);  fire if v' > v_threshold

With tau = dt / (1 - kept fraction), v_leak = v_reset = 0 and r = 1, a current
c of ours is I = c / (1 - kept fraction).
"""

import importlib
import io
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from mpbn_jax.errors import InputError
from mpbn_jax.files import write_whole
from mpbn_jax.graph import Graph
from mpbn_jax.interop.nir_lowering import Lowering, Names

DT = 1e-3


def write_nir(
  path: pathlib.Path | str, graph: Graph, *, dt: float = DT
) -> None:
  """Writes a graph as a NIR file.

  Channels come first, kernels are OIHW. Vectors are maps of 1x1, so a linear
  layer is a Conv2d, and one of maps has a kernel as large as they are. Several
  edges into a node are a sum. The output node has the logits of each step,
  which the reader averages over time.

  What neurons receive is divided by 1 - tau (`lif.tau = dt / (1 - tau)` and
  `r` = 1, so a reader that ignores r is right too), and negated in the channels
  with negative polarity, whose thresholds are negated as well. The factor is in
  the kernels and biases of all branches of the sum; where it cannot be, as for
  spikes that enter a sum, there is a 1x1 diagonal Conv2d.

  Args:
    path: the file to write; its directory must exist.
    graph: from `graph.network_graph`.
    dt: step of the Euler integration, in seconds.

  Raises:
    InputError: NIR cannot express a node (named in the message): soft resets,
      kernels or factors of each step, synaptic filters, neurons that do not
      start at 0 or whose polarity varies within a channel, incomplete windows;
      or the file cannot be written.
  """
  nir = _package()
  if not (np.isfinite(dt) and dt > 0):
    raise InputError(f'expected a dt > 0 in seconds, got {dt}')
  lowering = Lowering(nir, graph, float(dt))
  whole = lowering.graph()
  buffer = io.BytesIO()
  nir.write(buffer, whole)
  write_whole(pathlib.Path(path), buffer.getvalue())


def read_nir(path: pathlib.Path | str) -> Any:
  """Returns the `nir.NIRGraph` of a file.

  Raises:
    InputError: the file is missing or not a whole NIR file.
  """
  nir = _package()
  return _read(path, nir.read, 'a NIR graph')


def write_golden(
  path: pathlib.Path | str,
  frames: np.ndarray,
  spikes: Mapping[str, np.ndarray],
  logits: np.ndarray,
  *,
  dt: float = DT,
) -> None:
  """Writes what a network does with a few frames, for tests of NIR readers.

  Args:
    path: the file to write; its directory must exist.
    frames: [B, T, H, W, C], what the network read.
    spikes: {neuron layer: spikes [B, T, ..., C]}, those of the folded network.
    logits: [B, K], their mean over time.
    dt: step of the Euler integration, in seconds.

  Raises:
    InputError: the file cannot be written.
  """
  nir = _package()

  def node(array, name, *, lead=2):
    array = np.asarray(array)
    moved = array if array.ndim == lead + 1 else np.moveaxis(array, -1, lead)
    steps = 1 if lead == 1 else moved.shape[1]
    flat = np.ascontiguousarray(moved).reshape((len(array), steps, -1))
    return nir.NIRNodeData(
      observables={name: nir.TimeGriddedData(data=flat, dt=dt)}
    )

  nodes = {'input': node(frames, 'input')}
  names = Names({'input', 'output'})
  for name, array in spikes.items():
    nodes[names.of(name)] = node(np.asarray(array) > 0, 'spikes')
  nodes['output'] = node(logits, 'mean_over_time', lead=1)
  buffer = io.BytesIO()
  nir.write_data(buffer, nir.NIRGraphData(nodes=nodes))
  write_whole(pathlib.Path(path), buffer.getvalue())


def read_golden(path: pathlib.Path | str) -> Any:
  """Returns the `nir.NIRGraphData` that `write_golden` wrote.

  Observables are [B, T, neurons], the neurons in the order C, H, W.

  Raises:
    InputError: the file is missing or not a whole file of NIR data.
  """
  nir = _package()
  return _read(path, nir.read_data, 'NIR data')


def nir_names(graph: Graph) -> dict[str, str]:
  """Returns {name of a neuron layer: its name in the NIR file}."""
  names = Names({'input', 'output'})
  return {node.name: names.of(node.name) for node in graph.of_kind('neurons')}


def _package() -> Any:
  try:
    return importlib.import_module('nir')
  except ImportError as error:
    raise InputError(
      "expected the package 'nir', got none: pip install nir, or install "
      'mpbn_jax[nir]'
    ) from error


def _read(path, read, what):
  path = pathlib.Path(path)
  if not path.is_file():
    raise InputError(
      f'expected {what} in {path}, got no file: run --mode=export'
    )
  try:
    return read(str(path))
  except Exception as error:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    raise InputError(
      f'expected {what} in {path}, which cannot be read ({lines[0][:160]}): '
      'export it again'
    ) from error
