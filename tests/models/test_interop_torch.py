"""The reference's checkpoints, in and out, and errors with names."""

import functools

import common
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpbn_jax import InputError, build_model
from mpbn_jax.interop.torch import (
  ARCHITECTURES,
  from_reference,
  to_reference,
)

SIDES = {'resnet18': 32, 'resnet34': 32, 'vgg16': 32}


@functools.cache
def _case(name, membrane_norm='mpbn_channel', channels=3):
  """Returns (config.model, variables) with every leaf its own random value."""
  config = {'name': name, 'width': 2, 'membrane_norm': membrane_norm}
  side = SIDES.get(name, 16)
  model = build_model({**config, 'unroll': False})
  shapes = jax.eval_shape(
    lambda: model.init(
      jax.random.key(0), jnp.zeros((1, side, side, channels)), train=False
    )
  )
  rng = np.random.default_rng(0)
  constants = {'eps': jnp.float32(1e-5), 'v_th': jnp.float32(0.5)}

  def leaf(path, shape):
    drawn = rng.normal(0, 1, shape.shape)
    drawn = abs(drawn) if path[-1].key == 'var' else drawn
    drawn = jnp.asarray(drawn, jnp.float32)
    return constants.get(path[-1].key, drawn)

  return config, jax.tree_util.tree_map_with_path(leaf, shapes)


@pytest.mark.parametrize(
  ('norm', 'channels'),
  [('none', 3), ('mpbn_channel', 2), ('mpbn_element', 3)],
)
@pytest.mark.parametrize('name', ARCHITECTURES)
def test_out_and_in_again_is_the_identity(name, norm, channels):
  config, variables = _case(name, norm, channels)
  again = from_reference(to_reference(variables, config), config)
  jax.tree.map(np.testing.assert_array_equal, again, variables)


@pytest.mark.parametrize('file', common.GOLDEN_NETWORKS)
def test_in_and_out_again_is_the_identity(file):
  config, _, variables, _, arrays = common.golden(file)
  expected = common.golden_state(arrays)
  state = to_reference(variables, config)
  assert state.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(state[name], value)


def test_module_prefix_and_batch_counters_are_ignored():
  config, variables = _case('resnet20')
  state = to_reference(variables, config)
  prefixed = {f'module.{name}': value for name, value in state.items()}
  prefixed['module.model.conv1.1.bn.num_batches_tracked'] = np.array(7)
  jax.tree.map(
    np.testing.assert_array_equal, from_reference(prefixed, config), variables
  )


def test_missing_extra_and_misshapen_entries_are_all_named_at_once():
  config, variables = _case('resnet20')
  state = to_reference(variables, config)
  del state['model.fc.conv.bias']
  del state['model.conv1.2.bn.running_var']
  state['model.fc.conv.weight'] = np.zeros((7, 16), np.float32)
  state['model.extra.weight'] = np.zeros(3)
  with pytest.raises(InputError) as error:
    from_reference(state, config)
  message = str(error.value)
  assert '\n' not in message
  for part in (
    'missing model.fc.conv.bias',
    'missing model.conv1.2.bn.running_var',
    'model.fc.conv.weight has shape (7, 16), expected (10, 16)',
    'extra model.extra.weight',
  ):
    assert part in message


def test_checkpoint_of_another_width_is_refused():
  config, variables = _case('resnet20')
  state = to_reference(variables, config)
  with pytest.raises(InputError, match=r'has shape \(2, 3, 3, 3\), expected'):
    from_reference(state, config | {'width': 4})


def test_architecture_that_the_reference_has_not_is_refused():
  with pytest.raises(InputError, match="of the reference 'spiking_cnn'.*vgg16"):
    from_reference({}, {'name': 'spiking_cnn', 'width': 2})


def test_norm_that_the_reference_has_not_is_refused():
  with pytest.raises(InputError, match="conv_norm='bn'.*got 'none'"):
    from_reference({}, {'name': 'resnet20', 'conv_norm': 'none'})
  with pytest.raises(InputError, match="of the spikes, got 'psp_bn'"):
    from_reference({}, {'name': 'resnet20', 'spike_norm': 'psp_bn'})


def test_folded_variables_do_not_go_out():
  config, variables = _case('resnet20')
  with pytest.raises(InputError, match='expected unfolded variables'):
    to_reference({**variables, 'threshold': {}}, config)


@pytest.mark.parametrize('key', ['learn_tau', 'learn_v_th'])
def test_what_the_reference_does_not_learn_is_refused(key):
  config, variables = _case('resnet20')
  state = to_reference(variables, config)
  with pytest.raises(InputError, match=f'the reference has no {key}'):
    from_reference(state, config | {key: True})


def test_start_that_the_reference_does_not_have_is_refused():
  with pytest.raises(InputError, match='of the reference start at 0, got'):
    from_reference({}, {'name': 'resnet20', 'start': 'mean'})


VAR = 'model.conv1.2.bn.running_var'
BIAS = 'model.fc.conv.bias'


@pytest.mark.parametrize(
  ('name', 'change', 'message'),
  [
    (VAR, lambda a: a - 9, f'variances of at least 0, got {VAR} with the var'),
    (VAR, lambda a: a * np.nan, f'{VAR} with NaN or infinity'),
    (BIAS, lambda a: a / 0.0, f'{BIAS} with NaN or infinity'),
    (BIAS, lambda a: np.full(10, 1e39), f'{BIAS} with NaN or infinity'),
    (BIAS, lambda a: a + 1j, f'{BIAS} of dtype complex64'),
    (BIAS, lambda a: a.astype(np.int8), f'{BIAS} of dtype int8'),
    (BIAS, lambda a: a > 0, f'{BIAS} of dtype bool'),
  ],
)
def test_numbers_that_no_network_has_are_named(name, change, message):
  config, variables = _case('resnet20')
  state = to_reference(variables, config)
  with np.errstate(divide='ignore'):
    state[name] = change(state[name])
  with pytest.raises(InputError, match=message):
    from_reference(state, config)


@pytest.mark.parametrize('dtype', [np.float16, np.float64, jnp.bfloat16])
def test_floating_point_numbers_of_every_width_are_taken(dtype):
  config, variables = _case('resnet20')
  state = to_reference(variables, config)
  state[BIAS] = np.asarray(state[BIAS]).astype(dtype)
  bias = from_reference(state, config)['params']['head']['bias']
  np.testing.assert_array_equal(bias, state[BIAS].astype(np.float32))


def test_name_with_and_without_the_prefix_is_refused():
  config, variables = _case('resnet20')
  state = to_reference(variables, config)
  state[f'module.{BIAS}'] = state[BIAS] + 1
  with pytest.raises(InputError, match=f"once, got '{BIAS}' with and"):
    from_reference(state, config)


def test_key_that_is_no_name_is_refused():
  config, variables = _case('resnet20')
  state = to_reference(variables, config) | {0: np.zeros(3)}
  with pytest.raises(TypeError, match='arrays by name, got the key 0'):
    from_reference(state, config)
