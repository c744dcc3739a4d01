"""Does every layer get its network's settings, and are unusable ones named?"""

import dataclasses

import common
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from mpbn_jax import MODELS, InputError, build_model
from mpbn_jax.layers import LIF, ConvNorm, SpikeNorm
from mpbn_jax.models.network import SpikingNetwork


@pytest.mark.parametrize(
  ('name', 'settings', 'leaf', 'expected'),
  [
    ('resnet20', {'membrane_norm': 'none'}, 'conv2/bn', 0),
    ('resnet20', {}, 'conv2/bn', 1),
    ('resnet20', {'last_scale': 0.5}, 'conv2/bn', 0.5),
    ('preact_resnet', {}, 'conv2/bn', 0.2),
    ('preact_resnet', {'last_scale': 0.5}, 'conv2/bn', 0.5),
    (
      'preact_resnet',
      {'current_norm': 'none', 'spike_norm': 'psp_bn'},
      'lif2_spikes/psp_bn',
      0.2,
    ),
    (
      'preact_resnet',
      {'current_norm': 'none', 'spike_norm': 'psp_bn', 'last_scale': 0.5},
      'lif2_spikes/psp_bn',
      0.5,
    ),
  ],
)
def test_only_the_last_scale_of_a_block_starts_otherwise(
  name, settings, leaf, expected
):
  model = build_model({'name': name, 'width': 4, **settings})

  def scales():
    x = jnp.zeros((1, 16, 16, 1))
    params = model.init(jax.random.key(0), x, train=False)['params']
    return {
      jax.tree_util.keystr(path, simple=True, separator='/'): leaf
      for path, leaf in jax.tree_util.tree_leaves_with_path(params)
      if path[-1].key == 'scale' and path[-2].key != 'mpbn_channel'
    }

  # The kernels are dead code, and not compiled.
  found = jax.jit(scales)()
  last = [k for k in found if f'{leaf}/scale' in k and 'stem' not in k]
  assert last
  for key, scale in found.items():
    assert (scale == (expected if key in last else 1)).all(), key


# {setting: (no default, which attribute of which layers it becomes)}
SETTINGS = {
  'tau': (0.5, [(LIF, 'tau')]),
  'v_th': (0.8, [(LIF, 'v_th')]),
  'learn_tau': (True, [(LIF, 'learn_tau')]),
  'learn_v_th': (True, [(LIF, 'learn_v_th')]),
  'surrogate': ('atan', [(LIF, 'surrogate')]),
  'surrogate_parameter': (3.0, [(LIF, 'surrogate_parameter')]),
  'reset': ('soft', [(LIF, 'reset')]),
  'detach_reset': (True, [(LIF, 'detach_reset')]),
  'current_norm': ('tebn', [(ConvNorm, 'norm')]),
  'membrane_norm': ('mpbn_element', [(LIF, 'norm')]),
  'spike_norm': ('psp_ln', [(SpikeNorm, 'norm')]),
  'tau_s': (0.3, [(SpikeNorm, 'tau_s')]),
  'momentum': (
    0.4,
    [(kind, 'momentum') for kind in (LIF, ConvNorm, SpikeNorm)],
  ),
  'eps': (0.01, [(kind, 'eps') for kind in (LIF, ConvNorm, SpikeNorm)]),
  'unroll': (False, [(kind, 'unroll') for kind in (LIF, SpikeNorm)]),
}
# What they do is tested by name.
SHAPES = {'num_classes', 'num_steps', 'width', 'depth', 'dtype'}
BLOCKS = {'remat', 'last_scale'}


def test_every_setting_of_a_network_is_tested():
  fields = {field.name for field in dataclasses.fields(SpikingNetwork)}
  assert fields - {'name', 'parent'} == SETTINGS.keys() | SHAPES | BLOCKS


@pytest.mark.parametrize('name', MODELS)
def test_every_layer_gets_the_settings_of_its_network(name):
  settings = {key: value for key, (value, _) in SETTINGS.items()}
  model = build_model({'name': name, 'width': 2, **settings})
  seen = {LIF: 0, ConvNorm: 0, SpikeNorm: 0}

  def look(function, args, kwargs, context):
    module = context.module
    if type(module) in seen and context.method_name == '__call__':
      seen[type(module)] += 1
      for value, attributes in SETTINGS.values():
        for kind, attribute in attributes:
          if isinstance(module, kind):
            assert getattr(module, attribute) == value, (module, attribute)
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
    ({'membrane_norm': 'mpbn'}, "of the membrane 'mpbn'.*mpbn_channel"),
    ({'current_norm': 'bm'}, "of the current 'bm'.*bn, bntt, none, tdbn"),
    ({'spike_norm': 'x'}, "of the spikes 'x': expected one of neunorm, none"),
    ({'tau_s': 1.0}, r'tau_s is the kept fraction.*\[0, 1\), got 1.0'),
    ({'depth': 22}, "no depth to choose, got depth=22.*'preact_resnet'"),
    ({'remat': True}, 'no remat to choose, got remat=True: set remat=False'),
    ({'last_scale': 0.5}, 'no last_scale to choose.*set last_scale=None'),
    ({'name': 'resnet20', 'remat': True}, 'no remat to choose'),
    (
      {'name': 'resnet20', 'last_scale': 0.5, 'current_norm': 'none'},
      'last_scale is what the scale.*got 0.5 with current_norm=.none',
    ),
    (
      {
        'name': 'preact_resnet',
        'last_scale': 0.5,
        'current_norm': 'none',
        'spike_norm': 'neunorm',
      },
      'spike_norm=.neunorm., where there is none: set last_scale=None',
    ),
    ({'name': 'preact_resnet', 'remat': 'yes'}, 'remat must be True or False'),
    ({'learn_tau': 1}, 'learn_tau must be True or False, got 1'),
    ({'tau': 'a'}, "tau must be a finite number, got 'a'"),
    ({'v_th': float('nan')}, 'v_th must be a finite number, got nan'),
    ({'v_th': -1.0}, 'v_th must be positive, got -1.0'),
    ({'eps': 0}, 'eps must be positive, got 0'),
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
