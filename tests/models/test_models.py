"""The networks: sizes, initial values, inputs, and what they refuse."""

import functools

import common
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import reference_network
from registered import COUNTS, NEURON_LAYERS, known

from mpbn_jax import (
  MODELS,
  InputError,
  build_model,
  fold_all,
  readers_of_spikes,
  strip,
)
from mpbn_jax.configs import default
from mpbn_jax.interop.torch import to_reference
from mpbn_jax.layers import LIF, ConvNorm, Factory
from mpbn_jax.models.resnet import SpikingResNet

KNOWN = known('networks')


@pytest.mark.parametrize(('name', 'settings', 'shape', 'count'), COUNTS)
def test_parameters_are_as_many_as_the_papers(name, settings, shape, count):
  settings = {'width': 64, 'unroll': False, **settings}
  model = build_model({'name': name, **settings})
  variables = jax.eval_shape(
    lambda: model.init(jax.random.key(0), jnp.zeros((1, *shape)), train=False)
  )
  assert sum(a.size for a in jax.tree.leaves(variables['params'])) == count


@pytest.mark.parametrize('name', KNOWN)
def test_every_neuron_layer_has_its_threshold_norm(name):
  model = build_model({'name': name, 'width': 4, 'unroll': False})
  x = jnp.zeros((1, common.SIDES[name], common.SIDES[name], 1))
  variables = jax.eval_shape(
    lambda: model.init(jax.random.key(0), x, train=False)
  )
  layers = [
    leaf.shape[0] if leaf.ndim == 2 else 1  # blocks, stacked
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables['params'])
    if [key.key for key in path[-2:]] == ['mpbn_channel', 'scale']
  ]
  assert sum(layers) == NEURON_LAYERS[name]


# tests/models/test_golden.py trains the networks with golden vectors likewise.
# ResNet34 is ResNet18 with more blocks, and compiles twice as long.
OTHERS = sorted(
  set(KNOWN)
  - {'resnet34'}
  - {config['name'] for config in common.GOLDEN_NETWORKS.values()}
)


@functools.cache
def _new(name, norm):
  """Returns (model, its initial variables)."""
  model = build_model(
    dict(name=name, width=8, num_steps=2, membrane_norm=norm, unroll=False)
  )
  x = jnp.zeros((1, common.SIDES[name], common.SIDES[name], 1))
  return model, common.init(model, x)


@functools.cache
def _trained(name, norm):
  """Returns what a new network's training on images computes.

  The gradients of its parameters, and (logits, statistics).
  """
  model, variables = _new(name, norm)

  @jax.jit
  @functools.partial(jax.grad, has_aux=True)
  def train(params, x):
    logits, updates = model.apply(
      {**variables, 'params': params}, x, train=True, mutable=['batch_stats']
    )
    loss = -jax.nn.log_softmax(logits)[:, 0].mean()
    return loss, (logits, updates['batch_stats'])

  return train(variables['params'], _images(name))


def _images(name):
  return common.images(16, common.SIDES[name])


@pytest.mark.slow
@pytest.mark.parametrize('name', OTHERS)
def test_image_equals_the_same_frame_at_every_step(name):
  _, outputs = _trained(name, 'mpbn_channel')
  model, variables = _new(name, 'mpbn_channel')
  x = _images(name)
  common.assert_equals_its_frames(model, variables, x, outputs=outputs)


def test_gradients_of_an_image_are_those_of_its_frames():
  model, _ = common.small(num_steps=3)
  image = np.random.default_rng(0).normal(size=(4, 8, 8, 1))
  image = jnp.asarray(image, jnp.float32)
  frames = jnp.broadcast_to(image[:, None], (4, 3, 8, 8, 1))
  found = []
  for x in (image, frames):
    loss, params = common.training_loss(model, x)
    found.append(jax.jit(jax.grad(loss, has_aux=True))(params)[0])
  largest = max(np.abs(g).max() for g in jax.tree.leaves(found[0]))
  assert np.any(found[0]['conv1']['kernel'])
  for a, b in zip(*map(jax.tree.leaves, found), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * largest)


@pytest.mark.slow
# ResNet20 is the one whose last scales once started at 0 without a norm.
@pytest.mark.parametrize(
  ('name', 'norm'),
  [*((name, 'mpbn_channel') for name in OTHERS), ('resnet20', 'none')],
)
def test_gradient_reaches_the_first_layer_of_a_new_network(name, norm):
  gradients, _ = _trained(name, norm)
  common.assert_first_layer_learns(gradients)


