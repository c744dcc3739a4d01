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

import jax
import jax.numpy as jnp
import numpy as np

from mpbn_jax import files
from mpbn_jax.datasets.base import Spec
from mpbn_jax.errors import InputError
from mpbn_jax.graph import Graph, function_of


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
    run = function_of(graph, normalize=spec.normalize)
    shape = ('B', *spec.example_shape(graph.num_steps))
    try:
      model = to_onnx(
        lambda images: run(images)[0],
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


def _library(name: str) -> Any:
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise InputError(
      f'expected the package {name} for ONNX, got none: pip install '
      '-r requirements-onnx.txt, or the extra mpbn_jax[onnx]'
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
