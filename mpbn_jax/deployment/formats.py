"""The formats of a deployed network: written, read back and compared."""

import dataclasses
import functools
import pathlib
import shutil
from collections.abc import Callable

import jax
import numpy as np

from mpbn_jax import files
from mpbn_jax.deployment import load_example
from mpbn_jax.deployment.network import Deployed
from mpbn_jax.errors import InputError
from mpbn_jax.graph import (
  function_of,
  quantize,
  read_network,
  write_network,
)
from mpbn_jax.interop import exported, nir, onnx
from mpbn_jax.interop.nir_interpreter import run_nir

_GOLDEN = 4  # images in golden.nir
_INTERPRETED = 8  # images for a slow interpreter


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
  """One way to write a network.

  Attributes:
    what: what it is, for people.
    files: the names of its files.
    write: (network, folder) -> how what was read back differs
      (`Deployed.differences`). It raises an
      `InputError` for a network that the format cannot hold, or if a package is
      missing.
    load: how to load it, in Markdown.
  """

  what: str
  files: tuple[str, ...]
  write: Callable[[Deployed, pathlib.Path], dict]
  load: str


def _logits_only(run):
  return lambda images: (run(images), {})


# ---- JAX: whole sequences, and one step


def _write_jax(network, folder):
  model, folded, path = network.model, network.folded, folder / 'network.jax'
  program = exported.export_network(model, folded, spec=network.spec)
  _write_exported(path, program)
  shutil.copyfile(load_example.__file__, folder / 'load_example.py')
  # The same program with its spikes, which the file does not return.
  with_spikes = exported.export_network(
    model, folded, spec=network.spec, outputs='spikes'
  )
  written = jax.jit(exported.load_exported(path).call)
  spikes = jax.jit(with_spikes.call)
  return network.differences(lambda x: (written(x), spikes(x)[1])) | {
    'elsewhere': _elsewhere(network, path)
  }


def _elsewhere(network, path):
  """Returns {platform: differences} on the other platforms of this machine."""
  found = {}
  for platform in exported.PLATFORMS:
    try:
      device = jax.devices(platform)[0]
    except RuntimeError:  # none here
      continue
    if device.platform != jax.default_backend():
      run = jax.jit(exported.load_exported(path).call)
      put = functools.partial(jax.device_put, device=device)
      found[platform] = network.differences(
        _logits_only(lambda x, run=run, put=put: run(put(x)))
      )
  return found


def _write_steps(network, folder):
  paths = folder / 'start.jax', folder / 'step.jax'
  programs = exported.export_step(
    network.model, network.folded, spec=network.spec
  )
  for path, program in zip(paths, programs, strict=True):
    _write_exported(path, program)
  start, step = (jax.jit(exported.load_exported(path).call) for path in paths)

  def run(images):
    frames = [images] * network.model.num_steps
    if network.spec.frames:
      frames = list(images.swapaxes(0, 1))
    state, logits = start(frames[0]), []
    for frame in frames:
      state, now = step(state, frame)
      logits.append(now)
    return np.mean(logits, 0)

  return network.differences(_logits_only(run))


def _write_exported(path, program):
  try:
    data = program.serialize()
  except ImportError as error:
    raise InputError(
      'expected the package flatbuffers, which jax.export writes files with, '
      'got none: pip install flatbuffers'
    ) from error
  files.write_whole(path, bytes(data))


# ---- graphs: ONNX, NIR, NumPy


def _write_onnx(network, folder):
  path = folder / 'network.onnx'
  onnx.write_onnx(path, network.graph, spec=network.spec)
  return network.differences(_logits_only(onnx.load_onnx(path)))


