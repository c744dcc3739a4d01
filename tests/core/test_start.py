"""The potential from which neurons start: given, or a running mean."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from small_layers import lif_layer

from mpbn_jax import LIF, InputError, fold, strip
from mpbn_jax.neuron import RESETS, lif_scan, lif_scan_from
from mpbn_jax.norm import names_at


def _reference(currents, start, *, reset):
  """Returns (spikes, u_res[T]) of plain neurons, and the mean of MP-Init."""
  u_res, spikes = np.full(currents.shape[1:], start, np.float64), []
  for current in np.float64(currents):
    u = 0.25 * u_res + current
    fired = (u > 0.5).astype(np.float64)
    u_res = u * (1 - fired) if reset == 'hard' else u - 0.5 * fired
    spikes.append(fired)
  total = count = 0
  for place in np.ndindex(u_res.shape):
    if any(s[place] for s in spikes):
      total, count = total + u_res[place], count + 1
  return np.stack(spikes), u_res, total / max(count, 1)


@pytest.mark.parametrize('reset', RESETS)
def test_scan_from_a_potential_agrees_with_the_reference(reset):
  currents = np.random.default_rng(0).normal(0.3, 1, (4, 5, 3))
  currents = currents.astype(np.float32)
  (u_res, _), spikes = lif_scan_from(
    (0.9, None), jnp.asarray(currents), reset=reset
  )
  expected, last, _ = _reference(currents, 0.9, reset=reset)
  np.testing.assert_array_equal(spikes, expected)
  np.testing.assert_allclose(u_res, last, rtol=1e-5, atol=1e-6)


def test_two_scans_equal_one_of_all_steps():
  currents = jax.random.normal(jax.random.key(0), (5, 4, 3)) + 0.3
  whole, _ = lif_scan(currents)
  carry, first = lif_scan_from((0.0, None), currents[:2])
  _, second = lif_scan_from(carry, currents[2:])
  np.testing.assert_array_equal(jnp.concatenate([first, second]), whole)


def test_potential_of_another_shape_is_refused():
  message = r'broadcasts to one step, \(3,\), got shape \(2, 3\)'
  with pytest.raises(InputError, match=message):
    lif_scan_from((jnp.zeros((2, 3)), None), jnp.zeros((4, 3)))


@pytest.mark.parametrize('reset', RESETS)
def test_start_is_the_running_mean_of_neurons_that_fired(reset):
  layer, variables, currents = lif_layer('none', start='mean', reset=reset)
  by_time, start = np.moveaxis(np.asarray(currents), 1, 0), 0.0
  train = jax.jit(
    functools.partial(layer.apply, train=True, mutable=['batch_stats'])
  )
  for _ in range(3):
    spikes, variables = train(variables, currents)
    expected, _, mean = _reference(by_time, start, reset=reset)
    np.testing.assert_array_equal(jnp.moveaxis(spikes, 1, 0), expected)
    start = 0.9 * start + 0.1 * mean
    found = variables['batch_stats']['start']
    np.testing.assert_allclose(found, start, rtol=1e-5)


def test_start_decays_where_no_neuron_fires():
  layer, variables, currents = lif_layer('none', start='mean')
  variables['batch_stats']['start'] = jnp.float32(0.3)
  _, new = layer.apply(
    variables, -jnp.ones_like(currents), train=True, mutable=['batch_stats']
  )
  np.testing.assert_allclose(new['batch_stats']['start'], 0.27, rtol=1e-6)


@pytest.mark.parametrize('norm', names_at('membrane')[1:])
def test_folded_neurons_start_where_the_others_do(norm):
  layer, variables, currents = lif_layer(norm, start='mean')
  from_zero = layer.apply(variables, currents, train=False)
  variables['batch_stats']['start'] = jnp.float32(0.7)
  spikes = layer.apply(variables, currents, train=False)
  folded = strip(fold(variables))
  np.testing.assert_array_equal(
    layer.apply(folded, currents, train=False), spikes
  )
  assert (spikes != from_zero).any()


def test_start_that_would_not_be_read_is_refused():
  _, variables, currents = lif_layer('none', start='mean')
  message = "expected no batch_stats/start with start='zero'"
  with pytest.raises(InputError, match=message):
    LIF().apply(variables, currents, train=False)


def test_missing_start_is_refused():
  layer = LIF(start='mean')
  with pytest.raises(InputError, match='expected batch_stats/start, the runn'):
    layer.apply({}, jnp.zeros((1, 2, 3)), train=False)


def test_unknown_start_is_refused():
  with pytest.raises(InputError, match="unknown start 'last'.*mean, zero"):
    LIF(start='last')


def test_neurons_that_start_at_zero_are_those_without_a_start():
  layer, variables, currents = lif_layer('none', start='mean')
  spikes = jnp.moveaxis(layer.apply(variables, currents, train=False), 1, 0)
  expected = reference.lif(jnp.moveaxis(currents, 1, 0), tau=0.25, v_th=0.5)
  np.testing.assert_array_equal(spikes, expected)
