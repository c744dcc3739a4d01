"""Nonzero inputs of graphs on the device, against the slow interpreter."""

import common
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from mpbn_jax import fold_all, strip
from mpbn_jax.analysis.conventions import CONVENTIONS
from mpbn_jax.analysis.energy import energy
from mpbn_jax.analysis.inputs import count_inputs, inputs_of, run
from mpbn_jax.experiment import build
from mpbn_jax.graph import Graph, Node, network_graph, run_graph
from mpbn_jax.wiring import readers_of_spikes

STEPS = 2


def _folded(model, variables, x):
  readers = readers_of_spikes(model, variables, x)
  return strip(fold_all(variables, readers=readers))


NETWORKS = {
  'images': ('--config.model.conv_norm=tebn',),
  'events': (
    '--config.data.name=event_digits',
    '--config.model.conv_norm=bntt',
  ),
  'blocks': (
    '--config.model.name=preact_resnet',
    '--config.model.depth=10',
    '--config.model.spike_norm=psp_bn',
  ),
}


@pytest.mark.parametrize('name', NETWORKS)
def test_nonzero_inputs_are_those_of_the_slow_interpreter(name):
  experiment = build(
    runs.config(
      '--config.data.fake=8',
      '--config.data.batch_size=8',
      '--config.evaluation.batch_size=12',
      *NETWORKS[name],
    )
  )
  x = jnp.zeros((2, *experiment.dataset.example_shape))
  variables = common.random_variables(experiment.model, x)
  folded = _folded(experiment.model, variables, x)
  shape = experiment.dataset.spec.image_shape
  graph = network_graph(experiment.model, folded, frame_shape=shape)
  test = experiment.dataset.splits['test']
  images, _ = test.read(np.arange(8))
  frames = np.asarray(experiment.dataset.spec.normalize(jnp.asarray(images)))
  spikes, _ = run_graph(graph, frames)
  found = count_inputs(graph, experiment)
  assert found.examples == 8
  assert found.static == (name != 'events')
  for layer, fired in spikes.items():
    out = found.outputs[layer]
    # Products accumulated in another order may move a spike.
    difference = np.abs(out.nonzero - fired.sum(0)).sum()
    assert difference <= 1e-3 * fired.size
    assert out.binary
    assert out.ternary
  for node in graph.nodes:
    binary = node.kind == 'neurons'
    assert found.outputs[node.name].binary == binary
  for convention in CONVENTIONS:
    assert energy(graph, found, convention=convention).macs > 0


def test_every_kind_of_node_runs_as_in_the_slow_interpreter():
  """Those that few networks have, and kernels and scales of each step."""
  rng = np.random.default_rng(0)

  def array(*shape):
    return rng.normal(0, 1, shape).astype(np.float32)

  def node(kind, reads, shape, settings=(), **arrays):
    return Node(
      name=kind,
      kind=kind,
      inputs=(reads,),
      shape=shape,
      settings=dict(settings),
      arrays=arrays,
    )

  graph = Graph(
    nodes=(
      Node(name='input', kind='input', shape=(5, 5, 2)),
      node('scale', 'input', (5, 5, 2), scale=array(STEPS, 2)),
      node(
        'average_pool',
        'scale',
        (3, 3, 2),
        {'window': 2, 'stride': 2, 'padding': 0, 'ceil_mode': True},
      ),
      node(
        'convolution',
        'average_pool',
        (3, 3, 4),
        {'stride': 1, 'padding': 1, 'groups': 2},
        kernel=array(STEPS, 3, 3, 1, 4),
        bias=array(STEPS, 4),
        factor=array(STEPS),
      ),
      node(
        'neurons',
        'convolution',
        (3, 3, 4),
        {'reset': 'soft'},
        threshold=array(3, 3, 4),
        polarity=np.sign(array(3, 3, 4)),
        tau=np.float32(0.5),
        start=np.float32(0.1),
        v_th=np.float32(0.4),
      ),
      node('filter', 'neurons', (3, 3, 4), {'tau_s': 0.5}),
      node('dense', 'filter', (6,), kernel=array(36, 6), bias=array(6)),
      node('mean_over_time', 'dense', (6,)),
    ),
    num_steps=STEPS,
  )
  frames = array(7, 5, 5, 2)
  spikes, logits = run_graph(graph, frames)
  arrays = {each.name: dict(each.arrays) for each in graph.nodes}
  ours = run(
    graph, arrays, jnp.asarray(frames[:, None]), each=lambda node, x: x
  )
  np.testing.assert_allclose(ours, logits, rtol=1e-4, atol=1e-4)
  found = inputs_of(graph, frames)
  np.testing.assert_array_equal(
    found.outputs['neurons'].nonzero, spikes['neurons'].sum(0)
  )
  assert found.outputs['neurons'].binary
  assert not found.outputs['filter'].binary
