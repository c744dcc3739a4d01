"""Networks that have no graph: each is rejected in a line that says why."""

import flax.linen as nn
import graphs
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpbn_jax import InputError, build_model
from mpbn_jax.graph import Graph, Node, network_graph, run_graph
from mpbn_jax.layers import (
  LIF,
  ConvNorm,
  DenseNorm,
  Factory,
  Identity,
  average_pool,
  mean_over_space,
  over_time,
)
from mpbn_jax.layers.signal import Signal
from mpbn_jax.models.network import SpikingNetwork
from mpbn_jax.models.preact_resnet import SpikingPreActResNet

PLAIN = dict(
  conv=Factory(ConvNorm, norm='none'),
  dense=Factory(DenseNorm, norm='none'),
  lif=Factory(LIF, norm='none'),
  num_steps=2,
  width=2,
)
FRAME = (4, 4, 1)


class OwnLIF(LIF):
  """Neurons of a user."""


def _network(use):
  """Returns a network that does something with the spikes of its first layer.

  `use` is a function of the network and the spikes.
  """

  class Network(SpikingNetwork):
    def encoder(self):
      return self.conv(self.width, name='conv')

    def features(self, currents, *, train):
      return use(self, self.lif(name='lif')(currents, train=train))

  return Network(**PLAIN)


def _graph(model):
  x = jnp.zeros((1, model.num_steps, *FRAME))
  shapes = jax.eval_shape(
    lambda key: model.init(key, x, train=False), jax.random.key(0)
  )
  variables = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.1), shapes)
  return network_graph(model, variables, frame_shape=FRAME)


def _scanned(network, x):
  def body(lif, x, _):
    return lif(x, train=False), None

  scan = nn.scan(
    body, variable_axes={'params': 0}, split_rngs={'params': True}, length=2
  )
  return scan(network.lif(name='scanned'), x, None)[0]


USES = {
  'a product': (lambda n, x: 2 * x, "got the signal of 'lif'"),
  'a difference': (lambda n, x: x - x, "got the signal of 'lif'"),
  'an array added': (lambda n, x: x + jnp.ones(x.shape), 'signal of .lif'),
  'a number added': (lambda n, x: x + 1, "signal of 'lif'"),
  'a function of JAX': (lambda n, x: jnp.tanh(x), "signal of 'lif'"),
  'a concatenation': (lambda n, x: jnp.concatenate([x, x], -1), 'signal of'),
  'a step': (lambda n, x: x[:, :1], "signal of 'lif'"),
  'a reshape': (lambda n, x: x.reshape((1, 2, -1)), "signal of 'lif'"),
  'another mean': (lambda n, x: x.mean(2), "signal of 'lif'"),
  'another layer': (lambda n, x: nn.Dense(3)(x), "signal of 'lif'"),
  'a layer of a user': (
    lambda n, x: OwnLIF(name='own')(x, train=False),
    "signal of 'lif'",
  ),
  'a scan': (_scanned, "'scanned' to read what another layer returns"),
  'jit': (lambda n, x: jax.jit(lambda x: x)(x), 'signal of .lif.'),
  'another dtype': (lambda n, x: x.astype(jnp.bfloat16), 'a float32 network'),
  'a sum of shapes': (
    lambda n, x: x + n.conv(1, name='one')(x, train=False),
    r"the signal of 'lif', \[1, 2, 4, 4, 2\], and that of 'one'",
  ),
  'a mean inside': (
    lambda n, x: over_time(mean_over_space, x),
    'mean_over_space to read',
  ),
  'copies': (
    lambda n, x: n.conv(2, name='c')(x, train=False, copies=2),
    "'c' to read each step once, got copies=2",
  ),
  'an array read': (
    lambda n, x: n.conv(2, name='c')(jnp.zeros((1, 2, 4, 4, 2)), train=False),
    "'c' to read what another layer returns",
  ),
}


@pytest.mark.parametrize('use', USES)
def test_what_a_graph_does_not_express_is_refused_by_name(use):
  function, message = USES[use]
  with pytest.raises(InputError, match=message) as error:
    _graph(_network(function))
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda y: y, r'the mean over time .*float32\[1, 2, 10\]'),
    (lambda y: (y.mean(1), y), 'returns logits'),
    (lambda y: y.mean(1) + y.mean(1), "signal of 'mean_over_time2'|1'"),
    (lambda y: y.sum(1), "signal of 'head'"),
    (lambda y: jnp.zeros((1, 10)), 'returns logits'),
  ],
  ids=['each step', 'two', 'a sum', 'another sum', 'a constant'],
)
def test_other_outputs_are_refused(change, message):
  class Network(SpikingNetwork):
    def encoder(self):
      return self.conv(self.width, name='conv')

    def features(self, currents, *, train):
      return self.lif(name='lif')(currents, train=train)

    def __call__(self, x, *, train):
      return change(self.step_logits(x, train=train))

  with pytest.raises(InputError, match=message):
    _graph(Network(**PLAIN))


