"""Operations and energy: by hand, and against closed formulas of networks."""

import dataclasses
import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpbn_jax import InputError, build_model
from mpbn_jax.analysis.conventions import CONVENTIONS, Convention
from mpbn_jax.analysis.energy import energy, picojoules
from mpbn_jax.analysis.inputs import (
  Inputs,
  Output,
)
from mpbn_jax.graph import Graph, Node, network_graph


def _neurons(name, reads, shape):
  ones = np.ones(shape[-1:], np.float32)
  return Node(
    name=name,
    kind='neurons',
    inputs=(reads,),
    shape=shape,
    settings={'reset': 'hard'},
    arrays={
      'threshold': ones,
      'polarity': ones,
      'tau': np.float32(0),
      'start': np.float32(0),
    },
  )


def _two_layers():
  """Returns a graph of two convolutions on 3x3 maps, T = 2, and its inputs.

  Of 4 examples. The image has one channel, and its centre is 0 in one example.
  The first kernel has 2 channels and one weight that is 0. Of the spikes, in
  channel 0 a corner fires in 3 examples at the first step and in 1 at the
  second; in channel 1 the centre fires in 4 and in 2.
  """
  first = np.ones((3, 3, 1, 2), np.float32)
  first[1, 1, 0, 0] = 0
  second = np.ones((3, 3, 2, 5), np.float32)
  convolution = {'stride': 1, 'padding': 1, 'groups': 1}
  nodes = (
    Node(name='input', kind='input', shape=(3, 3, 1)),
    Node(
      name='conv1',
      kind='convolution',
      inputs=('input',),
      shape=(3, 3, 2),
      settings=convolution,
      arrays={'kernel': first, 'bias': np.ones(2, np.float32)},
    ),
    _neurons('lif1', 'conv1', (3, 3, 2)),
    Node(
      name='conv2',
      kind='convolution',
      inputs=('lif1',),
      shape=(2, 2, 5),
      settings={**convolution, 'stride': 2},
      arrays={'kernel': second},
    ),
    Node(
      name='mean_over_space1',
      kind='mean_over_space',
      inputs=('conv2',),
      shape=(5,),
    ),
    Node(
      name='mean_over_time1',
      kind='mean_over_time',
      inputs=('mean_over_space1',),
      shape=(5,),
    ),
  )
  image = np.full((2, 3, 3, 1), 4)
  image[:, 1, 1] = 3
  spikes = np.zeros((2, 3, 3, 2), int)
  spikes[:, 0, 0, 0] = 3, 1
  spikes[:, 1, 1, 1] = 4, 2
  real = dict(binary=False, ternary=False)
  outputs = {
    'input': Output(nonzero=image, **real),
    'conv1': Output(nonzero=np.full((2, 3, 3, 2), 4), **real),
    'lif1': Output(nonzero=spikes, binary=True, ternary=True),
    'conv2': Output(nonzero=np.full((2, 2, 2, 5), 4), **real),
    'mean_over_space1': Output(nonzero=np.full((2, 5), 4), **real),
  }
  inputs = Inputs(examples=4, outputs=outputs, static=True)
  return Graph(nodes=nodes, num_steps=2), inputs


