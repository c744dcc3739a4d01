"""Variables of the layers: their constants, and their precision with x64."""

import common
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_layers import array_of, lif_layer, norm_layer

from mpbn_jax import LIF, NORMS, InputError, build_model, fold, strip
from mpbn_jax.layers import ConvNorm
from mpbn_jax.tree import leaves_of

# ---- shapes


def test_parameter_of_another_shape_is_refused_by_name():
  model, variables = common.small(spike_norm='psp_bn', learn_v_th=True)
  x = common.images()

  def run(params):
    return model.apply({**variables, 'params': params}, x, train=False)

  leaves, tree = jax.tree_util.tree_flatten_with_path(variables['params'])
  for index, (path, leaf) in enumerate(leaves):
    changed = [leaf for _, leaf in leaves]
    changed[index] = leaf[None]  # it would broadcast
    name = '/'.join(key.key for key in path)
    message = f'params/{name} of shape .* got .*: use the variables of a model'
    with pytest.raises(InputError, match=message):
      jax.eval_shape(run, jax.tree.unflatten(tree, changed))


def test_layer_that_is_the_whole_model_names_its_parameter():
  layer, x = ConvNorm(2), jnp.zeros((1, 1, 4, 4, 3))
  variables = layer.init(jax.random.key(0), x, train=False)
  message = r'expected params/kernel of shape .3, 3, 5, 2., got .3, 3, 3, 2.'
  with pytest.raises(InputError, match=message):
    layer.apply(variables, jnp.zeros((1, 1, 4, 4, 5)), train=False)


def test_partitioned_kernel_is_taken_out_of_its_box():
  init = nn.initializers.lecun_normal()
  boxed = nn.with_partitioning(init, (None, None, None, 'model'))
  layer, x = ConvNorm(2, kernel_init=boxed), jnp.ones((1, 1, 4, 4, 3))
  variables = layer.init(jax.random.key(0), x, train=False)
  assert isinstance(variables['params']['kernel'], nn.Partitioned)
  found, expected = (
    layer.apply(values, x, train=False)
    for values in (variables, nn.unbox(variables))
  )
  np.testing.assert_array_equal(found, expected)


# ---- constants

# A norm, one of its constants, and the constant's name in the layer.
STORED = [
  (name, constant)
  for name, norm in NORMS.items()
  for constant in norm.settings
  if constant in leaves_of(name)[1]
]
# What tdBN scales by is the v_th of the neurons that get the currents.
ATTRIBUTE = {'eps': 'eps', 'v_th': 'v_th', 'alpha_v_th': 'v_th'}


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize(('name', 'constant'), STORED)
def test_stored_constant_counts_and_another_is_refused(name, constant, train):
  _, variables, x = norm_layer(name, **{ATTRIBUTE[constant]: 1.75})
  assert variables['batch_stats'][name][constant] == 1.75
  assert variables['batch_stats'][name][constant].dtype == jnp.float32
  layer, *_ = norm_layer(name)

  def run(variables, layer=layer):
    y, updates = layer.apply(variables, x, train=train, mutable=['batch_stats'])
    return array_of(y), updates

  message = f"expected '{type(layer).__name__}' with the {constant} = 1.75 .*"
  with pytest.raises(InputError, match=message + f'got .* {constant} = '):
    run(variables)
  # Not known while it is compiled: then it is what the layer computes with.
  compiled, updates = jax.jit(run)(variables)
  np.testing.assert_allclose(
    compiled,
    run(variables, norm_layer(name, **{ATTRIBUTE[constant]: 1.75})[0])[0],
    rtol=1e-5,
    atol=1e-6,
  )
  assert updates['batch_stats'][name][constant] == 1.75


@pytest.mark.parametrize(('name', 'constant'), STORED)
def test_variables_without_a_constant_are_refused(name, constant):
  layer, variables, x = norm_layer(name)
  del variables['batch_stats'][name][constant]
  with pytest.raises(InputError, match=f'batch_stats/{name}/{constant}, the'):
    layer.apply(variables, x, train=False)


def test_folded_neuron_refuses_another_v_th_than_was_folded():
  _, variables, x = norm_layer('mpbn_channel', v_th=1.75)
  with pytest.raises(InputError, match=r'v_th = 1\.75 .* got .* v_th = 0\.5'):
    LIF(norm='mpbn_channel').apply(strip(fold(variables)), x, train=False)


@pytest.mark.parametrize(
  ('learns', 'leaf'), [('learn_tau', 'tau_logit'), ('learn_v_th', 'v_th')]
)
def test_learned_leaf_that_would_not_be_read_is_refused(learns, leaf):
  _, variables, currents = lif_layer('none', **{learns: True})
  with pytest.raises(InputError, match=f'no params/{leaf} with {learns}=False'):
    LIF().apply(variables, currents, train=False)


def test_constant_beside_a_learned_v_th_is_refused():
  layer, variables, currents = lif_layer('mpbn_channel', learn_v_th=True)
  variables['batch_stats']['mpbn_channel']['v_th'] = jnp.float32(0.5)
  with pytest.raises(InputError, match='v_th beside a learned v_th, got one'):
    layer.apply(variables, currents, train=False)
  with pytest.raises(InputError, match='expected one v_th, .* got both'):
    fold(variables)


# ---- jax_enable_x64


@pytest.mark.parametrize('name', NORMS)
def test_variables_and_statistics_are_float32_with_x64(name):
  with jax.enable_x64(True):
    settings = {}
    if NORMS[name].place == 'membrane':
      settings = {'learn_tau': True, 'learn_v_th': True}
    layer, variables, x = norm_layer(name, **settings)
    x = x.astype(jnp.float64)

    @jax.jit
    def step(params):
      def loss(params):
        y, updates = layer.apply(
          {**variables, 'params': params},
          x,
          train=True,
          mutable=['batch_stats'],
        )
        return array_of(y).sum(), updates

      return jax.grad(loss, has_aux=True)(params)

    gradients, updates = step(variables['params'])
    for leaf in jax.tree.leaves((variables, gradients, updates)):
      assert leaf.dtype == jnp.float32
    if NORMS[name].place == 'membrane':
      for leaf in jax.tree.leaves(fold(variables)['threshold']):
        assert leaf.dtype == jnp.float32


@pytest.mark.parametrize('name', ['spiking_cnn', 'preact_resnet'])
def test_network_is_made_and_trained_with_x64(name):
  with jax.enable_x64(True):
    depth = 10 if name == 'preact_resnet' else None
    model = build_model(
      {
        'name': name,
        'width': 2,
        'num_steps': 2,
        'learn_v_th': True,
        'learn_tau': True,
        'spike_norm': 'psp_bn',
        'depth': depth,
      }
    )
    x = jnp.zeros((2, 8, 8, 1), jnp.float64)

    @jax.jit
    def start_and_step():
      variables = model.init(jax.random.key(0), x, train=False)

      def loss(params):
        return model.apply(
          {**variables, 'params': params},
          x,
          train=True,
          mutable=['batch_stats'],
        )

      def mean(params):
        logits, updates = loss(params)
        return logits.mean(), updates

      return variables, jax.grad(mean, has_aux=True)(variables['params'])

    leaves = jax.tree.leaves(jax.eval_shape(start_and_step))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype('float32')}
