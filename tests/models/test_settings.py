"""Settings of networks: each layer gets its own, unusable ones are named."""

import dataclasses
import re

import common
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registered import known

from mpbn_jax import InputError, build_model
from mpbn_jax.layers import LIF, ConvNorm, SpikeNorm
from mpbn_jax.models import CONV_SETTINGS, LIF_SETTINGS

PSP_BN = {'conv_norm': 'none', 'spike_norm': 'psp_bn'}


def _initial(leaf, settings):
  """Returns {layer/norm: the initial leaf of this name} of a network."""
  model = build_model({'width': 4, 'num_steps': 1, **settings})
  side = common.SIDES[settings['name']]

  def leaves():
    x = jnp.zeros((1, side, side, 1))
    variables = model.init(jax.random.key(0), x, train=False)
    return {
      jax.tree_util.keystr(path[1:-1], simple=True, separator='/'): value
      for path, value in jax.tree_util.tree_leaves_with_path(variables)
      if path[-1].key == leaf
    }

  # The kernels are dead code, and not compiled.
  return jax.jit(leaves)()


@pytest.mark.parametrize(
  ('name', 'settings', 'last', 'expected'),
  [
    # The reference's networks, with and without MPBN: every scale is 1.
    *(
      (name, {'membrane_norm': norm}, None, 1)
      for name in known('networks')
      if name != 'preact_resnet'
      for norm in ('none', 'mpbn_channel')
    ),
    ('resnet20', {'last_scale': 0.5}, r'_block\d_conv2/bn', 0.5),
    # 1 / n, n blocks a stage: 3 of 22 layers, 17 of 106.
    ('preact_resnet', {}, '/conv2/bn', 1 / 3),
    ('preact_resnet', {'depth': 106}, '/conv2/bn', 1 / 17),
    ('preact_resnet', {'last_scale': 0.5}, '/conv2/bn', 0.5),
    ('preact_resnet', PSP_BN | {'depth': 10}, '/lif2/spike_norm/psp_bn', 1),
    ('preact_resnet', PSP_BN, '/lif2/spike_norm/psp_bn', 1 / 3),
    ('preact_resnet', PSP_BN | {'last_scale': 0}, '/lif2/spike_norm/psp_bn', 0),
  ],
)
def test_scales_start_at_1_but_for_the_last_of_a_block_where_it_is_set(
  name, settings, last, expected
):
  found = _initial('scale', {'name': name, **settings})
  lasts = [key for key in found if last and re.search(last, key)]
  assert bool(lasts) == (last is not None)
  for key, scale in found.items():
    np.testing.assert_allclose(
      scale, expected if key in lasts else 1, rtol=1e-6, err_msg=key
    )


@pytest.mark.parametrize(
  ('name', 'joined', 'layers'),
  [
    ('resnet20', r'stage[234]_block1_(conv2|shortcut)', 6),
    ('resnet19', r'stage[23]_block1_(conv2|shortcut)', 4),
    ('preact_resnet', r'stage[23]_first/(conv2|shortcut)', 4),
    ('vgg16', '^$', 0),
  ],
)
def test_tdbn_halves_the_variance_of_two_normed_branches_alone(
  name, joined, layers
):
  settings = {'name': name, 'conv_norm': 'tdbn', 'v_th': 0.8}
  found = _initial('alpha_v_th', settings)
  halved = [key for key in found if re.search(joined, key)]
  assert len(halved) == layers
  for key, gain in found.items():
    # Beside an identity shortcut, a branch keeps its variance.
    expected = 0.8 * (0.5**0.5 if key in halved else 1)
    np.testing.assert_allclose(gain, expected, rtol=1e-6, err_msg=key)


# {key of the configuration: a value that is not the default}
SETTINGS = {
  'tau': 0.5,
  'v_th': 0.8,
  'learn_tau': True,
  'learn_v_th': True,
  'surrogate': 'atan',
  'surrogate_parameter': 3.0,
  'surrogate_unit': 'v_th',
  'reset': 'soft',
  'detach_reset': True,
  'start': 'mean',
  'conv_norm': 'tebn',
  'membrane_norm': 'mpbn_element',
  'spike_norm': 'psp_ln',
  'tau_s': 0.3,
  'momentum': 0.4,
  'eps': 0.01,
  'stats_groups': 2,
  'unroll': False,
  'autodiff': True,
  'keep': 'spikes',
  'kernel_init': 'micheli',
}
# {layer: {key: attribute that it becomes}}
ATTRIBUTES = {
  ConvNorm: CONV_SETTINGS,
  LIF: LIF_SETTINGS,
  SpikeNorm: {
    'spike_norm': 'norm',
    **{
      key: key for key in ('tau_s', 'momentum', 'eps', 'stats_groups', 'unroll')
    },
  },
}