# Written out, for one example.
#
# conv1: 9 places x 9 taps x 1 x 2 channels = 162 MACs a step, 324 in two.
#   Inside of the map: a corner is under 4 taps, an edge under 6, the centre
#   under 9: 4 x 4 + 4 x 6 + 9 = 49 taps, x 2 channels = 98 MACs a step.
#   Without the weight that is 0, at the central tap, which all 9 inputs meet:
#   98 - 9 = 89. The centre of the image is 0 in 1 of 4 examples and then saves
#   9 x 2 - 1 = 17: 89 - 17 / 4 = 84.75 a step, 169.5 in two.
# conv2, stride 2: 4 places x 9 taps x 2 x 5 = 360 a step, 720 in two; the input
#   has 2 x 18 = 36 values, of which (3 + 1 + 4 + 2) / 4 = 2.5 fire:
#   720 x 2.5 / 36 = 50 ACs.
#   The corner is under one tap (the first place reads rows and columns -1 to
#   1), 5 weights: 1 spike, 5 ACs. The centre is in all 4 windows: 1.5 spikes x
#   4 x 5 = 30. Together 35 ACs.
#   As an ANN, inside of the map: 4 windows of 4 values, 2 x 5 each: 160 MACs.
BY_HAND = {
  'mpbn_jax': (324, 50, 162 + 360, 0),
  'neurobench': (169.5, 35, 98 + 160, 0),
  # Means: 4 x 5 - 5 a step in space; 2 x 5 - 5 in time.
  'spikingjelly': (324, 35 + 2 * 15 + 5, 162 + 360, 15),
  # A bias is an addition to each of 18 currents; a neuron an AC each step; the
  # mean in space reads 20 real numbers a step.
  'syops': (324 + 36 + 40, 50 + 36, 162 + 18 + 360 + 20, 0),
}


@pytest.mark.parametrize('name', CONVENTIONS)
def test_two_layers_are_counted_as_by_hand(name):
  found = energy(*_two_layers(), convention=name)
  macs, acs, ann_macs, ann_acs = BY_HAND[name]
  assert (found.macs, found.acs) == (macs, acs)
  assert (found.ann_macs, found.ann_acs) == (ann_macs, ann_acs)
  assert found.picojoules == pytest.approx(4.6 * macs + 0.9 * acs)
  assert found.ann_picojoules == pytest.approx(4.6 * ann_macs + 0.9 * ann_acs)
  # conv1 reads the image; it is all that may be computed once.
  first = next(each for each in found.layers if each.name == 'conv1')
  assert first.constant
  half = found.macs - first.macs / 2
  assert found.other_first_layer == (half, found.acs)
  assert found.once_picojoules == pytest.approx(picojoules(half, found.acs))


def test_the_first_layer_is_counted_once_if_the_convention_says_so():
  own = dataclasses.replace(CONVENTIONS['mpbn_jax'], first_layer='once')
  found = energy(*_two_layers(), convention=own)
  assert (found.macs, found.acs) == (162, 50)
  assert found.other_first_layer == (324, 50)
  assert found.once_picojoules == found.picojoules


def test_frames_that_differ_are_read_at_every_step():
  graph, inputs = _two_layers()
  own = Convention(source='test', first_layer='once')
  found = energy(
    graph, dataclasses.replace(inputs, static=False), convention=own
  )
  assert found.macs == 324
  assert found.other_first_layer is None


def test_an_unknown_convention_is_refused():
  with pytest.raises(InputError, match="unknown convention 'neurobnech'"):
    energy(*_two_layers(), convention='neurobnech')


