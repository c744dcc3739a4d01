"""Graphs on disk and in integers: read back bit by bit, damage in one line."""

import hashlib
import json
import math

import graphs
import numpy as np
import pytest

from mpbn_jax import InputError
from mpbn_jax.graph import (
  Graph,
  Node,
  compare_graphs,
  quantize,
  read_network,
  run_graph,
  write_network,
)

NETWORKS = [
  {},
  {'name': 'resnet20', 'spike_norm': 'psp_bn'},
  {'membrane_norm': 'mpbn_element', 'reset': 'soft', 'learn_v_th': True},
  {'conv_norm': 'tebn', 'tau_s': 0.5},
]


def _graph(**settings):
  model, variables, frames = graphs.network(**settings)
  return graphs.graph_of(model, variables, frames), frames


def _with_infinite_thresholds(graph):
  first = graph.of_kind('neurons')[0]
  threshold = first.arrays['threshold'].copy()
  threshold[:1], threshold[1:] = np.inf, -np.inf
  return Graph(
    nodes=tuple(
      Node(**vars(node) | {'arrays': {**node.arrays, 'threshold': threshold}})
      if node is first
      else node
      for node in graph.nodes
    ),
    num_steps=graph.num_steps,
  )


def _assert_equal(graph, other):
  assert graph.num_steps == other.num_steps
  for a, b in zip(graph.nodes, other.nodes, strict=True):
    fields = ('name', 'kind', 'inputs', 'shape', 'settings')
    assert all(getattr(a, f) == getattr(b, f) for f in fields)
    assert a.arrays.keys() == b.arrays.keys()
    for name, array in a.arrays.items():
      assert b.arrays[name].dtype == np.float32
      np.testing.assert_array_equal(array, b.arrays[name], f'{a.name}/{name}')


@pytest.mark.parametrize('settings', NETWORKS, ids=str)
@pytest.mark.parametrize('bits', [None, 8])
def test_graph_is_read_as_it_was_written(settings, bits, tmp_path):
  graph = _with_infinite_thresholds(_graph(**settings)[0])
  if bits and settings.get('conv_norm') == 'tebn':
    with pytest.raises(InputError, match="factor per step, got one in 'conv1'"):
      quantize(graph, bits=bits)
    return
  graph = quantize(graph, bits=bits) if bits else graph
  write_network(tmp_path / 'new', graph)
  _assert_equal(graph, read_network(tmp_path / 'new'))


def test_quantized_files_hold_integers(tmp_path):
  graph = quantize(_graph(name='resnet20')[0])
  write_network(tmp_path, graph)
  with np.load(tmp_path / 'network.npz') as arrays:
    for key in arrays.files:
      name = key.rpartition('/')[2]
      kinds = {
        'kernel': np.int8,
        **dict.fromkeys(('bias', 'threshold'), np.int32),
      }
      assert arrays[key].dtype == kinds.get(name, np.float32) or name == 'scale'
      if name == 'kernel':
        assert 0 < np.abs(arrays[key]).max() <= 127


# ---- the integers


@pytest.mark.parametrize('bits', [8, 4])
@pytest.mark.parametrize(
  'settings', [*NETWORKS[:3], {'name': 'resnet20', 'side': 10}], ids=str
)
def test_integers_alone_give_the_decisions(settings, bits):
  """Everything behind the first neurons is an integer, but for the leak."""
  graph, frames = _graph(**settings)
  graph = quantize(graph, bits=bits)
  spikes, _ = run_graph(graph, frames)
  top = 2 ** (bits - 1) - 1
  for node in graph.of_kind('convolution', 'dense'):
    integers = node.arrays['kernel'].astype(np.float64) / node.arrays['step']
    np.testing.assert_allclose(integers, np.rint(integers), atol=1e-4)
    assert np.abs(integers).max() <= top + 1e-4
  for node in graph.of_kind('neurons'):
    first = graph[node.inputs[0]]
    if graph.nodes[0].name in first.inputs:
      continue  # frames are real
    unit = node.arrays['step'].astype(np.float64)
    currents = _currents(graph, node.inputs[0], spikes, frames) / unit
    np.testing.assert_allclose(currents, np.rint(currents), atol=1e-2)
    theta = node.arrays['threshold'] / unit
    np.testing.assert_allclose(theta, np.rint(theta), atol=1e-2)


def _currents(graph, name, spikes, frames):
  """Returns what a node returns, by ending the graph there."""
  nodes = []
  for node in graph.nodes:
    nodes.append(node)
    if node.name == name:
      break
  end = Node(
    name='end', kind='mean_over_time', inputs=(name,), shape=nodes[-1].shape
  )
  part = Graph(nodes=(*nodes, end), num_steps=graph.num_steps)
  _, mean = run_graph(
    part,
    frames,
    given_spikes={n.name: spikes[n.name] for n in nodes if n.kind == 'neurons'},
  )
  return mean.astype(np.float64) * graph.num_steps


