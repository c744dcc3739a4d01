"""The wiring of the networks, and what a fold accepts of it."""

import functools

import common
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import traverse_util
from registered import known

from mpbn_jax import (
  LIF,
  MODELS,
  InputError,
  build_model,
  fold_all,
  fold_spike_norms,
  readers_of_spikes,
  strip,
  training,
)
from mpbn_jax.configs import digits
from mpbn_jax.layers import Factory
from mpbn_jax.models.spiking_cnn import SpikingCNN

LONG = ('resnet18', 'resnet19', 'resnet34')


@functools.cache
def _abstract(name, **settings):
  """Returns (model, its abstract variables, an abstract input)."""
  side = common.SIDES[name]
  model = build_model(
    {
      'name': name,
      'width': 2,
      'num_steps': 2,
      'unroll': False,
      'spike_norm': 'psp_bn',
      **settings,
    }
  )
  x = jax.ShapeDtypeStruct((2, side, side, 1), jnp.float32)
  init = functools.partial(model.init, train=False)
  return model, jax.eval_shape(init, jax.random.key(0), x), x


@functools.cache
def _readers(name, **settings):
  return readers_of_spikes(*_abstract(name, **settings))


@pytest.mark.parametrize(
  'name',
  [
    # Those that are built as another, with more blocks, in full runs.
    pytest.param(name, marks=[pytest.mark.slow] * (name in LONG))
    for name in known('networks')
  ],
)
def test_every_norm_is_read_and_every_layer_reads_one(name):
  _, variables, _ = _abstract(name)
  readers = _readers(name)
  paths = {
    '/'.join(key.key for key in path[:-2])
    for path, _ in jax.tree_util.tree_leaves_with_path(variables['params'])
    if path[-2].key == 'psp_bn'
  }
  kernels = {
    '/'.join(key.key for key in path[:-1])
    for path, _ in jax.tree_util.tree_leaves_with_path(variables['params'])
    if path[-1].key == 'kernel'
  }
  assert set(readers) == paths
  read_by = [reader for layers in readers.values() for reader in layers]
  assert len(read_by) == len(set(read_by))
  # All but the first convolution, which reads the image.
  encoder = kernels - set(read_by)
  assert encoder in ({'conv1'}, {'stem_conv1'}, {'stem_conv'})


def test_spiking_cnn_is_a_chain():
  readers = _readers('spiking_cnn')
  chain = {
    'lif1/spike_norm': ('conv2',),
    'lif2/spike_norm': ('conv3',),  # through an average pool
    'lif3/spike_norm': ('conv4',),
    'lif4/spike_norm': ('head',),
  }
  assert readers == chain
  assert repr(readers) == f'Wiring({chain})'


def test_block_of_resnet_reads_through_its_shortcut_too():
  readers = _readers('resnet20')
  assert readers['stem_lif3/spike_norm'] == (
    'stage1_block1_conv1',
    'stage1_block1_shortcut',
  )
  assert readers['stage1_block2_lif2/spike_norm'] == (
    'stage2_block1_conv1',
    'stage2_block1_shortcut',
  )
  assert readers['stage4_block2_lif1/spike_norm'] == ('stage4_block2_conv2',)


@pytest.mark.parametrize('remat', [False, True])
def test_scanned_blocks_are_wired_inside(remat):
  # The default depth has more than one block of a shape.
  readers = _readers('preact_resnet', **{'remat': True} if remat else {})
  assert readers['stage1_blocks/lif1/spike_norm'] == ('stage1_blocks/conv1',)
  assert readers['stage2_first/lif1/spike_norm'] == (
    'stage2_first/conv1',
    'stage2_first/shortcut',
  )
  assert readers['last_lif/spike_norm'] == ('head',)


# ---- what a fold accepts


@pytest.mark.parametrize(
  'readers',
  [{}, {'lif1/spike_norm': ('conv2',)}, None, [('lif1/spike_norm', 'conv2')]],
)
def test_readers_that_a_hand_wrote_are_refused(readers):
  _, variables = common.small(spike_norm='psp_bn')
  message = r'the readers that mpbn_jax.readers_of_spikes\(model.*got \w+: pass'
  with pytest.raises(TypeError, match=message):
    fold_spike_norms(variables, readers=readers)
  with pytest.raises(TypeError, match=message):
    fold_all(variables, readers=readers)


def test_readers_cannot_be_left_out_later():
  readers = _readers('spiking_cnn')
  with pytest.raises(TypeError, match='does not support item deletion'):
    del readers['lif1/spike_norm']
  with pytest.raises(AttributeError):
    readers.readers = {}