def test_groups_and_kernels_of_each_step_are_counted_exactly():
  """Against a loop over every weight and place."""
  rng = np.random.default_rng(0)
  kernel = rng.normal(0, 1, (2, 3, 3, 2, 4)).astype(np.float32)  # [T, ...]
  kernel[rng.random(kernel.shape) < 0.3] = 0
  nonzero = rng.integers(0, 8, (2, 5, 4, 4))
  node = Node(
    name='conv',
    kind='convolution',
    inputs=('input',),
    shape=(3, 2, 4),
    settings={'stride': 2, 'padding': 1, 'groups': 2},
    arrays={'kernel': kernel},
  )
  mean = [
    dict(name='s', kind='mean_over_space', inputs=('conv',), shape=(4,)),
    dict(name='t', kind='mean_over_time', inputs=('s',), shape=(4,)),
  ]
  graph = Graph(
    nodes=(
      Node(name='input', kind='input', shape=(5, 4, 4)),
      node,
      *(Node(**each) for each in mean),
    ),
    num_steps=2,
  )
  outputs = {
    name: Output(nonzero=counts, binary=name == 'input', ternary=True)
    for name, counts in (
      ('input', nonzero),
      ('conv', np.ones((2, 3, 2, 4), int)),
      ('s', np.ones((2, 4), int)),
    )
  }
  inputs = Inputs(examples=7, outputs=outputs, static=False)
  expected = 0
  for t, p, q, o, a, b, i in np.ndindex(2, 3, 2, 4, 3, 3, 2):
    row, column = 2 * p + a - 1, 2 * q + b - 1
    if 0 <= row < 5 and 0 <= column < 4 and kernel[t, a, b, i, o]:
      expected += int(nonzero[t, row, column, o // 2 * 2 + i])
  found = energy(graph, inputs, convention='neurobench')
  assert found.acs == Fraction(expected, 7)
  assert found.macs == 0


# ---- networks of the paper

RATE = Fraction(3, 20)
STEPS = 2


def _graph(name, **settings):
  """Returns a network's graph at its full width; all kernels are 1."""
  model = build_model(
    {
      'name': name,
      'num_steps': STEPS,
      'conv_norm': 'none',
      'membrane_norm': 'none',
      **settings,
    }
  )
  x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  init = functools.partial(model.init, train=False)
  shapes = jax.eval_shape(init, jax.random.key(0), x)
  ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
  return network_graph(model, ones, frame_shape=(32, 32, 3))


def _at_rate(graph):
  """Returns inputs of 20 examples in which every neuron fires in 3."""
  outputs = {}
  for node in graph.nodes[:-1]:
    fires = node.kind == 'neurons'
    outputs[node.name] = Output(
      nonzero=np.full((STEPS, *node.shape), 3 if fires else 20),
      binary=fires,
      ternary=fires,
    )
  return Inputs(examples=20, outputs=outputs, static=True)


def _block(side, fan_in, features, *, stride):
  """Returns the dense operations (of conv1, conv2, shortcut) of a block."""
  out = (side // stride) ** 2
  shortcut = out * fan_in * features if stride > 1 else 0
  return out * 9 * fan_in * features, out * 9 * features**2, shortcut


def _resnet20():
  """Returns (MACs, ACs) of a step: layers that read real numbers, spikes."""
  image = 32**2 * 9 * 3 * 64
  spikes = 2 * 32**2 * 9 * 64**2  # the rest of the stem
  pooled = 0
  side, fan_in = 16, 64
  for stage, features in enumerate((64, 128, 256, 512)):
    for block in range(2):
      stride = 2 if stage and not block else 1
      conv1, conv2, shortcut = _block(side, fan_in, features, stride=stride)
      if stage == block == 0:  # reads the pool of the stem
        pooled += conv1
      else:
        spikes += conv1
      spikes += conv2
      pooled += shortcut  # an average pool, then 1x1
      side, fan_in = side // stride, features
  return image + pooled + 512 * 10, spikes


def _resnet19():
  image = 32**2 * 9 * 3 * 128
  spikes, side, fan_in = 0, 32, 128
  for features, count in ((128, 3), (256, 3), (512, 2)):
    for block in range(count):
      stride = 2 if features > 128 and not block else 1
      spikes += sum(_block(side, fan_in, features, stride=stride))
      side, fan_in = side // stride, features
  return image + 512 * 10, spikes


@pytest.mark.parametrize(
  ('name', 'settings', 'formula'),
  [
    ('resnet20', {'width': 64}, _resnet20),
    ('resnet19', {'width': 128}, _resnet19),
  ],
)
def test_networks_of_the_paper_are_counted_as_by_their_tables(
  name, settings, formula
):
  graph = _graph(name, **settings)
  inputs = _at_rate(graph)
  real, spikes = formula()
  found = energy(graph, inputs)
  assert found.macs == STEPS * real
  assert found.acs == STEPS * RATE * spikes
  assert (found.ann_macs, found.ann_acs) == (real + spikes, 0)
  assert found.other_first_layer == (
    found.macs - 32**2 * 9 * 3 * settings['width'],
    found.acs,
  )
  # Where every neuron fires alike, the exact fan-out is that share of all
  # operations inside of maps.
  exact = energy(graph, inputs, convention='neurobench')
  of_neurons = [x for x in exact.layers if x.acs]
  assert exact.acs == STEPS * RATE * sum(x.ann_macs for x in of_neurons)
  assert exact.ann_macs < found.ann_macs