def test_eight_bits_change_few_spikes_and_fewer_bits_more():
  graph, frames = _graph(name='resnet20')

  def share(bits):
    found = compare_graphs(
      graph, quantize(graph, bits=bits), frames, batch_size=1
    )
    # Without feeding, differences add up.
    assert found.flips <= found.free_flips
    return found.flips / found.spikes

  shares = share(8), share(4), share(2)
  print('flips of fed layers, 8, 4, 2 bits:', shares)
  assert 0 < shares[0] < 0.005 < shares[1] < shares[2]


def test_a_graph_differs_from_itself_in_nothing():
  graph, frames = _graph()
  found = compare_graphs(graph, graph, frames)
  spikes, logits = run_graph(graph, frames)
  assert found.spikes == sum(layer.size for layer in spikes.values())
  assert (found.flips, found.free_flips) == (0, 0)
  np.testing.assert_array_equal(found.logits, logits)
  np.testing.assert_array_equal(found.other_logits, logits)


def test_graphs_of_other_networks_are_not_compared():
  graph, frames = _graph()
  other, _ = _graph(name='resnet19')
  with pytest.raises(InputError, match='same neuron layers, got lif1, lif2, l'):
    compare_graphs(graph, other, frames)
  with pytest.raises(InputError, match='got 0 examples and 64'):
    compare_graphs(graph, graph, frames[:0])


def test_tau_becomes_a_ratio_below_1():
  graph, _ = _graph(learn_tau=True)
  tau = float(quantize(graph).of_kind('neurons')[0].arrays['tau'])
  assert tau * 256 == round(tau * 256)
  assert abs(tau - 1 / (1 + math.exp(0.7))) <= 1 / 512


@pytest.mark.parametrize(
  ('settings', 'bits', 'message'),
  [
    ({}, 9, '2 to 8 bits of kernels, got 9'),
    ({}, 1, '2 to 8 bits of kernels, got 1'),
    ({}, True, '2 to 8 bits of kernels, got True'),
    (
      {'tau_s': 0.5},
      8,
      "'conv2' to read spikes or frames, got the real values",
    ),
  ],
  ids=str,
)
def test_what_has_no_integers_is_refused(settings, bits, message):
  with pytest.raises(InputError, match=message):
    quantize(_graph(**settings)[0], bits=bits)


def test_integers_are_not_quantized_again():
  with pytest.raises(InputError, match="got 'conv1' with integers"):
    quantize(quantize(_graph()[0]))


# ---- damage


@pytest.fixture
def written(tmp_path):
  write_network(tmp_path, _graph()[0])
  return tmp_path


def _edit(change):
  def damage(directory):
    path = directory / 'network.json'
    wiring = json.loads(path.read_text())
    change(wiring)
    path.write_text(json.dumps(wiring))

  return damage


def _garbage(name):
  return lambda directory: (directory / name).write_bytes(b'\x00garbage\n' * 9)


def _half(name):
  def damage(directory):
    content = (directory / name).read_bytes()
    (directory / name).write_bytes(content[: len(content) // 2])

  return damage


DAMAGE = {
  'garbage in the arrays': (_garbage('network.npz'), 'is not the file that'),
  'garbage in the wiring': (_garbage('network.json'), 'files are damaged'),
  'half the arrays': (_half('network.npz'), 'is not the file that'),
  'half the wiring': (_half('network.json'), 'files are damaged'),
  'no arrays': (lambda d: (d / 'network.npz').unlink(), 'No such file'),
  'no wiring': (lambda d: (d / 'network.json').unlink(), 'No such file'),
  'a list': (
    lambda d: (d / 'network.json').write_text('[]'),
    'files are damaged .TypeError',
  ),
  'another format': (_edit(lambda w: w.update(format=9)), 'has format 9'),
  'no steps': (_edit(lambda w: w.update(num_steps=0)), 'number of steps >= 1'),
  'another tau': (
    _edit(lambda w: w['nodes'][2]['settings'].update(reset='x')),
    'one of the resets hard, soft',
  ),
  'a node less': (
    _edit(lambda w: w['nodes'].pop(3)),
    'no node has the array|to',
  ),
  'an array less': (
    _edit(lambda w: w['nodes'][1]['arrays'].pop('bias')),
    "no node has the array 'conv1/bias'",
  ),
  'an entry more': (
    _edit(lambda w: w['nodes'][1].update(more=1)),
    'a node has the entries',
  ),
  'another stride': (
    _edit(lambda w: w['nodes'][1]['settings'].update(stride=2)),
    "'conv1' with an output of shape",
  ),
}


@pytest.mark.parametrize('case', DAMAGE)
def test_damaged_files_are_refused_in_a_line(case, written):
  damage, message = DAMAGE[case]
  damage(written)
  with pytest.raises(InputError, match=message) as error:
    read_network(written)
  assert '\n' not in str(error.value)


def test_pickles_are_not_opened(written):
  path = written / 'network.npz'
  np.savez(path, a=np.array([{}], object))

  _edit(
    lambda w: w.update(sha256=hashlib.sha256(path.read_bytes()).hexdigest())
  )(written)
  with pytest.raises(InputError, match='allow_pickle=False'):
    read_network(written)
