"""ONNX files of networks, written by jax2onnx and read by ONNX Runtime.

All T steps are unrolled: a file has no loop and no state. Both packages are
optional (the extra `onnx`).
"""

import contextlib
import importlib
import logging
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mpbn_jax import files, layers
from mpbn_jax.datasets.base import Spec
from mpbn_jax.errors import InputError
from mpbn_jax.graph import Graph, Node
from mpbn_jax.neuron import kept, lif_step


def write_onnx(path: pathlib.Path | str, graph: Graph, *, spec: Spec) -> None:
  """Writes a graph as an ONNX file: uint8 images in, logits out.

  Its input 'images' is [B, H, W, C], or [B, T, H, W, C] if the data set has
  frames, for any batch size B; its output 'logits' is float32 [B, K]. The
  normalization of the images is inside.

  Args:
    path: the file; its directory must exist.
    graph: from `graph.network_graph`.
    spec: the data set.

  Raises:
    InputError: jax2onnx is not installed or fails, or the file cannot be
      written.
  """
  with _quiet():
    to_onnx = _library('jax2onnx').to_onnx
    shape = ('B', *spec.example_shape(graph.num_steps))
    try:
      model = to_onnx(
        logits_of(graph, spec=spec),
        inputs=[jax.ShapeDtypeStruct(shape, jnp.uint8)],
        model_name='network',
        input_names=['images'],
        output_names=['logits'],
      )
    except Exception as error:
      raise InputError(
        'expected a network that jax2onnx converts, got '
        f'{type(error).__name__}: {" ".join(str(error).split())}'
      ) from error
  files.write_whole(pathlib.Path(path), model.SerializeToString())


def load_onnx(path: pathlib.Path | str) -> Callable[[np.ndarray], np.ndarray]:
  """Returns images -> logits of an ONNX file, run by ONNX Runtime on the CPU.

  Raises:
    InputError: onnxruntime is not installed, or it cannot read the file.
  """
  runtime = _library('onnxruntime')
  path = pathlib.Path(path)
  try:
    session = runtime.InferenceSession(
      path.read_bytes(), providers=['CPUExecutionProvider']
    )
  except Exception as error:
    reason = getattr(error, 'strerror', None) or str(error)
    raise InputError(
      f'expected an ONNX network in {path}, which ONNX Runtime cannot read '
      f'({" ".join(reason.split())}): export the network again'
    ) from error

  def run(images: np.ndarray) -> np.ndarray:
    (logits,) = session.run(['logits'], {'images': images})
    return logits

  return run


def logits_of(graph: Graph, *, spec: Spec) -> Callable[[jax.Array], jax.Array]:
  """Returns a graph as a function of JAX, with a loop over time in Python.

  Args:
    graph: from `graph.network_graph`.
    spec: the data set.

  Returns:
    uint8 images [B, H, W, C], or frames [B, T, H, W, C], -> logits [B, K].
  """

  def run(images: jax.Array) -> jax.Array:
    x = spec.normalize(images)
    potentials: dict[str, Any] = {}
    total: Any = 0
    for t in range(graph.num_steps):
      values = {graph.nodes[0].name: x[:, t] if x.ndim == 5 else x}
      for node in graph.nodes[1:-1]:
        inputs = [values[name] for name in node.inputs]
        if node.kind in _WITH_POTENTIAL:
          potential = potentials.get(node.name)
          values[node.name], potentials[node.name] = _WITH_POTENTIAL[node.kind](
            node, *inputs, potential
          )
        else:
          values[node.name] = _FUNCTIONS[node.kind](node, t, *inputs)
      total = total + values[graph.nodes[-1].inputs[0]]
    return total / graph.num_steps

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


def _library(name: str) -> Any:
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise InputError(
      f'expected the package {name} for ONNX, got none: pip install '
      "'mpbn_jax[onnx]', or -r requirements-onnx.txt"
    ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps jax2onnx from logging tracebacks of plugins that it does without."""
  before = logging.root.manager.disable
  logging.disable(logging.ERROR)
  try:
    yield
  finally:
    logging.disable(before)
