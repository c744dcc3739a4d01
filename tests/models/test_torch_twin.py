"""Torch twins of graphs: the network's spikes, from PyTorch modules."""

import dataclasses
import importlib.util
import sys

import graphs
import numpy as np
import pytest

from mpbn_jax import InputError
from mpbn_jax.analysis.energy import energy
from mpbn_jax.analysis.inputs import inputs_of
from mpbn_jax.graph import Graph, quantize, run_graph
from mpbn_jax.interop.torch_twin import _twin_class, torch_twin

torch = pytest.importorskip('torch', reason='needs PyTorch: pip install torch')

NETWORKS = [
  {},
  {'name': 'resnet20', 'side': 10},
  {'name': 'resnet18', 'spike_norm': 'psp_bn'},
  {'membrane_norm': 'mpbn_element', 'reset': 'soft', 'learn_v_th': True},
  {'conv_norm': 'none', 'membrane_norm': 'none', 'start': 'mean'},
]


def _graph(**settings):
  model, variables, frames = graphs.network(**settings)
  return graphs.graph_of(model, variables, frames), frames


def _run(twin, frames):
  """Returns (spikes [B, T, H, W, C] of every layer, logits)."""
  spikes = {name: [] for name in twin.neurons}
  for name, module in twin.neurons.items():
    module.register_forward_hook(
      lambda module, x, y, name=name: spikes[name].append(y.numpy())
    )
  x = torch.from_numpy(np.ascontiguousarray(np.moveaxis(frames, -1, 2)))
  with torch.no_grad():
    logits = twin(x).numpy()
  stacked = {name: np.stack(steps, 1) for name, steps in spikes.items()}
  return {n: np.moveaxis(s, 2, -1) for n, s in stacked.items()}, logits


@pytest.mark.parametrize('settings', NETWORKS, ids=str)
def test_twin_fires_the_spikes_of_the_graph(settings):
  graph, frames = _graph(**settings)
  expected, logits = run_graph(graph, frames)
  twin = torch_twin(graph)
  spikes, again = _run(twin, frames)
  for name, layer in expected.items():
    np.testing.assert_array_equal(spikes[name], layer, name)
  np.testing.assert_allclose(again, logits, atol=1e-5)


def test_twin_of_integers_starts_every_call_anew():
  graph, frames = _graph()
  graph = quantize(graph)
  _, logits = run_graph(graph, frames)
  twin = torch_twin(graph)
  for _ in range(2):
    np.testing.assert_allclose(_run(twin, frames)[1], logits, atol=1e-5)


def test_images_are_shown_at_every_step():
  graph, frames = _graph()
  twin, images = torch_twin(graph), frames[:, 0]
  _, logits = run_graph(graph, images)
  with torch.no_grad():
    x = torch.from_numpy(np.moveaxis(images, -1, 1).copy())
    np.testing.assert_allclose(twin(x).numpy(), logits, atol=1e-5)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'conv_norm': 'bntt'}, "'conv1' with the same kernel at every step"),
    ({'conv_norm': 'tebn'}, "'conv1' with the same factor at every step"),
    ({'tau_s': 0.5}, 'without a synaptic filter, got tau_s = 0.5'),
  ],
  ids=str,
)
def test_graphs_with_other_layers_are_refused(settings, message):
  with pytest.raises(InputError, match=message):
    torch_twin(_graph(**settings)[0])


@pytest.mark.skipif(
  importlib.util.find_spec('neurobench') is None,
  reason='needs NeuroBench: pip install neurobench',
)
@pytest.mark.filterwarnings('ignore')
def test_harness_of_neurobench_counts_the_twins_operations():
  from neurobench.benchmarks import Benchmark
  from neurobench.metrics.workload import ActivationSparsity, SynapticOperations
  from neurobench.models import TorchModel

  graph, frames = _graph(name='resnet20')
  twin = torch_twin(graph)
  model = TorchModel(twin)
  model.add_activation_module(type(twin.stem_lif1))
  x = torch.from_numpy(np.moveaxis(frames, -1, 2).copy())
  labels = torch.zeros(len(x), dtype=torch.long)
  loader = torch.utils.data.DataLoader(
    torch.utils.data.TensorDataset(x, labels), batch_size=2
  )
  metrics = [[], [SynapticOperations, ActivationSparsity]]
  found = Benchmark(model, loader, [], [], metrics).run(quiet=True)
  spikes, _ = run_graph(graph, frames)
  fired = sum(layer.sum(dtype=float) for layer in spikes.values())
  silent = 1 - fired / sum(layer.size for layer in spikes.values())
  np.testing.assert_allclose(found['ActivationSparsity'], silent, rtol=1e-6)
  counted = energy(graph, inputs_of(graph, frames), convention='neurobench')
  # What reads frames and average-pooled spikes multiplies.
  assert counted.macs > 0
  assert counted.acs > 0
  assert found['SynapticOperations'] == {
    'Effective_MACs': counted.macs,
    'Effective_ACs': counted.acs,
    'Dense': counted.ann_macs * graph.num_steps,
  }


def test_layers_of_one_name_in_torch_are_refused():
  graph, _ = _graph()
  nodes = [
    dataclasses.replace(node, name='a/b' if node.name == 'conv1' else 'a_b')
    if node.name in ('conv1', 'lif1')
    else node
    for node in graph.nodes
  ]
  names = {'conv1': 'a/b', 'lif1': 'a_b'}
  nodes = [
    dataclasses.replace(
      node, inputs=tuple(names.get(name, name) for name in node.inputs)
    )
    for node in nodes
  ]
  graph = Graph(nodes=tuple(nodes), num_steps=graph.num_steps)
  with pytest.raises(InputError, match="got 'a_b' beside 'a_b': rename one"):
    torch_twin(graph)


def test_channels_come_first():
  graph, frames = _graph()
  with pytest.raises(InputError, match=r"expected frames \['B', 3, 2, 8, 8\]"):
    torch_twin(graph)(torch.from_numpy(frames))


def test_missing_torch_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)
  _twin_class.cache_clear()
  with pytest.raises(InputError, match='got none: pip install torch'):
    torch_twin(_graph()[0])
