"""What the forward pass keeps: less memory, the same gradients."""

import functools

import common
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpbn_jax import LIF, InputError, build_model
from mpbn_jax.layers import Factory
from mpbn_jax.models.resnet import SpikingResNet
from mpbn_jax.ops import kept


def _resnet(**settings):
  """Returns a network with every kind of layer of the paper's ResNet20."""
  lif = Factory(LIF, norm='mpbn_channel', unroll=False, **settings)
  return SpikingResNet(width=4, num_steps=2, stage_sizes=(1,), lif=lif)


def _build(name, **fixed):
  config = {'name': name, 'width': 4, 'num_steps': 2, **fixed}
  return lambda **settings: build_model({**config, **settings})


NETWORKS = {
  'resnet': _resnet,
  'scanned blocks': _build('preact_resnet', depth=10, unroll=False),
  'normed spikes': _build('spiking_cnn', conv_norm='none', spike_norm='psp_bn'),
}


@functools.cache
def _loss(name, keep):
  """Returns (params -> (loss, running statistics), params)."""
  model = NETWORKS[name](keep=keep)
  x = np.random.default_rng(0).normal(size=(4, 8, 8, 1))
  x = jnp.asarray(x, jnp.float32)
  return common.training_loss(model, x)


@functools.cache
def _gradients(name, keep):
  """Returns (gradients, running statistics)."""
  loss, params = _loss(name, keep)
  return jax.jit(jax.grad(loss, has_aux=True))(params)


@pytest.mark.parametrize('keep', [keep for keep in kept.KEEP if keep != 'all'])
@pytest.mark.parametrize('name', NETWORKS)
def test_gradients_and_statistics_are_those_of_keeping_all(name, keep):
  expected, found = _gradients(name, 'all'), _gradients(name, keep)
  for a, b in zip(*map(jax.tree.leaves, (expected, found)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('name', NETWORKS)
def test_each_setting_keeps_less_than_the_one_before(name):
  def arrays(keep):
    """Returns shapes and dtypes of what the backward pass reads."""
    loss, params = _loss(name, keep)
    pull = jax.eval_shape(lambda p: jax.vjp(loss, p, has_aux=True)[1], params)
    weights = {leaf.shape for leaf in jax.tree.leaves(params)}
    return [x for x in jax.tree.leaves(pull) if x.shape not in weights]

  kept_arrays = {keep: arrays(keep) for keep in kept.KEEP}
  size = {
    keep: sum(x.size * x.dtype.itemsize for x in found)
    for keep, found in kept_arrays.items()
  }
  assert list(kept.KEEP) == ['all', 'products', 'spikes']
  assert size['products'] < 0.6 * size['all']
  assert size['spikes'] < 0.4 * size['products']
  # Not one map of potentials, currents or spikes as numbers: the image alone.
  maps = [
    x
    for x in kept_arrays['spikes']
    if x.ndim > 3 and jnp.issubdtype(x.dtype, jnp.floating) and x.shape[0] == 4
  ]
  assert all(x.shape[-1] == 1 for x in maps)


@pytest.mark.parametrize('shape', [(1, 1), (3, 5, 2), (2, 4, 3, 3, 8)])
def test_bits_hold_the_spikes(shape):
  spikes = np.random.default_rng(0).integers(0, 2, shape).astype(np.float32)
  packed = kept.pack(spikes)
  assert packed.dtype == jnp.uint8
  assert packed.size == shape[0] * -(-spikes[0].size // 8)
  found = kept.unpack(packed, shape=shape, dtype=jnp.float32)
  np.testing.assert_array_equal(found, spikes)


def test_settings_that_contradict_each_other_are_refused():
  with pytest.raises(InputError, match="unknown keep 'bits'.*all, products"):
    build_model({'name': 'resnet20', 'keep': 'bits'})
  with pytest.raises(InputError, match="keep='spikes': set remat=False"):
    build_model({'name': 'resnet20', 'keep': 'spikes', 'remat': True})