@pytest.mark.slow
@pytest.mark.parametrize('name', [*OTHERS, 'resnet34'])
def test_initial_kernels_have_the_papers_deviation(name):
  _, variables = _new(name, 'mpbn_channel')
  common.assert_papers_deviation(variables['params'], name)


def test_logits_are_the_mean_of_the_steps():
  model, variables = common.small()
  x = common.images()
  logits = model.apply(variables, x, train=False)
  steps = model.apply(variables, x, train=False, method='step_logits')
  assert steps.shape == (8, 3, 10)
  np.testing.assert_allclose(logits, steps.mean(1), atol=1e-6)


def test_configuration_keys_are_the_networks_arguments():
  config = default.get_config()
  for name in MODELS:
    with config.unlocked():
      config.model.name = name
    assert build_model(config.model).num_steps == config.model.num_steps


def test_plain_and_partial_mappings_are_accepted():
  plain = build_model({'name': 'spiking_cnn', 'width': 3})
  config = ml_collections.ConfigDict({'name': 'spiking_cnn', 'width': 3})
  assert plain == build_model(config)


def test_integer_images_and_float_images_are_the_same():
  model, variables = common.small()
  x = jnp.arange(64).reshape((1, 8, 8, 1))
  np.testing.assert_array_equal(
    model.apply(variables, x, train=False),
    model.apply(variables, x.astype(jnp.float32), train=False),
  )


def test_bfloat16_halves_activations_and_keeps_the_rest_float32():
  model, variables = common.small(
    dtype='bfloat16', membrane_norm='mpbn_channel'
  )
  logits, kept = model.apply(
    variables,
    common.images(),
    train=True,
    mutable=['batch_stats', 'intermediates'],
  )
  assert logits.dtype == jnp.float32
  dtypes = {leaf.dtype for leaf in jax.tree.leaves(kept['batch_stats'])}
  assert dtypes == {jnp.dtype('float32')}
  for layer in kept['intermediates'].values():
    assert layer['currents'][0].dtype == jnp.bfloat16


def test_bfloat16_computes_nearly_the_same_logits():
  model, variables = common.small()
  low, _ = common.small(dtype='bfloat16')
  x = common.images()
  logits = model.apply(variables, x, train=False)
  # Some spikes flip: the logits of a network with 8 features, not their bits.
  np.testing.assert_allclose(
    low.apply(variables, x, train=False), logits, atol=0.2
  )


def test_neuron_layer_can_stand_alone():
  spikes = LIF().apply({}, jnp.ones((1, 2, 3)), train=False)
  np.testing.assert_array_equal(spikes, jnp.ones((1, 2, 3)))


@pytest.mark.parametrize('blocks', [1, 3, 17])
def test_depth_of_preact_resnet_counts_its_layers_with_weights(blocks):
  model = build_model(
    {'name': 'preact_resnet', 'depth': 6 * blocks + 4, 'width': 2}
  )
  params = jax.eval_shape(
    lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False)
  )['params']
  kernels = [
    leaf.shape[0] if leaf.ndim == 5 else 1
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    if path[-1].key == 'kernel'
  ]
  assert sum(kernels) == 6 * blocks + 4


def test_remat_of_blocks_that_hand_on_normed_spikes_changes_no_gradient():
  x = common.images(4)
  model = SpikingResNet(
    width=2,
    num_steps=2,
    stage_sizes=(2, 1),
    stem='single',
    conv=Factory(ConvNorm, norm='none'),
    lif=Factory(LIF, norm='none', spike_norm='psp_bn', unroll=False),
  )
  variables = common.random_variables(model, x)

  def gradients(**settings):
    network = model.clone(**settings)

    @jax.jit
    def gradient(params):
      def loss(params):
        logits, updates = network.apply(
          {**variables, 'params': params},
          x,
          train=True,
          mutable=['batch_stats'],
        )
        return (logits**2).mean(), updates

      return jax.grad(loss, has_aux=True)(params)

    text = str(jax.make_jaxpr(gradient)(variables['params']))
    return gradient(variables['params']), text.count('conv_general_dilated')

  stored, once = gradients()
  again, twice = gradients(remat=True)
  assert once < twice
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    stored,
    again,
  )


