"""The recurrence: charge, fire and reset of the equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from mpbn_jax import InputError, lif_scan
from mpbn_jax.neuron import RESETS, fire_at


def _currents(steps=6, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(0.3, 0.5, (steps, 4, 5)).astype(np.float32)


@pytest.mark.parametrize('reset', RESETS)
@pytest.mark.parametrize('unroll', [1, True])
def test_scan_fires_the_spikes_of_the_reference(reset, unroll):
  currents = _currents()
  spikes, _ = lif_scan(
    jnp.asarray(currents), tau=0.25, reset=reset, v_th=0.5, unroll=unroll
  )
  expected = reference.lif(currents, tau=0.25, v_th=0.5, reset=reset)
  np.testing.assert_array_equal(spikes, expected)


def test_hard_and_soft_reset_are_different_networks():
  currents = jnp.asarray(_currents())
  hard, _ = lif_scan(currents, reset='hard', v_th=0.5)
  soft, _ = lif_scan(currents, reset='soft', v_th=0.5)
  assert (hard != soft).any()


def test_tau_zero_has_no_memory():
  currents = _currents()
  together, _ = lif_scan(jnp.asarray(currents), tau=0.0)
  for step in range(len(currents)):
    alone, _ = lif_scan(jnp.asarray(currents[step : step + 1]), tau=0.0)
    np.testing.assert_array_equal(together[step], alone[0])


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(4)))
def test_permuting_the_batch_permutes_the_spikes(order):
  currents = _currents()
  spikes, _ = lif_scan(jnp.asarray(currents))
  permuted, _ = lif_scan(jnp.asarray(currents[:, order]))
  np.testing.assert_array_equal(permuted, spikes[:, jnp.array(order)])


def test_gradient_flows_through_the_spike_in_the_reset_unless_detached():
  currents = jnp.array([[0.6], [0.4]])

  def last_potential_moves(detach_reset):
    def loss(currents):
      spikes, _ = lif_scan(
        currents, tau=0.5, detach_reset=detach_reset, fire=fire_at(0.5)
      )
      return spikes[1].sum()

    return jax.grad(loss)(currents)[0, 0]

  # u1 = 0.6 fires: d u_res / d u1 = (1 - s) - u1 * s' = 0 - 0.6, or 0.
  np.testing.assert_allclose(last_potential_moves(False), 0.5 * -0.6)
  assert last_potential_moves(True) == 0


def test_state_of_fire_is_carried_and_returned():
  def fire(count, u):
    return count + 1, (u > 0.5).astype(u.dtype)

  _, count = lif_scan(jnp.asarray(_currents()), fire=fire, state=0)
  assert count == 6


@pytest.mark.parametrize('tau', [-0.1, 1.0, 4.0])
def test_tau_outside_its_range_is_said_to_be_the_kept_fraction(tau):
  with pytest.raises(InputError, match=rf'kept fraction.*\[0, 1\), got {tau}'):
    lif_scan(jnp.zeros((2, 3)), tau=tau)


def test_unknown_reset_lists_the_known_ones():
  with pytest.raises(InputError, match="unknown reset 'none'.*hard, soft"):
    lif_scan(jnp.zeros((2, 3)), reset='none')


def test_soft_reset_of_another_fire_needs_v_th():
  with pytest.raises(InputError, match='soft reset subtracts v_th'):
    lif_scan(jnp.zeros((2, 3)), reset='soft', fire=fire_at(0.5))


def test_currents_without_a_step_are_refused():
  with pytest.raises(InputError, match=r'T >= 1, got shape \(0, 3\)'):
    lif_scan(jnp.zeros((0, 3)))


@pytest.mark.parametrize('tau', [jnp.float32(1.5), np.float32(-0.1)])
def test_tau_that_is_an_array_is_checked_too(tau):
  with pytest.raises(InputError, match=r'lie in \[0, 1\), got'):
    lif_scan(jnp.ones((2, 3)), tau=tau)


@pytest.mark.parametrize('dtype', ['int32', 'bool'])
def test_currents_that_are_not_floating_are_refused(dtype):
  with pytest.raises(TypeError, match=f'floating dtype, got {dtype}'):
    lif_scan(jnp.ones((2, 3), dtype))
