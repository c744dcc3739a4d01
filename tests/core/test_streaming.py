"""Frames that arrive one by one, against whole sequences."""

import common
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registered import known

from mpbn_jax import (
  InputError,
  fold,
  fold_all,
  fold_spike_norms,
  readers_of_spikes,
  strip,
)
from mpbn_jax.evaluation import recorded, stacked_axes
from mpbn_jax.layers import LIF
from mpbn_jax.models.network import SpikingNetwork
from mpbn_jax.norm import NORMS, NormAfterFiring
from mpbn_jax.streaming import initial_state, recorded_step, step

STEPS = 3
QUICK = ('spiking_cnn',)
whole_of = jax.jit(recorded, static_argnums=0)
one_of = jax.jit(recorded_step, static_argnums=0)


def _frames(name='spiking_cnn'):
  side = common.SIDES[name]
  return common.images(2 * STEPS, side).reshape(2, STEPS, side, side, 1)


def _assert_streams(model, variables, frames, *others):
  """Checks every spike and the logits of frames one by one.

  Args:
    model: the network.
    variables: its variables.
    frames: [B, T, H, W, C].
    *others: folded variables, which fire the same spikes.
  """
  logits, layers = whole_of(model, variables, frames)
  assert layers
  for streamed in (variables, *others):
    state, steps = initial_state(model, streamed, frames[:, 0]), []
    for frame in frames.swapaxes(0, 1):
      state, *outputs = one_of(model, streamed, state, frame)
      steps.append(outputs)
    for name, layer in layers.items():
      time = 1 + len(stacked_axes(layer))
      spikes = np.concatenate([spikes[name] for _, spikes in steps], time)
      assert 0 < spikes.mean() < 1, name
      np.testing.assert_array_equal(spikes, layer['spikes'], name)
    # The mean of T numbers, in another order.
    means = sum(now for now, _ in steps) / STEPS
    np.testing.assert_allclose(means, logits, rtol=1e-5, atol=1e-6)


# Blocks that are scanned over, and all that neurons remember.
SETTINGS = {
  'preact_resnet': dict(depth=16, spike_norm='psp_bn', tau_s=0.5, start='mean')
}


@pytest.mark.parametrize(
  'name',
  [
    # A chain; the others in full runs.
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
    for name in known('networks')
  ],
)
def test_frames_one_by_one_fire_the_spikes_of_the_sequence(name):
  settings = SETTINGS.get(name, {})
  model, variables = common.small(
    name, side=common.SIDES[name], unroll=False, **settings
  )
  frames, folded = _frames(name), fold(variables)
  if 'spike_norm' in settings:
    readers = readers_of_spikes(model, variables, frames)
    folded = fold_spike_norms(folded, readers=readers)
  _assert_streams(model, variables, frames, strip(folded))


@pytest.mark.parametrize(
  'settings',
  [
    {'reset': 'soft', 'start': 'mean'},
    {'spike_norm': 'psp_bn', 'tau_s': 0.5, 'learn_tau': True},
    {'spike_norm': 'psp_ln', 'tau_s': 0.5, 'dtype': 'bfloat16'},
  ],
  ids=lambda settings: '-'.join(map(str, settings.values())),
)
def test_everything_that_neurons_remember_is_in_the_state(settings):
  model, variables = common.small(**settings)
  if 'start' in settings:
    variables = jax.tree_util.tree_map_with_path(
      lambda path, v: v + 0.3 if path[-1].key == 'start' else v, variables
    )
  _assert_streams(model, variables, _frames())


def test_state_is_that_before_the_first_frame():
  model, variables = common.small(start='mean', spike_norm='psp_bn', tau_s=0.5)
  variables['batch_stats']['lif2']['start'] = jnp.float32(0.25)
  state = initial_state(model, variables, _frames()[:, 0])
  np.testing.assert_array_equal(
    state['lif2']['u_res'], np.full((2, 8, 8, 4), 0.25)
  )
  assert not state['lif1']['u_res'].any()
  assert state['lif4']['spike_norm']['a'].shape == (2, 4, 4, 8)


def test_start_of_every_sequence_is_compiled_once():
  model, variables = common.small()
  frame = _frames()[:, 0]
  initial_state(model, variables, frame)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(model.__class__, 'features', None)  # a trace would fail
    initial_state(model, variables, frame)


def test_step_changes_neither_its_state_nor_later_sequences():
  model, variables = common.small()
  frames = _frames()
  state = initial_state(model, variables, frames[:, 0])
  before = jax.tree.map(np.array, state)
  once = step(model, variables, state, frames[:, 0])
  jax.tree.map(np.testing.assert_array_equal, state, before)
  again = step(model, variables, state, frames[:, 0])
  jax.tree.map(np.testing.assert_array_equal, once, again)


