"""Linear layers and grouped convolutions: products, norms and folds."""

import common
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpbn_jax import (
  InputError,
  fold_all,
  readers_of_spikes,
  strip,
)
from mpbn_jax.evaluation import compare_layers
from mpbn_jax.layers import LIF, ConvNorm, DenseNorm, Factory, SpikeNorm
from mpbn_jax.layers.absorption import times_gain
from mpbn_jax.models.network import SpikingNetwork
from mpbn_jax.norm import NORMS, names_at
from mpbn_jax.ops.convolution import convolution


class MLP(SpikingNetwork):
  """Two linear layers and the readout."""

  def encoder(self):
    return self.dense(self.width, flatten=True, name='dense1')

  def features(self, currents, *, train):
    x = self.lif(name='lif1')(currents, train=train)
    x = self.dense(self.width, name='dense2')(x, train=train)
    return self.lif(name='lif2')(x, train=train)


class Separable(SpikingNetwork):
  """A stem, a depthwise, a grouped and a pointwise convolution."""

  def encoder(self):
    return self.conv(self.width, name='stem')

  def features(self, currents, *, train):
    x = self.lif(name='lif1')(currents, train=train)
    for i, (groups, size) in enumerate(((4, 3), (2, 3), (1, 1)), 2):
      y = self.conv(
        self.width, groups=groups, kernel_size=size, name=f'conv{i}'
      )(x, train=train)
      x = self.lif(name=f'lif{i}')(y, train=train)
    return x


def _network(kind, *, conv, spike):
  model = kind(
    width=4,
    num_steps=3,
    conv=Factory(ConvNorm, norm=conv),
    dense=Factory(DenseNorm, norm=conv),
    lif=Factory(LIF, norm='mpbn_channel', spike_norm=spike, unroll=False),
  )
  x = common.images(4, 6)
  return model, common.random_variables(model, x), x


NORM_PAIRS = [
  *((name, 'none') for name in names_at('conv')[1:]),
  ('none', 'psp_bn'),
  ('bntt', 'psp_bn_step'),
]


@pytest.mark.parametrize(('conv', 'spike'), NORM_PAIRS)
@pytest.mark.parametrize('kind', [MLP, Separable])
def test_network_of_them_folds(kind, conv, spike):
  model, variables, x = _network(kind, conv=conv, spike=spike)
  readers = None
  if spike != 'none':
    readers = readers_of_spikes(model, variables, x)
  folded = strip(fold_all(variables, readers=readers))
  keys = {k.key for p, _ in jax.tree.leaves_with_path(folded) for k in p}
  assert not keys & set(NORMS)
  layers = compare_layers(model, variables, folded, x)
  assert sum(layer.flips for layer in layers.values()) == 0
  limit = 0 if conv == 'none' else 1e-5
  assert max(layer.current_error for layer in layers.values()) <= limit


def test_dense_layer_is_a_product_and_its_norm():
  x = common.images(6, 2, 5).reshape((3, 2, 20))
  layer = DenseNorm(4, use_bias=True)
  variables = layer.init(jax.random.key(0), x, train=False)
  params = variables['params']
  y, _ = layer.apply(variables, x, train=True, mutable=['batch_stats'])
  product = np.asarray(x) @ np.asarray(params['kernel']) + params['bias']
  mean, var = product.mean((0, 1)), product.var((0, 1))
  np.testing.assert_allclose(
    y, (product - mean) / np.sqrt(var + 1e-5), rtol=1e-4, atol=1e-5
  )