@pytest.mark.parametrize(
  ('other', 'message'),
  [
    ({'width': 2}, r'expected params/conv1/kernel of shape .* got .3, 3, 1, 4'),
    ({'spike_norm': 'psp_bn_step'}, 'expected the variables of the network'),
    ({'name': 'vgg16'}, 'expected the variables of the network, got others'),
  ],
)
def test_readers_of_another_network_are_refused(other, message):
  _, variables = common.small(spike_norm='psp_bn')
  settings = {'width': 4, 'num_steps': 3} | other
  readers = _readers(settings.pop('name', 'spiking_cnn'), **settings)
  with pytest.raises(InputError, match=message) as error:
    fold_spike_norms(variables, readers=readers)
  assert '\n' not in str(error.value)


@pytest.fixture(scope='module')
def folded():
  """Returns (model, variables, folded and stripped ones)."""
  model, variables = common.small(spike_norm='psp_bn')
  readers = readers_of_spikes(model, variables, common.images())
  return model, variables, strip(fold_spike_norms(variables, readers=readers))


def test_fold_says_how_many_layers_read_a_norm():
  _, variables, _ = _abstract('preact_resnet')
  fold = functools.partial(fold_spike_norms, readers=_readers('preact_resnet'))
  count = jax.eval_shape(fold, variables)['folded']
  # In numbers below, in every network that is compared.
  assert count['stage1_blocks']['lif1']['spike_norm']['readers'].shape == (3,)


def _run(model, variables):
  x = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
  jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, x)


def _without(variables, layer, leaf):
  leaves = traverse_util.flatten_dict(variables['folded'], sep='/')
  gone = f'{layer}/{leaf}'
  kept = {k: v for k, v in leaves.items() if not f'{k}/'.startswith(f'{gone}/')}
  assert len(kept) < len(leaves)
  return {**variables, 'folded': traverse_util.unflatten_dict(kept, sep='/')}


def test_folded_network_with_a_reader_left_out_is_refused(folded):
  model, variables, others = folded
  others = _without(others, 'conv3', 'reads')
  message = (
    "'conv3', which reads 'lif2/spike_norm', to have this folded norm in its"
  )
  with pytest.raises(InputError, match=message):
    _run(model, others)


def test_folded_network_with_a_norm_that_is_not_folded_is_refused(folded):
  model, variables, others = folded
  others = _without({**others, **variables}, 'lif2/spike_norm', 'readers')
  message = "'conv3', .* the norm 'lif2/spike_norm', .* got the unfolded norm"
  with pytest.raises(InputError, match=message):
    _run(model, others)


class Switched(SpikingCNN):
  """Its head reads another norm where there is one example only."""

  def features(self, currents, *, train):
    a = self.lif(name='lif1')(currents, train=train)
    b = self.lif(name='lif2')(
      self.conv(4, name='conv2')(a, train=train), train=train
    )
    return a if len(currents) == 1 else b


def test_folded_network_that_other_inputs_wire_differently_is_refused():
  model = Switched(
    width=4,
    num_steps=2,
    lif=Factory(LIF, norm='mpbn_channel', spike_norm='psp_bn'),
  )
  x = common.images(2)
  variables = common.random_variables(model, x)
  readers = readers_of_spikes(model, variables, x)
  others = fold_all(variables, readers=readers)
  _run(model, others)
  message = "'head', whose .* norm 'lif2/spike_norm', .* 'lif1/spike_norm'"
  with pytest.raises(InputError, match=message):
    model.apply(others, x[:1], train=False)


# ---- before training


class ReadsTheirArray(SpikingCNN):
  """Trains and evaluates, and cannot be folded."""

  def features(self, currents, *, train):
    return super().features(currents, train=train).array


class HasDenseLayers(SpikingCNN):
  """What somebody writes who does not know of `Readout`."""

  def head(self, fan_in):
    del fan_in
    return nn.Dense(self.num_classes, name='head')


@pytest.mark.parametrize(
  ('network', 'folds', 'message'),
  [
    (
      ReadsTheirArray,
      True,
      "'lif4/spike_norm', got code that takes their .array",
    ),
    (ReadsTheirArray, False, ''),
    (
      HasDenseLayers,
      False,
      "got the normed spikes of 'lif4/spike_norm', which",
    ),
  ],
)
def test_network_that_does_not_fold_is_refused_before_it_is_trained(
  network, folds, message, monkeypatch
):
  monkeypatch.setitem(MODELS, 'spiking_cnn', network)
  config = digits.get_config()
  config.model.update({'width': 2, 'spike_norm': 'psp_bn'})
  config.evaluation.fold = 'all' if folds else 'thresholds'
  config.data.fake = config.data.batch_size
  experiment = training.build(config)
  step = training.make_train_step(experiment)
  init = training.make_init(experiment)
  if not message:
    training.check_trainable(experiment, init=init, step=step)
    return
  with pytest.raises(InputError, match=message):
    training.check_trainable(experiment, init=init, step=step)