def test_every_setting_of_a_layer_is_tested():
  assert SETTINGS.keys() == CONV_SETTINGS.keys() | LIF_SETTINGS.keys()
  # The others differ from layer to layer: the network sets them.
  of_network = {
    ConvNorm: 'features kernel_size stride padding groups use_bias scale_init '
    'joins',
    LIF: 'spike_scale_init',
    SpikeNorm: 'scale_init',
  }
  for layer, names in ATTRIBUTES.items():
    fields = {field.name for field in dataclasses.fields(layer)}
    fields -= {'name', 'parent', *of_network[layer].split()}
    assert fields == set(names.values()), layer


@pytest.mark.parametrize('name', known('networks'))
def test_every_layer_gets_the_settings_of_its_network(name):
  model = build_model({'name': name, 'width': 2, **SETTINGS})
  seen = dict.fromkeys(ATTRIBUTES, 0)

  def look(function, args, kwargs, context):
    module = context.module
    if type(module) in seen and context.method_name == '__call__':
      seen[type(module)] += 1
      for key, attribute in ATTRIBUTES[type(module)].items():
        value = getattr(module, attribute)
        if key == 'kernel_init':
          value = value.name
        assert value == SETTINGS[key], (module, key)
    return function(*args, **kwargs)

  x = jax.ShapeDtypeStruct(
    (1, common.SIDES[name], common.SIDES[name], 1), jnp.float32
  )
  with nn.intercept_methods(look):
    jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
  assert all(count > 1 for count in seen.values())


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'name': 'resnet21'}, "unknown model 'resnet21'.*resnet20, resnet34"),
    ({'surrogate': 'rekt'}, "unknown surrogate 'rekt'.*did you mean 'rect'"),
    ({'membrane_norm': 'mpbn'}, "unknown membrane_norm 'mpbn'.*mpbn_channel"),
    ({'conv_norm': 'bm'}, "unknown conv_norm 'bm'.*bn, bntt, none, tab, tdbn"),
    (
      {'spike_norm': 'x'},
      'unknown spike_norm .x.: expected .*neunorm, none',
    ),
    ({'tau_s': 1.0}, r'tau_s is the kept fraction.*\[0, 1\), got 1.0'),
    ({'depth': 22}, r'no setting depth, got depth=22: .* \(preact_resnet\)'),
    ({'remat': True}, r'no setting remat, got remat=True: .*resnet20'),
    ({'last_scale': 0.5}, 'no setting last_scale, .* choose another model'),
    ({'surogate': None}, "setting of 'spiking_cnn' 'surogate'.*'surrogate'"),
    ({'current_norm': None}, "it was renamed to 'conv_norm'"),
    ({'current_norm': 'bn'}, "'current_norm': it was renamed to 'conv_norm'"),
    ({'stage_sizes': (1, 1)}, "unknown setting of 'spiking_cnn' 'stage_size"),
    ({'kernel_init': 'he'}, "unknown kernel_init 'he'.*fan_in, fan_out, mich"),
    ({'start': 'last'}, "unknown start 'last'.*mean, zero"),
    ({'surrogate_unit': 'u'}, "unknown surrogate_unit 'u'.*one, v_th"),
    ({'name': 'preact_resnet', 'remat': 'yes'}, 'remat must be True or False'),
    ({'learn_tau': 1}, 'learn_tau must be True or False, got 1'),
    ({'tau': 'a'}, "tau must be a finite number, got 'a'"),
    ({'v_th': float('nan')}, 'v_th must be a finite number, got nan'),
    ({'v_th': -1.0}, 'v_th must be positive, got -1.0'),
    ({'eps': 0}, 'eps must be positive and finite, got 0'),
    ({'name': 'preact_resnet', 'depth': 20}, r'6n \+ 4 .*106.* got 20'),
    ({'dtype': 'float16'}, "unknown dtype 'float16'.*bfloat16, float32"),
    ({'reset': 'x'}, "unknown reset 'x'.*hard, soft"),
    ({'num_steps': 0}, 'num_steps must be an integer >= 1, got 0'),
    ({'num_steps': 2.5}, 'num_steps must be an integer >= 1, got 2.5'),
    ({'width': 0}, 'width must be an integer >= 1, got 0'),
    ({'tau': 2.0}, r'tau is the kept fraction.*\[0, 1\), got 2.0'),
    ({'momentum': 0.0}, r'momentum is the weight of the new value.*got 0.0'),
    ({'surrogate_parameter': -1.0}, 'must be positive, got -1.0'),
    ({'num_step': 4}, "setting of 'spiking_cnn' 'num_step'.*'num_steps'"),
  ],
)
def test_unusable_setting_is_named(settings, message):
  with pytest.raises(InputError, match=message):
    build_model({'name': 'spiking_cnn', **settings})


def test_model_without_a_name_lists_the_networks():
  with pytest.raises(InputError, match='needs a name: one of preact_r'):
    build_model({'width': 4})
