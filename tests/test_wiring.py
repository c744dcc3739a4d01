"""Is the wiring that is traced the wiring that is drawn?"""

import functools

import common
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpbn_jax import (
  MODELS,
  InputError,
  build_model,
  fold_spike_norms,
  readers_of_spikes,
)
from mpbn_jax.layers import (
  LIF,
  ConvNorm,
  Readout,
  SpikeNorm,
  average_pool,
  over_time,
)


def _readers(name, **settings):
  side = common.SIDES[name]
  model = build_model(
    {
      'name': name,
      'width': 2,
      'num_steps': 2,
      'spike_norm': 'psp_bn',
      **settings,
    }
  )
  x = jax.ShapeDtypeStruct((2, side, side, 1), jnp.float32)
  variables = jax.eval_shape(
    lambda x: model.init(jax.random.key(0), x, train=False), x
  )
  return readers_of_spikes(model, variables, x), variables


@pytest.mark.parametrize('name', MODELS)
def test_every_norm_is_read_and_every_layer_reads_one(name):
  readers, variables = _readers(name)
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
  assert _readers('spiking_cnn')[0] == {
    'lif1_spikes': ('conv2',),
    'lif2_spikes': ('conv3',),  # through an average pool
    'lif3_spikes': ('conv4',),
    'lif4_spikes': ('head',),
  }


def test_block_of_resnet_reads_through_its_shortcut_too():
  readers, _ = _readers('resnet20', tau_s=0.5)
  assert readers['stem_lif3_spikes'] == (
    'stage1_block1_conv1',
    'stage1_block1_shortcut',
  )
  assert readers['stage1_block2_lif2_spikes'] == (
    'stage2_block1_conv1',
    'stage2_block1_shortcut',
  )
  assert readers['stage4_block2_lif1_spikes'] == ('stage4_block2_conv2',)


@pytest.mark.parametrize('remat', [False, True])
def test_scanned_blocks_are_wired_inside(remat):
  readers, _ = _readers('preact_resnet', depth=16, remat=remat)
  assert readers['stage1_blocks/lif1_spikes'] == ('stage1_blocks/conv1',)
  assert readers['stage2_first/lif1_spikes'] == (
    'stage2_first/shortcut',
    'stage2_first/conv1',
  )
  assert readers['last_lif_spikes'] == ('head',)


def _readers_through(join, norm='psp_bn'):
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
      one = ConvNorm(4, name='conv1')(x, train=train)
      spikes = [
        SpikeNorm(norm=norm, name=f'norm{i}')(
          LIF(name=f'lif{i}')(one, train=train), train=train
        )
        for i in (1, 2)
      ]
      return Readout(3, nn.initializers.ones, name='head')(
        join(*spikes).mean((2, 3))
      )

  net = Net()
  x = jnp.zeros((2, 2, 4, 4, 1))
  init = functools.partial(net.init, train=False)
  variables = jax.eval_shape(init, jax.random.key(0), x)
  return readers_of_spikes(net, variables, x)


@pytest.mark.parametrize(
  ('join', 'message'),
  [
    (lambda a, b: a + b, "'head' to read the spikes of one layer.*'add'"),
    (
      lambda a, b: jnp.tanh(a),
      "'head' to read.*norm1 after the operation 'tanh'",
    ),
    (
      lambda a, b: a * b,
      "'head' to read.*norm1, norm2 after the operation 'mul'",
    ),
    (lambda a, b: a * a, "'head' to read.*norm1 after the operation 'mul'"),
    (lambda a, b: 1 / a, "'head' to read.*norm1 after the operation 'div'"),
    (lambda a, b: a + 0 * a.sum(-1, keepdims=True), "after.*'reduce_sum'"),
    (
      lambda a, b: jnp.broadcast_to(a.mean(-1, keepdims=True), a.shape),
      "'reduce_sum'",
    ),
    (lambda a, b: a.swapaxes(1, -1), 'norm1 after moving the channel axis'),
    (
      lambda a, b: (
        a.reshape(*a.shape[:4], 2, 2).swapaxes(-1, -2).reshape(a.shape)
      ),
      "'reshape'",
    ),
    (lambda a, b: a[..., 1:], "norm1 after the operation 'slice'"),
    (lambda a, b: jnp.concatenate([a, b], -1), "'head'.*norm1, norm2"),
  ],
)
def test_what_a_factor_does_not_pass_through_is_named(join, message):
  with pytest.raises(InputError, match=message):
    _readers_through(join)


def test_moments_of_steps_do_not_pass_through_a_mean_over_the_steps():
  def mean(a, b):
    return jnp.broadcast_to(a.mean(1, keepdims=True), a.shape)

  assert _readers_through(mean) == {'norm1': ('head',)}
  with pytest.raises(
    InputError, match="norm1 after the operation 'reduce_sum'"
  ):
    _readers_through(mean, norm='psp_bn_step')


@pytest.mark.parametrize('norm', ['psp_bn', 'psp_bn_step'])
@pytest.mark.parametrize(
  'join',
  [
    lambda a: jnp.pi * a / 2,
    lambda a: over_time(lambda x: average_pool(x, window=2), a),
    lambda a: over_time(
      lambda x: average_pool(x, window=3, stride=2, padding=1), a
    ),
    lambda a: a.transpose(4, 0, 1, 2, 3).transpose(1, 2, 3, 4, 0),
    lambda a: a.reshape(-1).reshape(a.shape),
    lambda a: a[:, :, 1:3],
    lambda a: jax.lax.map(lambda x: 2 * x, a),
  ],
)
def test_what_a_factor_passes_through_is_read(join, norm):
  a = jax.random.normal(jax.random.key(0), (2, 2, 4, 4, 4))
  factor = jnp.arange(1.0, 5) * jnp.arange(1.0, 3)[:, None]
  factor = factor[:, None, None] if norm == 'psp_bn_step' else factor[0]
  np.testing.assert_allclose(factor * join(a), join(factor * a), rtol=1e-5)
  found = _readers_through(lambda a, b: join(a), norm)
  assert found == {'norm1': ('head',)}


def test_norm_without_a_reader_is_not_folded():
  _, variables = common.small(spike_norm='psp_bn')
  with pytest.raises(InputError, match="that reads 'lif1_spikes', got none"):
    fold_spike_norms(variables, readers={})


def test_readers_of_another_model_are_refused():
  _, variables = common.small(spike_norm='psp_bn')
  message = "'conv2' to read the 8 channels of 'lif3_spikes', .* kernel for 4"
  with pytest.raises(InputError, match=message):
    fold_spike_norms(
      variables,
      readers={
        'lif1_spikes': ['conv2'],
        'lif2_spikes': ['conv3'],
        'lif3_spikes': ['conv2'],
        'lif4_spikes': ['head'],
      },
    )
