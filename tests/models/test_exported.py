"""Programs of jax.export: whole networks and single steps."""

import pathlib
import subprocess
import sys

import common
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from mpbn_jax import InputError, fold, strip
from mpbn_jax.datasets.base import Spec
from mpbn_jax.evaluation import recorded
from mpbn_jax.interop.exported import (
  PLATFORMS,
  export_network,
  export_step,
  load_exported,
)
from mpbn_jax.ops.convolution import convolution

pytest.importorskip('flatbuffers', reason='jax.export writes files with it')


def _spec(side, channels, *, frames=False):
  return Spec(
    name='random',
    image_shape=(side, side, channels),
    class_names=tuple(map(str, range(10))),
    max_value=255,
    mean=(0.45,) * channels,
    std=(0.25,) * channels,
    frames=frames,
  )


def _images(*shape):
  return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


# What a process does that has JAX alone.
_OTHER_PROCESS = """
import pathlib, sys
sys.modules['mpbn_jax'] = None  # importing it would fail
import jax, numpy as np
from jax import export
folder = pathlib.Path(sys.argv[1])
network = export.deserialize(bytearray((folder / 'network.jax').read_bytes()))
logits, spikes = jax.jit(network.call)(np.load(folder / 'images.npy'))
np.savez(folder / 'found.npz', logits=logits, **spikes)
"""


def test_golden_network_fires_the_same_spikes_without_this_package(tmp_path):
  _, model, variables, *_ = common.golden('resnet20_t2')
  folded = strip(fold(variables))
  negative = [
    (leaf < 0).any()
    for path, leaf in jax.tree_util.tree_leaves_with_path(folded)
    if path[-1].key == 'polarity'
  ]
  assert any(negative)
  spec, images = _spec(16, 3), _images(6, 16, 16, 3)
  program = export_network(model, folded, spec=spec, outputs='spikes')
  assert program.platforms == PLATFORMS
  assert f'jax {jax.__version__}, made on cpu, 20' in program.fun_name
  (tmp_path / 'network.jax').write_bytes(program.serialize())
  np.save(tmp_path / 'images.npy', images)
  subprocess.run(
    [sys.executable, '-c', _OTHER_PROCESS, str(tmp_path)],
    cwd=tmp_path,
    check=True,
  )
  with np.load(tmp_path / 'found.npz') as file:
    found = dict(file)

  @jax.jit
  def run(variables, images):
    return recorded(model, variables, spec.normalize(images))

  logits, layers = run(folded, images)
  flips = sum(
    (found[name] != (layer['spikes'] > 0)).sum()
    for name, layer in layers.items()
  )
  spikes = sum(layer['spikes'].size for layer in layers.values())
  # A convolution may be computed otherwise for a batch of any size.
  assert flips <= 1e-5 * spikes
  change = np.abs(found['logits'] - logits).max()
  assert change <= (1e-5 if flips == 0 else 0.1)


@pytest.mark.parametrize('frames', [False, True])
def test_steps_add_up_to_the_sequence(frames):
  model, variables = common.small(start='mean', tau_s=0.5)
  variables['batch_stats']['lif1']['start'] = jnp.float32(0.3)
  spec = _spec(8, 1, frames=frames)
  folded = strip(fold(variables))
  network = export_network(model, folded, spec=spec)
  start, step = export_step(model, folded, spec=spec)
  images = _images(5, *spec.example_shape(3))
  state, total = start.call(images[:, 0] if frames else images), 0
  for t in range(3):
    frame = images[:, t] if frames else images
    state, logits = step.call(state, frame)
    total = total + logits
  np.testing.assert_allclose(total / 3, network.call(images), atol=1e-5)


@pytest.mark.parametrize('name', ['preact_resnet', 'vgg16'])
def test_other_networks_export_for_any_batch_size(name):
  side = common.SIDES[name]
  model, variables = common.small(name, side=side, unroll=False)
  program = export_network(model, variables, spec=_spec(side, 1))
  assert str(program.out_avals[0].shape) == '(b, 10)'


@pytest.mark.parametrize(
  ('side', 'size', 'channels', 'stride'),
  [(8, 3, 64, 1), (8, 3, 2, 1), (1, 3, 4, 1), (2, 3, 4, 2), (8, 1, 4, 1)],
)
def test_convolution_of_a_batch_of_any_size(side, size, channels, stride):
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(size, size, channels, channels))
  kernel = kernel.astype(np.float32)

  def function(x):
    pad = (size // 2, size // 2)
    return convolution(x, kernel, strides=(stride, stride), padding=(pad, pad))

  (batch,) = export.symbolic_shape('b')
  shape = (side, side, channels)
  program = export.export(jax.jit(function), platforms=PLATFORMS)(
    jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
  )
  x = rng.normal(size=(3, *shape)).astype(np.float32)
  # Sums of up to 576 products, in another order.
  np.testing.assert_allclose(program.call(x), function(x), rtol=1e-4, atol=1e-4)


def test_other_inputs_than_uint8_are_refused():
  model, variables = common.small()
  program = export_network(model, variables, spec=_spec(8, 1))
  with pytest.raises(ValueError, match='expected uint8 and called with float'):
    program.call(np.zeros((2, 8, 8, 1), np.float32))


def test_unknown_outputs_are_refused():
  model, variables = common.small()
  with pytest.raises(InputError, match="unknown outputs 'spike'.*'spikes'?"):
    export_network(model, variables, spec=_spec(8, 1), outputs='spike')


@pytest.mark.parametrize('content', [b'', b'garbage' * 99, bytes(999), None])
def test_damaged_file_is_refused_in_one_line(tmp_path, content):
  path = tmp_path / 'network.jax'
  if content is None:  # cut off
    program = export.export(jax.jit(jnp.sin))(jnp.float32(0))
    content = program.serialize()[:-500]
  path.write_bytes(content)
  with pytest.raises(InputError, match='expected a program that') as error:
    load_exported(path)
  assert '\n' not in str(error.value)


def test_missing_file_is_refused():
  with pytest.raises(InputError, match=r'in no\.jax.*No such file'):
    load_exported(pathlib.Path('no.jax'))
