"""NIR files: their interpreter and torch fire the network's spikes."""

import importlib.util
import sys

import common
import graphs
import numpy as np
import pytest

from mpbn_jax import InputError, fold_all, strip
from mpbn_jax.graph import Graph, Node, run_graph
from mpbn_jax.interop.nir import (
  DT,
  nir_names,
  read_golden,
  read_nir,
  write_golden,
  write_nir,
)
from mpbn_jax.interop.nir_interpreter import run_nir

nir = pytest.importorskip('nir', reason='pip install -r requirements-nir.txt')


def test_golden_resnet20_with_negative_scales(tmp_path):
  _, model, variables, x, _ = common.golden('resnet20_t2')
  variables = strip(fold_all(common.random_norms(variables)))
  frames = np.repeat(np.asarray(x)[:, None], model.num_steps, 1)
  graph = graphs.graph_of(model, variables, frames)
  spikes, logits = graphs.run_network(model, variables, frames)
  for name, layer in spikes.items():
    assert 0 < layer.mean() < 1, name
  graphs.assert_nir_fires(graph, frames, spikes, logits, tmp_path / 'n.nir')


@pytest.mark.parametrize(
  'settings',
  [
    {'learn_tau': True, 'learn_v_th': True},
    {'tau': 0.0},
    {'conv_norm': 'tdbn'},
    {'conv_norm': 'none', 'membrane_norm': 'none'},
  ],
  ids=str,
)
def test_settings_that_nir_expresses(settings, tmp_path):
  model, variables, frames = graphs.network(**settings)
  graph = graphs.graph_of(model, variables, frames)
  spikes, logits = run_graph(graph, frames)
  path = tmp_path / 'n.nir'
  graphs.assert_nir_fires(graph, frames, spikes, logits, path, dt=0.5)


# ---- the form of a file


def _one(kind, graph):
  return [n for n in graph.nodes.values() if type(n).__name__ == kind]


def test_form_of_neurons_and_shortcuts(tmp_path):
  graph = graphs.graph_of(*graphs.network('resnet20'))
  write_nir(tmp_path / 'n.nir', graph, dt=2e-3)
  read = read_nir(tmp_path / 'n.nir')
  assert read.metadata['dt'] == 2e-3
  node, lif = graph['stem_lif1'], read.nodes['stem_lif1']
  polarity, threshold = node.arrays['polarity'], node.arrays['threshold']
  np.testing.assert_allclose(lif.tau, 2e-3 / (1 - 0.25), rtol=1e-6)
  for name in ('v_leak', 'v_reset'):
    assert (getattr(lif, name) == 0).all()
  assert (lif.r == 1).all()
  assert lif.v_threshold.shape == (2, 16, 16)
  np.testing.assert_array_equal(lif.v_threshold[:, 3, 4], polarity * threshold)
  kernel = graph['stem_conv1'].arrays['kernel'] * polarity / 0.75
  weight = read.nodes['stem_conv1'].weight
  np.testing.assert_allclose(weight, kernel.transpose(3, 2, 0, 1), rtol=1e-6)
  # An identity shortcut is a diagonal of +-1 / (1 - tau).
  (shortcut,) = (
    a for a, b in read.edges if b == 'stage1_block1_lif2' and 'scaled' in a
  )
  signs = graph['stage1_block1_lif2'].arrays['polarity']
  np.testing.assert_allclose(
    read.nodes[shortcut].weight[:, :, 0, 0], np.diag(signs / 0.75), rtol=1e-6
  )
  kinds = {type(node).__name__ for node in read.nodes.values()}
  assert kinds == {'Input', 'Conv2d', 'AvgPool2d', 'LIF', 'Output'}
  assert read.nodes['head'].weight.shape[2:] == (1, 1)


def test_readers_that_disagree_get_scales_of_their_own(tmp_path):
  """A sum with several readers is one node, as it is."""
  model, variables, frames = graphs.network('preact_resnet', depth=16)
  write_nir(tmp_path / 'n.nir', graphs.graph_of(model, variables, frames))
  read = read_nir(tmp_path / 'n.nir')
  into = [b for _, b in read.edges]
  assert max(map(into.count, into)) == 2  # edges do not pile up with depth


def _by_hand(*nodes, num_steps=2):
  return Graph(
    nodes=(
      *nodes,
      Node(
        name='y',
        kind='mean_over_time',
        inputs=(nodes[-1].name,),
        shape=nodes[-1].shape,
      ),
    ),
    num_steps=num_steps,
  )


def _neurons(name, source, shape, **arrays):
  filled = {'threshold': 0.3, 'polarity': 1, 'tau': 0.25, 'start': 0} | arrays
  return Node(
    name=name,
    kind='neurons',
    inputs=(source,),
    shape=shape,
    settings={'reset': 'hard'},
    arrays={
      key: np.asarray(
        np.broadcast_to(value, shape[-1:])
        if key in ('threshold', 'polarity') and np.ndim(value) < 2
        else value,
        np.float32,
      )
      for key, value in filled.items()
    },
  )