def test_pools_outside_over_time_are_refused():
  signal = Signal('x', shape=(1, 2, 4, 4, 1), record=lambda *_, **__: 'y')
  assert (
    repr(signal) == "<signal of 'x', float32[1, 2, 4, 4, 1], without numbers>"
  )
  with pytest.raises(InputError, match='average_pool inside over_time'):
    average_pool(signal, window=2)


def test_training_is_refused():
  model = _network(lambda n, x: n.conv(2, name='c', norm='bn')(x, train=True))
  x = jnp.zeros((1, 2, *FRAME))
  variables = jax.jit(lambda k: model.init(k, x, train=False))(
    jax.random.key(0)
  )
  with pytest.raises(InputError, match="'c' in evaluation, got train=True"):
    network_graph(model, variables, frame_shape=FRAME)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({}, "'conv1' without a norm, got 'bn', which is not folded: .*fold=all"),
    ({'conv_norm': 'none'}, "'lif1' without a norm, got 'mpbn_channel'"),
    (
      {'conv_norm': 'none', 'membrane_norm': 'none', 'spike_norm': 'psp_bn'},
      "'lif1' without a norm, got 'psp_bn'.*readers_of_spikes",
    ),
    (
      {'conv_norm': 'none', 'membrane_norm': 'none', 'spike_norm': 'psp_ln'},
      "does not fold, got 'psp_ln' .its statistics",
    ),
    (
      {'conv_norm': 'none', 'membrane_norm': 'none', 'spike_norm': 'neunorm'},
      "does not fold, got 'neunorm' .it subtracts",
    ),
    ({'dtype': 'bfloat16'}, "build that one|dtype='float32'"),
  ],
  ids=str,
)
def test_open_norms_and_rounded_networks_are_refused(settings, message):
  model = build_model({'name': 'spiking_cnn', 'width': 2, **settings})
  x = jnp.zeros((1, *FRAME))
  variables = jax.tree.map(
    lambda leaf: np.zeros(leaf.shape, leaf.dtype),
    jax.eval_shape(
      lambda key: model.init(key, x, train=False), jax.random.key(0)
    ),
  )
  # Constants are checked against settings.
  variables = jax.tree_util.tree_map_with_path(
    lambda path, leaf: {'v_th': np.float32(0.5), 'eps': np.float32(1e-5)}.get(
      path[-1].key, leaf
    ),
    variables,
  )
  with pytest.raises(InputError, match=message):
    network_graph(model, variables, frame_shape=FRAME)


def test_folded_thresholds_alone_leave_the_norms_of_currents_open():
  model, variables, _ = graphs.network()
  params = {'conv1': {'kernel': variables['folded']['conv1']['kernel']}}
  open_norm = {
    **variables,
    'folded': {k: v for k, v in variables['folded'].items() if k != 'conv1'},
    'params': {**variables['params'], **params},
  }
  with pytest.raises(InputError, match="'conv1' without a norm, got 'bn'"):
    network_graph(model, open_norm, frame_shape=(8, 8, 2))


def test_other_variables_and_models_are_refused():
  model, variables, _ = graphs.network()
  with pytest.raises(InputError, match='cannot be run on signals'):
    network_graph(model, {'params': {}}, frame_shape=(8, 8, 2))
  with pytest.raises(InputError, match="signal of 'input'"):
    network_graph(model, variables, frame_shape=(8, 8))
  with pytest.raises(InputError, match='with num_steps, .* got LIF'):
    network_graph(LIF(), {}, frame_shape=(8, 8, 2))


def test_blocks_are_unstacked_for_their_own_depth_and_class_alone():
  model, variables, _ = graphs.network('preact_resnet', depth=16)
  deeper = SpikingPreActResNet(depth=22, num_steps=3, width=2)
  with pytest.raises(InputError, match="3 blocks in 'stage1_blocks', got"):
    deeper.unstacked(variables)

  class Own(SpikingPreActResNet):
    pass

  with pytest.raises(InputError, match='got its subclass Own: define'):
    Own(depth=16).unstacked(variables)


# ---- what a graph does express