def test_ordinary_calls_keep_no_potentials():
  model, variables = common.small()
  assert 'carry' not in variables
  x = _frames()
  _, updates = model.apply(variables, x, train=False, mutable=True)
  assert 'carry' not in updates


# ---- what is refused


@pytest.mark.parametrize(
  ('settings', 'folded', 'message'),
  [
    ({'conv_norm': 'bntt'}, False, "each of its 3 steps in 'bntt'"),
    ({'conv_norm': 'tab'}, True, "each of its 3 steps in 'tab'"),
    ({'conv_norm': 'tebn'}, True, "each of its 3 steps in 'tebn'"),
    ({'spike_norm': 'psp_bn_step'}, False, "each of its 3 .*'psp_bn_step'"),
    ({'spike_norm': 'psp_bn_step'}, True, "each of its 3 steps in 'conv2'"),
    ({'spike_norm': 'neunorm'}, False, "alone, got 'neunorm' at 'lif1/spike_"),
  ],
)
def test_norm_that_tells_steps_apart_is_refused_by_name(
  settings, folded, message
):
  model, variables = common.small(**settings)
  frames = _frames()
  if folded:
    readers = readers_of_spikes(model, variables, frames)
    variables = strip(fold_all(variables, readers=readers))
  with pytest.raises(InputError, match=message):
    initial_state(model, variables, frames[:, 0])


def test_norm_with_one_step_in_training_is_refused_too():
  model, variables = common.small(conv_norm='bntt', num_steps=1)
  with pytest.raises(InputError, match="each of its 1 steps in 'bntt'"):
    initial_state(model, variables, _frames()[:, 0])


def test_unfolded_norm_of_users_is_refused_unless_it_says_that_it_streams(
  registries,
):
  psp_ln = NORMS['psp_ln']
  NORMS['psp_ln'] = NormAfterFiring(
    init=psp_ln.init, train=psp_ln.train, evaluate=psp_ln.evaluate
  )
  model, variables = common.small(spike_norm='psp_ln')
  with pytest.raises(InputError, match="got 'psp_ln' at .*memoryless=True"):
    initial_state(model, variables, _frames()[:, 0])


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda state: {}, r'lif1/u_res of shape \(2, 8, 8, 4\), got None'),
    (
      lambda state: jax.tree.map(lambda leaf: leaf[:1], state),
      r'shape \(2, 8, 8, 4\), got \(1, 8, 8, 4\)',
    ),
  ],
)
def test_state_of_another_network_or_batch_is_refused(change, message):
  model, variables = common.small()
  frame = _frames()[:, 0]
  state = change(dict(initial_state(model, variables, frame)))
  with pytest.raises(InputError, match=message):
    step(model, variables, state, frame)


def test_whole_sequence_in_place_of_a_frame_is_refused():
  model, variables = common.small()
  with pytest.raises(InputError, match=r'expected one frame .*\(2, 3, 8, 8, 1'):
    initial_state(model, variables, _frames())


def test_state_among_the_variables_is_refused_elsewhere():
  model, variables = common.small()
  x = _frames()
  variables = {
    **variables,
    'carry': initial_state(model, variables, x[:, 0]),
  }
  with pytest.raises(InputError, match="those of a stream at 'lif1'"):
    model.apply(variables, x, train=False)


def test_training_on_a_stream_is_refused():
  model, variables = common.small()
  with pytest.raises(InputError, match='expected train=False'):
    model.apply(
      variables, _frames(), train=True, mutable=['carry', 'batch_stats']
    )


class _Twice(SpikingNetwork):
  """Fires twice with one layer of neurons."""

  def encoder(self):
    return self.conv(2, name='conv')

  def features(self, currents, *, train):
    lif = self.lif(name='lif')
    return lif(lif(currents, train=train), train=train)


class _Scanned(_Twice):
  """Has its neurons in a scan that hands no potentials on."""

  def features(self, currents, *, train):
    y, _ = nn.scan(
      lambda lif, x, _: (lif(x, train=train), None),
      variable_axes={'intermediates': 0},
      length=2,
    )(LIF(name='lif', norm='none'), currents, None)
    return y


@pytest.mark.parametrize(
  ('network', 'message'),
  [
    (_Twice, "'lif', which runs 2 times on one potential"),
    (_Scanned, "potentials of 'lif', got none from the nn.scan"),
  ],
)
def test_neurons_whose_potentials_would_be_lost_are_refused(network, message):
  frames = _frames()
  model = network(num_steps=STEPS)
  variables = common.init(model, frames)
  with pytest.raises(InputError, match=message):
    initial_state(model, variables, frames[:, 0])


def test_other_modules_are_refused():
  with pytest.raises(TypeError, match='expected a SpikingNetwork.*got LIF'):
    initial_state(LIF(), {}, _frames()[:, 0])
