"""Graphs of networks: interpreted in NumPy, they fire the network's spikes."""

import graphs
import numpy as np
import pytest
from registered import NEURON_LAYERS, known

from mpbn_jax.graph import run_graph

SETTINGS = [
  *({'conv_norm': norm} for norm in ('bn', 'bntt', 'tebn', 'tab', 'tdbn')),
  {'conv_norm': 'none', 'membrane_norm': 'none'},
  {'conv_norm': 'none', 'membrane_norm': 'none', 'start': 'mean'},
  {'membrane_norm': 'mpbn_element', 'spike_norm': 'psp_bn_step'},
  {'membrane_norm': 'affine', 'tau_s': 0.5},
  {'reset': 'soft', 'learn_tau': True},
  {'reset': 'soft', 'learn_v_th': True, 'spike_norm': 'psp_bn', 'tau_s': 0.3},
]


def _assert_fires_the_same(model, variables, frames, *, logits_within=1e-5):
  """Compares layer by layer, each fed the network's own spikes."""
  graph = graphs.graph_of(model, variables, frames)
  spikes, logits = graphs.run_network(model, variables, frames)
  fed, fed_logits = run_graph(graph, frames, given_spikes=spikes)
  free, _ = run_graph(graph, frames)
  assert list(fed) == list(spikes)
  total = sum(s.size for s in spikes.values())
  flips = sum(int((fed[n] != spikes[n]).sum()) for n in spikes)
  freely = sum(int((free[n] != spikes[n]).sum()) for n in spikes)
  print(f'{flips} flips fed, {freely} free running, of {total}')
  assert flips < 1e-6 * total
  for name, layer in spikes.items():
    assert 0 < layer.mean() < 1, name  # the comparison means something
  np.testing.assert_allclose(fed_logits, logits, rtol=0, atol=logits_within)
  return graph


def _network(name):
  """Returns a registered network, some with a norm that kernels absorb."""
  absorbs = name in ('preact_resnet', 'resnet20', 'spiking_cnn')
  settings = {'spike_norm': 'psp_bn'} if absorbs else {}
  if name == 'preact_resnet':
    settings['depth'] = 16
  return graphs.network(name, **settings)


@pytest.mark.parametrize('name', known('networks'))
def test_graph_of_a_network_fires_its_spikes(name):
  graph = _assert_fires_the_same(*_network(name))
  # 16 layers are a block less in each of the three stages.
  fewer = 6 if name == 'preact_resnet' else 0
  assert len(graph.of_kind('neurons')) == NEURON_LAYERS[name] - fewer


@pytest.mark.parametrize('name', known('networks'))
def test_nir_file_of_a_network_fires_its_spikes(name, tmp_path):
  pytest.importorskip('nir', reason='pip install -r requirements-nir.txt')
  model, variables, frames = _network(name)
  graph = graphs.graph_of(model, variables, frames)
  assert any((n.arrays['polarity'] < 0).any() for n in graph.of_kind('neurons'))
  # The graph's spikes are the network's, as the test above shows.
  spikes, logits = run_graph(graph, frames)
  graphs.assert_nir_fires(graph, frames, spikes, logits, tmp_path / 'n.nir')


@pytest.mark.parametrize('settings', SETTINGS, ids=str)
def test_graph_holds_what_each_setting_changes(settings):
  _assert_fires_the_same(*graphs.network(**settings))


def test_rematerialized_blocks_are_nodes_as_well():
  _assert_fires_the_same(
    *graphs.network('preact_resnet', depth=10, remat=True, conv_norm='none')
  )


def test_odd_maps_keep_incomplete_windows():
  graph = _assert_fires_the_same(*graphs.network('resnet20', side=10))
  ceil = [
    graph[node.inputs[0]].shape[0]
    for node in graph.of_kind('average_pool')
    if node.settings['ceil_mode']
  ]
  assert 5 in ceil


def test_images_are_shown_at_every_step():
  model, variables, frames = graphs.network()
  graph = graphs.graph_of(model, variables, frames)
  images = frames[:, 0]
  spikes, _ = run_graph(graph, images)
  again, _ = run_graph(graph, np.stack([images] * graphs.STEPS, 1))
  for name in spikes:
    np.testing.assert_array_equal(spikes[name], again[name])