def test_a_users_network_with_sums_pools_and_linear_layers_has_a_graph():
  def use(network, x):
    y = network.conv(2, groups=2, name='depthwise')(x, train=False)
    x = Identity(name='identity')(x) + y
    x = over_time(lambda x: average_pool(x, window=2), x)
    x = network.lif(name='lif2')(x, train=False)
    shared = network.conv(2, name='shared')
    x = network.lif(name='lif3')(
      shared(shared(x, train=False), train=False), train=False
    )
    unread = network.conv(2, name='unread')(x, train=False)
    del unread
    y = network.dense(3, name='each_pixel')(x, train=False)
    y = network.dense(4, flatten=True, name='flat')(y, train=False)
    return network.lif(name='lif4')(y, train=False)

  model = _network(use)
  frames = np.random.default_rng(0).normal(size=(2, 2, *FRAME))
  frames = np.float32(frames)
  shapes = jax.eval_shape(
    lambda key: model.init(key, frames, train=False), jax.random.key(0)
  )
  variables = graphs.made_up(model, shapes)
  graph = network_graph(model, variables, frame_shape=FRAME)
  names = [node.name for node in graph.nodes]
  assert 'shared(2)' in names
  assert 'unread' not in names
  assert [n.name for n in graph.readers('lif')] == ['depthwise', 'add1']
  spikes, logits = graphs.run_network(model, variables, frames)
  fed, fed_logits = run_graph(graph, frames, given_spikes=spikes)
  for name, layer in spikes.items():
    np.testing.assert_array_equal(fed[name], layer)
  np.testing.assert_allclose(fed_logits, logits, atol=1e-5)


# ---- graphs made by hand


def _nodes(**changes):
  nodes = {
    'x': Node(name='x', kind='input', shape=(2,)),
    'd': Node(
      name='d',
      kind='dense',
      inputs=('x',),
      shape=(3,),
      arrays={'kernel': np.zeros((2, 3), np.float32)},
    ),
    'y': Node(name='y', kind='mean_over_time', inputs=('d',), shape=(3,)),
  }
  for name, fields in changes.items():
    old = vars(nodes[name]) if name in nodes else {'name': name}
    nodes[name] = Node(**{**old, **fields})
  return tuple(nodes.values())


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'d': {'kind': 'dens'}}, "unknown kind of node 'dens'.*'dense'"),
    ({'d': {'inputs': ('y',)}}, "'d' to read nodes before it, got 'y'"),
    ({'d': {'inputs': ()}}, "dense 'd' with 1 inputs"),
    ({'d': {'shape': (4,)}}, r"'d' with an output of shape \(3,\)"),
    ({'d': {'shape': (3.0,)}}, "'d' with a shape"),
    ({'d': {'settings': {'stride': 1}}}, "'d' with settings"),
    ({'d': {'arrays': {}}}, r"'d' with arrays \['kernel'\]"),
    ({'d': {'name': 'x'}}, "one node 'x' in a graph, got two"),
    ({'y': {'kind': 'mean_over_space'}}, 'ends with its only mean over time'),
    (
      {'d': {'arrays': {'kernel': np.zeros((3, 3), np.float32)}}},
      r'a kernel for inputs of shape \(2,\)',
    ),
    (
      {'d': {'arrays': {'kernel': np.full((2, 3), np.nan, np.float32)}}},
      'without NaN or infinity',
    ),
    ({'d': {'arrays': {'kernel': np.zeros((2, 3))}}}, 'a float32 kernel'),
    (
      {'d': {'arrays': {'kernel': np.zeros((5, 2, 3), np.float32)}}},
      'a kernel of 2 steps',
    ),
  ],
  ids=str,
)
def test_graph_that_is_not_consistent_is_refused(changes, message):
  Graph(nodes=_nodes(), num_steps=2)
  with pytest.raises(InputError, match=message):
    Graph(nodes=_nodes(**changes), num_steps=2)


def test_interpreter_refuses_other_inputs():
  graph = Graph(nodes=_nodes(), num_steps=2)
  with pytest.raises(InputError, match=r"expected frames \['B', 2, 2\] or"):
    run_graph(graph, np.zeros((1, 3, 2)))
  with pytest.raises(InputError, match='some for lif9: give those'):
    run_graph(graph, np.zeros((1, 2, 2)), given_spikes={'lif9': np.zeros(1)})
  with pytest.raises(InputError, match="unknown node 'z'"):
    graph['z']
  with pytest.raises(InputError, match="unknown kind of node 'lif'"):
    graph.of_kind('lif')
