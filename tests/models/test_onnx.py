"""ONNX files, and graphs as the functions of JAX that they are made of."""

import sys

import jax
import numpy as np
import pytest
from graphs import CHANNELS, network, network_graph

from mpbn_jax import InputError
from mpbn_jax.datasets.base import Spec
from mpbn_jax.graph import function_of
from mpbn_jax.interop.onnx import load_onnx, write_onnx

# (network, side, settings): every kind of node. Pools of resnet18 overlap and
# are padded; those of resnet20 on maps of 18 have incomplete windows.
NETWORKS = {
  'steps': ('spiking_cnn', 8, {'conv_norm': 'tab', 'reset': 'soft'}),
  'elements': (
    'spiking_cnn',
    8,
    {'membrane_norm': 'mpbn_element', 'start': 'mean'},
  ),
  'resnet18': ('resnet18', 32, {}),
  'resnet20': ('resnet20', 18, {'conv_norm': 'tebn'}),
  'depth 22': (
    'preact_resnet',
    8,
    {'depth': 22, 'spike_norm': 'psp_bn', 'tau_s': 0.5},
  ),
}


def _graph(name):
  """Returns (graph, spec, images, logits of the network)."""
  name, side, settings = NETWORKS[name]
  model, variables, _ = network(name, side, **settings)
  spec = Spec(
    name='random',
    image_shape=(side, side, CHANNELS),
    class_names=tuple(map(str, range(10))),
    max_value=15,
    mean=(0.45,) * CHANNELS,
    std=(0.25,) * CHANNELS,
    frames=True,
  )
  shape = (5, *spec.example_shape(model.num_steps))
  images = np.random.default_rng(0).integers(0, 16, shape, np.uint8)

  @jax.jit
  def run(variables, images):
    return model.apply(variables, spec.normalize(images), train=False)

  graph = network_graph(model, variables, frame_shape=spec.image_shape)
  return graph, spec, images, run(variables, images)


@pytest.mark.parametrize('name', NETWORKS)
def test_graph_as_a_function_is_the_network(name):
  graph, spec, images, logits = _graph(name)
  run = function_of(graph, normalize=spec.normalize)
  found, spikes = jax.jit(run)(images)
  assert set(spikes) == {node.name for node in graph.of_kind('neurons')}
  np.testing.assert_allclose(found, logits, atol=1e-5)


@pytest.mark.parametrize('name', NETWORKS)
def test_onnx_runtime_computes_the_logits_of_the_network(tmp_path, name):
  for package in ('jax2onnx', 'onnxruntime'):
    pytest.importorskip(package, reason='needs pip install mpbn_jax[onnx]')
  graph, spec, images, logits = _graph(name)
  path = tmp_path / 'network.onnx'
  write_onnx(path, graph, spec=spec)
  run = load_onnx(path)
  np.testing.assert_allclose(run(images), logits, atol=1e-5)
  np.testing.assert_allclose(run(images[:2]), logits[:2], atol=1e-5)


@pytest.mark.parametrize('content', [b'', b'garbage' * 99])
def test_damaged_onnx_file_is_refused_in_one_line(tmp_path, content):
  pytest.importorskip('onnxruntime', reason='needs pip install mpbn_jax[onnx]')
  path = tmp_path / 'network.onnx'
  path.write_bytes(content)
  with pytest.raises(InputError, match='ONNX Runtime cannot read') as error:
    load_onnx(path)
  assert '\n' not in str(error.value)


def test_missing_package_is_named(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, 'jax2onnx', None)
  with pytest.raises(InputError, match='package jax2onnx .*requirements-onnx'):
    write_onnx(tmp_path / 'network.onnx', None, spec=None)