def test_signs_go_through_pools_groups_and_sums_of_the_same(tmp_path):
  rng, shape = np.random.default_rng(0), (4, 4, 4)
  pooled = (2, 2, 4)
  graph = _by_hand(
    Node(name='x', kind='input', shape=shape),
    _neurons('a', 'x', shape, polarity=[1, -1, 1, -1]),
    Node(
      name='c',
      kind='convolution',
      inputs=('a',),
      shape=shape,
      settings={'stride': 1, 'padding': 1, 'groups': 2},
      arrays={
        'kernel': np.float32(rng.normal(size=(3, 3, 2, 4))),
        'bias': np.float32(rng.normal(size=4)),
      },
    ),
    Node(name='twice', kind='add', inputs=('c', 'c'), shape=shape),
    Node(
      name='p',
      kind='average_pool',
      inputs=('twice',),
      shape=pooled,
      settings={'window': 2, 'stride': 2, 'padding': 0, 'ceil_mode': True},
    ),
    _neurons('b', 'p', pooled, polarity=[-1, 1, 1, -1], tau=0.5),
    Node(name='twice again', kind='add', inputs=('b', 'b'), shape=pooled),
    _neurons('d', 'twice again', pooled, polarity=-1, threshold=1.5),
    Node(
      name='head',
      kind='dense',
      inputs=('d',),
      shape=(3,),
      arrays={'kernel': np.float32(rng.normal(size=(16, 3)))},
    ),
  )
  frames = np.float32(rng.normal(size=(8, 2, *shape)))
  spikes, logits = run_graph(graph, frames)
  assert all(0 < layer.mean() < 1 for layer in spikes.values())
  graphs.assert_nir_fires(graph, frames, spikes, logits, tmp_path / 'n.nir')


def test_always_and_never_firing_neurons_survive(tmp_path):
  shape = (2, 2, 2)
  graph = _by_hand(
    Node(name='x', kind='input', shape=shape),
    _neurons('a', 'x', shape, threshold=[np.inf, -np.inf], polarity=[-1, 1]),
  )
  frames = np.float32(np.random.default_rng(0).normal(size=(2, 2, *shape)))
  spikes, logits = run_graph(graph, frames)
  assert spikes['a'].all()
  write_nir(tmp_path / 'n.nir', graph)
  out, _ = run_nir(
    read_nir(tmp_path / 'n.nir'), graphs.channels_first(frames), dt=DT
  )
  np.testing.assert_array_equal(out['a'], graphs.channels_first(spikes['a']))
  del logits


# ---- what NIR does not express


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'reset': 'soft'}, "'lif1' to have a hard reset, got 'soft'"),
    ({'conv_norm': 'bntt'}, "'conv1' to have the same kernel at every step"),
    ({'conv_norm': 'tebn'}, "'conv1' to have the same factor at every step"),
    ({'conv_norm': 'tab'}, "'conv1' to have the same kernel at every step"),
    ({'spike_norm': 'psp_bn_step'}, "'conv2' to have the same kernel at every"),
    ({'tau_s': 0.5}, "'lif1/spike_norm' to have no synaptic filter, got tau_s"),
    (
      {'conv_norm': 'none', 'membrane_norm': 'none', 'start': 'mean'},
      "'lif1' to have neurons that start at 0, got 0.1",
    ),
    (
      {'name': 'resnet20', 'side': 10},
      'windows of 2x2 that tile its maps, got maps of 5x5',
    ),
    (
      {'membrane_norm': 'mpbn_element'},
      'to have one polarity per channel, got both',
    ),
  ],
  ids=str,
)
def test_what_nir_does_not_express_is_refused_by_name(
  settings, message, tmp_path
):
  graph = graphs.graph_of(*graphs.network(**settings))
  with pytest.raises(InputError, match=message) as error:
    write_nir(tmp_path / 'n.nir', graph)
  assert '\n' not in str(error.value)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('dt', [0, -1e-3, float('nan'), float('inf')])
def test_steps_that_are_no_time_are_refused(dt, tmp_path):
  with pytest.raises(InputError, match='expected a dt > 0 in seconds, got'):
    write_nir(tmp_path / 'n.nir', _by_hand(*_identity()), dt=dt)


def _identity():
  return (
    Node(name='x', kind='input', shape=(2, 2, 1)),
    _neurons('a', 'x', (2, 2, 1)),
  )


def test_scales_of_each_step_are_refused(tmp_path):
  entry, _ = _identity()
  scale = Node(
    name='s',
    kind='scale',
    inputs=('x',),
    shape=(2, 2, 1),
    arrays={'scale': np.ones((2, 1), np.float32)},
  )
  with pytest.raises(InputError, match="'s' to have the same scale at every"):
    write_nir(tmp_path / 'n.nir', _by_hand(entry, scale))


