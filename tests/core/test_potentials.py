"""Membrane potentials of neuron layers, for whoever asks for them."""

import functools

import common
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_layers import MEMBRANE, lif_layer

from mpbn_jax import InputError, fold, fold_all, strip
from mpbn_jax.evaluation import recorded
from mpbn_jax.layers import potentials
from mpbn_jax.neuron import lif_scan, potentials_of


@functools.partial(jax.jit, static_argnums=0, static_argnames='train')
def _run(layer, variables, x, *, train):
  """Returns (spikes, potentials) with arrays in place of tuples of one."""
  spikes, kept = layer.apply(
    variables, x, train=train, mutable=['batch_stats', 'potentials']
  )
  return spikes, {k: v for k, (v,) in kept['potentials'].items()}


def _by_hand(currents, spikes, *, reset, first=0.0):
  """Returns the potentials [B, T, ...] in NumPy, for tau 0.25 and v_th 0.5."""
  kept, found = np.float32(first), []
  for current, fired in zip(
    np.moveaxis(currents, 1, 0), np.moveaxis(spikes, 1, 0), strict=True
  ):
    found.append(np.float32(0.25) * kept + current)
    left = {'hard': found[-1] * (1 - fired), 'soft': found[-1] - 0.5 * fired}
    kept = left[reset]
  return np.stack(found, 1)


@pytest.mark.parametrize('reset', ['hard', 'soft'])
@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('norm', MEMBRANE)
def test_potentials_are_those_that_the_spikes_were_decided_by(
  norm, train, reset
):
  layer, variables, currents = lif_layer(norm, reset=reset)
  spikes, found = _run(layer, variables, currents, train=train)
  expected = _by_hand(currents, spikes, reset=reset)
  np.testing.assert_array_equal(found['before'], expected)
  levels = {'v_th', 'before', *['after'] * (norm != 'none')}
  assert set(found) == levels
  n = found.get('after', found['before'])
  assert n.shape == spikes.shape
  distance = np.where(spikes, 1, -1) * (n - found['v_th'])
  assert distance.min() > -1e-6  # rounding: the decision is exact, n is not
  assert 0 < spikes.mean() < 1


def test_potentials_in_training_are_normed_in_their_groups():
  layer, variables, currents = lif_layer('mpbn_channel', stats_groups=2)
  spikes, found = _run(layer, variables, currents, train=True)
  for half in (slice(0, 2), slice(2, 4)):
    u = np.asarray(found['before'][half])
    params = variables['params']['mpbn_channel']
    mean = u.mean((0, 2, 3), keepdims=True)
    deviation = np.sqrt(u.var((0, 2, 3), keepdims=True) + 1e-5)
    n = (u - mean) / deviation * params['scale'] + params['bias']
    np.testing.assert_allclose(found['after'][half], n, atol=1e-5)
  assert spikes.any()


@pytest.mark.parametrize('norm', MEMBRANE[1:])
def test_a_folded_layer_has_its_threshold_in_place_of_the_norm(norm):
  layer, variables, currents = lif_layer(norm)
  variables = common.random_norms(variables, adversarial=True)
  folded = strip(fold(variables))
  spikes, found = _run(layer, folded, currents, train=False)
  assert set(found) == {'before', 'v_th', 'threshold', 'polarity'}
  polarity = found['polarity']
  assert (polarity < 0).any()
  fired = polarity * found['before'] > polarity * found['threshold']
  np.testing.assert_array_equal(fired, spikes > 0)
  _, unfolded = _run(layer, variables, currents, train=False)
  np.testing.assert_array_equal(found['before'], unfolded['before'])


def test_potentials_begin_at_the_start_of_the_neurons():
  layer, variables, currents = lif_layer('none', start='mean')
  variables = {**variables, 'batch_stats': {'start': jnp.float32(0.375)}}
  spikes, found = _run(layer, variables, currents, train=False)
  expected = _by_hand(currents, spikes, reset='hard', first=0.375)
  np.testing.assert_array_equal(found['before'], expected)


def test_nothing_is_kept_unless_it_is_asked_for(monkeypatch):
  layer, variables, currents = lif_layer('mpbn_channel')
  assert set(variables) == {'params', 'batch_stats'}  # those of `init`
  apply = functools.partial(layer.apply, variables, currents)
  spikes, kept = apply(train=False, mutable=['intermediates'])
  assert set(kept) == {'intermediates'}
  wanted, _ = apply(train=False, mutable=['potentials'])
  np.testing.assert_array_equal(spikes, wanted)

  def programs():
    for train, mutable in ((False, False), (True, ['batch_stats'])):
      run = functools.partial(apply, train=train, mutable=mutable)
      yield jax.jit(run).lower().as_text()

  ours = list(programs())
  monkeypatch.setattr(potentials, 'keep', lambda *args, **kwargs: None)
  assert ours == list(programs())


@pytest.mark.parametrize('fold_with', [None, fold_all])
def test_scanned_blocks_have_the_potentials_of_each(fold_with):
  model, variables = common.small(
    'preact_resnet', depth=10, num_steps=2, unroll=False
  )
  if fold_with is not None:
    variables = strip(fold_with(variables))
  x = common.images(2)
  logits, layers = jax.jit(functools.partial(recorded, model, potentials=True))(
    variables, x
  )
  plain, _ = jax.jit(functools.partial(recorded, model))(variables, x)
  np.testing.assert_array_equal(logits, plain)
  lif = layers['stage1_blocks/lif1']
  assert lif['before'].shape == lif['spikes'].shape == (1, 2, 2, 8, 8, 4)
  for layer in layers.values():
    level, of = layer['v_th'], layer.get('after')
    if fold_with is not None:
      level = layer['polarity'] * layer['threshold']
      of = layer['polarity'] * layer['before']
    margin = np.where(layer['spikes'], 1, -1) * np.asarray(of - level)
    assert margin.min() >= (0 if fold_with else -1e-6)


def test_spikes_of_other_currents_are_refused():
  with pytest.raises(
    InputError, match=r'of the currents, \(3, 2\), got \(3,\)'
  ):
    potentials_of(jnp.zeros((3, 2)), jnp.zeros(3))
  with pytest.raises(InputError, match='soft reset subtracts v_th'):
    potentials_of(jnp.zeros(3), jnp.zeros(3), reset='soft')


def test_potentials_have_the_bits_of_the_scan():
  """With a tau whose product rounds."""
  currents = jnp.asarray(np.random.default_rng(0).normal(0, 1, (6, 512)), 'f4')
  seen = []

  def fire(state, u):
    del state
    return u, jnp.where(u > 0.3, 1.0, 0.0)

  for t in range(1, 7):
    spikes, u = lif_scan(currents[:t], tau=0.3, fire=fire, state=currents[0])
    seen.append(u)
  found = jax.jit(functools.partial(potentials_of, tau=0.3))(currents, spikes)
  np.testing.assert_array_equal(found, np.stack(seen))