def _write_nir(network, folder):
  path, graph = folder / 'network.nir', network.graph
  nir.write_nir(path, graph)
  logits, spikes = network.reference[0]
  nir.write_golden(
    folder / 'golden.nir',
    _frames(network, network.images[:_GOLDEN]),
    {name: layer[:_GOLDEN] for name, layer in spikes.items()},
    logits[:_GOLDEN],
  )
  read, names = nir.read_nir(path), nir.nir_names(graph)

  def run(images):
    frames = np.moveaxis(_frames(network, images), -1, 2)
    found, outputs = run_nir(read, frames, dt=nir.DT)
    layers = {
      name: np.moveaxis(found[of_nir], 2, -1).reshape(spikes_shape)
      for name, of_nir in names.items()
      for spikes_shape in [(len(images), *spikes[name].shape[1:])]
    }
    return outputs.mean(1).reshape(len(images), -1), layers

  return network.differences(run, examples=_INTERPRETED)


def _frames(network, images):
  """Returns normalized frames [B, T, H, W, C] of images or frames."""
  x = np.asarray(network.spec.normalize(images))
  if network.spec.frames:
    return x
  return np.repeat(x[:, None], network.model.num_steps, 1)


def _write_arrays(network, folder):
  return _write_graph(network, folder, network.graph)


def _write_integers(network, folder):
  return _write_graph(network, folder / 'int8', quantize(network.graph, bits=8))


def _write_graph(network, folder, graph):
  write_network(folder, graph)
  run = function_of(read_network(folder), normalize=network.spec.normalize)
  return network.differences(jax.jit(run))


FORMATS: dict[str, Format] = {
  'jax': Format(
    what='whole sequences, for JAX',
    files=('network.jax', 'load_example.py'),
    write=_write_jax,
    load="""\
`python load_example.py images.npy` classifies uint8 images. In Python:

```python
import jax, pathlib
from jax import export  # needs flatbuffers

data = bytearray(pathlib.Path('network.jax').read_bytes())
network = jax.jit(export.deserialize(data).call)
logits = network(images)
```""",
  ),
  'jax_step': Format(
    what='one frame at a time, for JAX',
    files=('start.jax', 'step.jax'),
    write=_write_steps,
    load="""\
Load both files as `network.jax`. Every sequence begins with `start`:

```python
state = start(frames[:, 0])  # reads only the batch size
for t in range(num_steps):
  state, logits_of_step = step(state, frames[:, t])
```

The logits of a sequence are the mean of those of its steps. For an image, every
frame is the image.""",
  ),
  'onnx': Format(
    what='whole sequences, for ONNX Runtime',
    files=('network.onnx',),
    write=_write_onnx,
    load="""\
```python
import onnxruntime

session = onnxruntime.InferenceSession('network.onnx')
(logits,) = session.run(['logits'], {'images': images})
```""",
  ),
  'nir': Format(
    what='a graph of leaky integrate-and-fire neurons (NIR)',
    files=('network.nir', 'golden.nir'),
    write=_write_nir,
    load="""\
```python
import nir

graph = nir.read('network.nir')
golden = nir.read_data('golden.nir')  # a few frames, their spikes and logits
```

Its input is normalized frames, channels first, and its output the logits of
each step. Integrate by forward Euler with dt = 1 ms; neurons fire if v >
v_threshold.""",
  ),
  'npz': Format(
    what='weights, thresholds and wiring as NumPy arrays and JSON',
    files=('network.npz', 'network.json'),
    write=_write_arrays,
    load="""\
`network.json` lists the nodes in the order in which they run, and names their
arrays in `network.npz` (`mpbn_jax/graph/nodes.py` documents the kinds of
nodes). Its input is normalized frames.

```python
import json, numpy

nodes = json.load(open('network.json'))['nodes']
arrays = numpy.load('network.npz')
```""",
  ),
  'int8': Format(
    what='the same with integer weights of 8 bits',
    files=('int8/network.npz', 'int8/network.json'),
    write=_write_integers,
    load="""\
Kernels are int8, thresholds and biases int32, in the unit of the accumulated
potential; `mpbn_jax.graph.quantize` says what the integers mean.""",
  ),
}
