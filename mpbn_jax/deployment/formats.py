"""The formats of a deployed network: written, read back and compared."""

import dataclasses
import pathlib
import shutil
from collections.abc import Callable

import jax
import numpy as np

from mpbn_jax import files
from mpbn_jax.deployment import load_example
from mpbn_jax.deployment.network import Deployed
from mpbn_jax.errors import InputError
from mpbn_jax.interop import exported, onnx


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
  """One way to write a network.

  Attributes:
    what: what it is, for people.
    files: the names of its files.
    write: (network, folder) -> how what was read back differs, as
      `Deployed.differences` and `Deployed.flips` say it. It raises an
      `InputError` for a network that the format cannot hold, or if a package is
      missing.
    load: how to load it, in Markdown.
  """

  what: str
  files: tuple[str, ...]
  write: Callable[[Deployed, pathlib.Path], dict]
  load: str


# ---- JAX: whole sequences, and one step


def _write_jax(network, folder):
  options = {'spec': network.spec}
  path = folder / 'network.jax'
  _write_exported(
    path, exported.export_network(network.model, network.folded, **options)
  )
  shutil.copyfile(load_example.__file__, folder / 'load_example.py')
  found = network.differences(jax.jit(exported.load_exported(path).call))
  # The same program with its spikes, which the file does not return.
  with_spikes = exported.export_network(
    network.model, network.folded, **options, outputs='spikes'
  )
  return found | network.flips(jax.jit(with_spikes.call))


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

  return network.differences(run)


def _write_exported(path, program):
  try:
    data = program.serialize()
  except ImportError as error:
    raise InputError(
      'expected the package flatbuffers, which jax.export writes files with, '
      'got none: pip install flatbuffers'
    ) from error
  files.write_whole(path, bytes(data))


# ---- ONNX


def _write_onnx(network, folder):
  path = folder / 'network.onnx'
  onnx.write_onnx(path, network.graph, spec=network.spec)
  return network.differences(onnx.load_onnx(path))


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
}