def test_tau_of_1_is_refused(tmp_path):
  entry, _ = _identity()
  graph = _by_hand(entry, _neurons('a', 'x', (2, 2, 1), tau=1))
  with pytest.raises(InputError, match="'a' to have a tau below 1, got 1"):
    write_nir(tmp_path / 'n.nir', graph)


@pytest.mark.parametrize('read', [read_nir, read_golden])
def test_garbage_in_place_of_a_file_is_refused_in_a_line(read, tmp_path):
  path = tmp_path / 'n.nir'
  with pytest.raises(InputError, match='got no file'):
    read(path)
  path.write_bytes(b'garbage\n' * 99)
  with pytest.raises(InputError, match='which cannot be read') as error:
    read(path)
  assert '\n' not in str(error.value)
  write_nir(path, _by_hand(*_identity()))
  path.write_bytes(path.read_bytes()[:-99])
  with pytest.raises(InputError, match='which cannot be read') as error:
    read(path)
  assert '\n' not in str(error.value)


def test_interpreter_names_nodes_that_it_does_not_know():
  graph = nir.NIRGraph.from_list(nir.IF(r=np.ones(1), v_threshold=np.ones(1)))
  with pytest.raises(InputError, match='got IF .if.'):
    run_nir(graph, np.zeros((1, 1, 1)), dt=1)


def test_interpreter_refuses_other_inputs(tmp_path):
  write_nir(tmp_path / 'n.nir', _by_hand(*_identity()))
  graph, frames = read_nir(tmp_path / 'n.nir'), np.zeros((1, 2, 1, 2, 2))
  with pytest.raises(InputError, match='channels come first'):
    run_nir(graph, np.zeros((1, 2, 2, 2, 1)), dt=DT)
  with pytest.raises(InputError, match='LIF nodes a, got some for b'):
    run_nir(graph, frames, dt=DT, given_spikes={'b': frames})
  with pytest.raises(InputError, match="expected 'a' of shape"):
    run_nir(graph, frames, dt=DT, given_spikes={'a': frames[..., 0]})


# ---- golden spikes


def test_golden_spikes_are_read_as_they_were_written(tmp_path):
  model, variables, frames = graphs.network()
  graph = graphs.graph_of(model, variables, frames)
  spikes, logits = run_graph(graph, frames)
  path = tmp_path / 'golden.nir'
  write_golden(path, frames, spikes, logits, dt=0.25)
  nodes = read_golden(path).nodes
  for name, stored in nir_names(graph).items():
    data = nodes[stored].observables['spikes']
    assert data.dt == 0.25
    expected = graphs.channels_first(spikes[name]).reshape(data.shape)
    np.testing.assert_array_equal(data.data, expected > 0)
  data = nodes['input'].observables['input'].data
  np.testing.assert_array_equal(
    data, graphs.channels_first(frames).reshape(data.shape)
  )
  data = nodes['output'].observables['mean_over_time'].data
  np.testing.assert_array_equal(data[:, 0], logits)


# ---- an independent reader


@pytest.mark.skipif(
  importlib.util.find_spec('nirtorch') is None,
  reason='needs PyTorch and nirtorch: pip install torch nirtorch',
)
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', ['spiking_cnn', 'resnet20', 'preact_resnet'])
def test_nirtorch_fires_the_same_with_a_neuron_of_six_lines(name, tmp_path):
  import nirtorch
  import torch

  class Neuron(torch.nn.Module):
    def __init__(self, node):
      super().__init__()
      self.decay = torch.from_numpy(np.array(DT / node.tau))
      self.threshold = torch.from_numpy(np.array(node.v_threshold))
      self.spikes = []

    def forward(self, x, state=None):
      v = torch.zeros_like(x) if state is None else state
      v = v + self.decay * (x - v)
      s = (v > self.threshold).float()
      self.spikes.append(s.numpy())
      return s, v * (1 - s)

  depth = {'depth': 16} if name == 'preact_resnet' else {}
  model, variables, frames = graphs.network(name, spike_norm='psp_bn', **depth)
  graph = graphs.graph_of(model, variables, frames)
  spikes, logits = run_graph(graph, frames)
  write_nir(tmp_path / 'n.nir', graph)
  network = nirtorch.nir_to_torch(
    read_nir(tmp_path / 'n.nir'), {nir.LIF: Neuron}
  )
  inputs, state, outputs = graphs.channels_first(frames), None, []
  with torch.no_grad():
    for t in range(frames.shape[1]):
      y, state = network(torch.from_numpy(inputs[:, t].copy()), state)
      outputs.append(y.numpy())
  for layer, stored in nir_names(graph).items():
    theirs = np.stack(getattr(network, stored).spikes, 1)
    np.testing.assert_array_equal(
      theirs, graphs.channels_first(spikes[layer]), layer
    )
  mean = np.mean(outputs, 0).reshape(logits.shape)
  np.testing.assert_allclose(mean, logits, atol=1e-5)


def test_missing_package_is_named(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, 'nir', None)
  with pytest.raises(InputError, match=r"package 'nir', got none: .*\[nir\]"):
    read_nir(tmp_path / 'n.nir')