def test_images_are_flattened_where_it_is_asked_for():
  x = common.images(6, 4, 3).reshape((3, 2, 4, 4, 3))
  flat = DenseNorm(5, flatten=True, norm='none')
  variables = flat.init(jax.random.key(0), x, train=False)
  assert variables['params']['kernel'].shape == (48, 5)
  kernel = variables['params']['kernel']
  np.testing.assert_allclose(
    flat.apply(variables, x, train=False),
    x.reshape((3, 2, 48)) @ kernel,
    rtol=1e-5,
    atol=1e-6,
  )
  each = DenseNorm(5, norm='none')
  shape = jax.eval_shape(
    lambda: each.init_with_output(jax.random.key(0), x, train=False)[0]
  ).shape
  assert shape == (3, 2, 4, 4, 5)


def test_normed_spikes_of_maps_are_not_flattened():
  spikes = common.images(6, 4, 3).reshape((3, 2, 4, 4, 3))
  norm = SpikeNorm(norm='psp_bn')
  variables = norm.init(jax.random.key(0), spikes, train=False)
  normed = norm.apply(variables, spikes, train=False)
  with pytest.raises(InputError, match='expected an array to flatten'):
    DenseNorm(5, flatten=True).init(jax.random.key(0), normed, train=False)


@pytest.mark.parametrize('groups', [2, 4])
def test_grouped_convolution_is_one_of_each_group(groups):
  x = common.images(2, 6, 4)
  rng = np.random.default_rng(1)
  kernel = rng.normal(size=(3, 3, 4 // groups, 8)).astype(np.float32)
  options = {'strides': (2, 2), 'padding': ((1, 1), (1, 1))}
  y = convolution(x, jnp.asarray(kernel), groups=groups, **options)
  parts = [
    convolution(part, jnp.asarray(k), **options)
    for part, k in zip(
      np.split(np.asarray(x), groups, axis=3),
      np.split(kernel, groups, axis=3),
      strict=True,
    )
  ]
  np.testing.assert_allclose(
    y, np.concatenate(parts, axis=3), rtol=1e-5, atol=1e-5
  )


@pytest.mark.parametrize('steps', [None, 3])
@pytest.mark.parametrize('groups', [1, 2, 4])
def test_gain_of_an_input_channel_reaches_the_outputs_of_its_group(
  groups, steps
):
  rng = np.random.default_rng(0)
  gain = rng.uniform(0.5, 2, (*([steps] if steps else []), 4))
  kernel = rng.normal(size=(1, 1, 4 // groups, 8))
  x = rng.normal(size=(2, 3, 3, 4)).astype(np.float32)
  for t in range(steps or 1):
    of_step = gain[t] if steps else gain
    scaled = times_gain(
      jnp.asarray(kernel, jnp.float32),
      jnp.asarray(gain, jnp.float32),
      groups=groups,
    )
    np.testing.assert_allclose(
      convolution(x, scaled[t] if steps else scaled, groups=groups),
      convolution(
        jnp.asarray(x * of_step, jnp.float32),
        jnp.asarray(kernel, jnp.float32),
        groups=groups,
      ),
      rtol=1e-5,
      atol=1e-5,
    )


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: ConvNorm(4, groups=0), 'groups must be an integer >= 1, got 0'),
    (lambda: ConvNorm(4, groups=3), 'groups must divide the 4 input channels'),
    (lambda: ConvNorm(6, groups=4), 'and the 6 features, got 4'),
    (lambda: DenseNorm(0), 'features must be an integer >= 1, got 0'),
    (lambda: DenseNorm(2, flatten=1), 'flatten must be True or False, got 1'),
  ],
)
def test_settings_that_no_product_has_are_refused(make, message):
  with pytest.raises(InputError, match=message):
    make().init(jax.random.key(0), jnp.zeros((2, 2, 3, 3, 4)), train=False)


def test_factories_are_equal_by_content():
  lif = Factory(LIF, tau=0.5)
  assert lif == Factory(LIF, tau=0.5) != Factory(LIF, tau=0.25)
  assert hash(lif) == hash(Factory(LIF, tau=0.5))
  assert lif != Factory(SpikeNorm)
  assert lif(v_th=0.7) == LIF(tau=0.5, v_th=0.7)