def test_remat_computes_again_and_changes_no_gradient():
  x = common.images()

  def gradients(**settings):
    # Unrolled, as users have it: the sizes are those of that program.
    settings |= {'depth': 10, 'unroll': True}
    model, variables = common.small('preact_resnet', **settings)

    @jax.jit
    def loss(params):
      logits, _ = model.apply(
        {**variables, 'params': params}, x, train=True, mutable=['batch_stats']
      )
      return (logits**2).mean()

    return loss, jax.jit(jax.grad(loss)), variables['params']

  forward, stored, params = gradients()
  _, again, _ = gradients(remat=True)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    stored(params),
    again(params),
  )

  def flops_and_bytes(function):
    compiled = function.lower(params).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    return compiled.cost_analysis()['flops'], temporary

  flops, saved = flops_and_bytes(stored)
  flops_again, saved_again = flops_and_bytes(again)
  # Most of the forward pass once more; XLA merges equal computations
  # where nothing keeps it from that.
  assert flops_again > flops + 0.8 * flops_and_bytes(forward)[0]
  assert saved_again < saved


@pytest.mark.parametrize(
  ('shape', 'message'),
  [
    ((8, 8, 1), r'images \[B, H, W, C\] or frames.*got shape \(8, 8, 1\)'),
    ((2, 5, 8, 8, 1), 'num_steps=3, but the frames .* have T = 5'),
  ],
)
def test_input_of_another_shape_is_refused(shape, message):
  model, variables = common.small()
  with pytest.raises(InputError, match=message):
    model.apply(variables, jnp.zeros(shape), train=False)


# Event frames of 24x24, T = 3. VGG16 halves its maps five times: 24 rows are
# 1 after four of its pools, which drop rows as the reference's do.
FRAMES = jax.ShapeDtypeStruct((2, 3, 24, 24, 2), jnp.float32)


@pytest.mark.parametrize('name', sorted(set(KNOWN) - {'vgg16'}))
def test_maps_of_odd_sides_pass_every_network(name):
  settings = {'width': 4, 'num_steps': 3, 'unroll': False}
  model = build_model({'name': name, **settings})
  logits = jax.eval_shape(
    lambda x: model.init_with_output(jax.random.key(0), x, train=False)[0],
    FRAMES,
  )
  assert logits.shape == (2, 10)


def test_resnet20_on_odd_maps_is_the_references():
  model, variables = common.small('resnet20', 24, 2, unroll=False)
  config = {'name': 'resnet20', 'width': 4}
  state = to_reference(variables, config)
  frames = common.images(6, 24, 2).reshape((2, 3, 24, 24, 2))
  channels_first = np.moveaxis(np.asarray(frames), -1, -3)
  for train in (False, True):
    logits, updates = jax.jit(
      lambda v, x, train=train: model.apply(
        v, x, train=train, mutable=['batch_stats', 'intermediates']
      )
    )(variables, frames)
    expected, new_state, spikes = reference_network.resnet20(
      state, channels_first, num_steps=3, train=train
    )
    ours = updates['intermediates']['stage4_block2_lif2']['spikes'][0]
    assert ours.shape[2:4] == (2, 2)  # of 3x3
    np.testing.assert_array_equal(
      np.moveaxis(ours, 1, 0), spikes['model.layer4.1.output_act']
    )
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)
    if train:
      stats = to_reference({'batch_stats': updates['batch_stats']}, config)
      for key, value in stats.items():
        np.testing.assert_allclose(
          value, new_state[key], rtol=1e-4, atol=1e-4, err_msg=key
        )


def test_norm_of_spikes_folds_through_incomplete_windows():
  model, variables = common.small(
    'resnet20', 24, 2, unroll=False, membrane_norm='none', spike_norm='psp_bn'
  )
  x = common.images(6, 24, 2).reshape((2, 3, 24, 24, 2))
  readers = readers_of_spikes(model, variables, x)
  folded = strip(fold_all(variables, readers=readers))
  apply = jax.jit(lambda variables: model.apply(variables, x, train=False))
  np.testing.assert_allclose(apply(folded), apply(variables), atol=1e-5)


def test_images_too_small_for_the_network_are_refused():
  model = build_model({'name': 'resnet20', 'width': 4})
  with pytest.raises(InputError, match='maps of 1x1: this network needs larg'):
    jax.eval_shape(
      lambda: model.init(
        jax.random.key(0), jnp.zeros((1, 1, 1, 1)), train=False
      )
    )


def test_vgg16_refuses_maps_that_its_pools_would_empty():
  model = build_model({'name': 'vgg16', 'width': 4, 'num_steps': 3})
  with pytest.raises(InputError, match='maps of 1x1: this network needs larg'):
    jax.eval_shape(
      lambda x: model.init(jax.random.key(0), x, train=False), FRAMES
    )
