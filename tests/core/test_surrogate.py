"""Surrogate gradients: exact spikes, and the derivative of a primitive."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.test_util import check_grads
from registered import known

from mpbn_jax import SURROGATES, InputError, emit, spike

X = np.linspace(-1.7, 1.7, 241, dtype=np.float32)


@functools.partial(jax.jit, static_argnums=2)
def _gradient(n, v_th, surrogate):
  return jax.grad(lambda n: spike(n, v_th, surrogate=surrogate).sum())(n)


@pytest.mark.parametrize('name', known('surrogates'))
def test_spike_is_the_strict_heaviside_step(name):
  n = jnp.array([0.5, np.nextafter(np.float32(0.5), np.float32(1)), -1, 2])
  np.testing.assert_array_equal(spike(n, surrogate=name), [0, 1, 0, 1])


@pytest.mark.parametrize('name', known('surrogates'))
def test_unit_of_v_th_gives_the_gradient_of_the_scaled_potential(name):
  # What the neuron does is what one with a threshold of 1 does with n / v_th.
  def total(n, v_th, unit):
    return spike(n, v_th, surrogate=name, unit=unit).sum()

  n = jnp.asarray(X[::7]) * 2 + 2
  of_n, of_v_th = jax.grad(total, (0, 1))(n, jnp.float32(2.0), 'v_th')
  scaled, _ = jax.grad(total, (0, 1))(n / 2, jnp.float32(1.0), 'one')
  np.testing.assert_allclose(of_n, scaled / 2, rtol=1e-5, atol=1e-7)
  # d(n / v_th) / d(v_th) = -n / v_th^2
  expected = -(scaled * n).sum() / 4
  np.testing.assert_allclose(of_v_th, expected, rtol=1e-4, atol=1e-5)


def test_unit_of_a_threshold_below_zero_stays_positive():
  slope = jax.grad(lambda n: spike(n, -0.3, unit='v_th').sum())
  np.testing.assert_allclose(slope(jnp.float32(-0.3)), 100, rtol=1e-5)


def test_unknown_unit_is_refused():
  with pytest.raises(InputError, match="unknown surrogate_unit 'tau'.*one, v"):
    spike(jnp.zeros(2), unit='tau')


@pytest.mark.parametrize('name', known('surrogates'))
@pytest.mark.parametrize('v_th', [0.5, -0.25])
def test_gradient_of_a_spike_is_the_reference_derivative(name, v_th):
  gradient = _gradient(X + v_th, v_th, name)
  expected = reference.SURROGATE_DERIVATIVES[name]((X + v_th) - v_th)
  # The ends of a window may fall on either side of a rounded n - v_th.
  inside = np.abs(np.abs(X) - 0.5) > 1e-6
  np.testing.assert_allclose(
    gradient[inside], expected[inside], rtol=1e-5, atol=1e-6
  )


@pytest.mark.parametrize('name', known('surrogates'))
def test_derivative_is_autodiff_of_the_primitive(name):
  surrogate = SURROGATES[name]
  for parameter in (surrogate.parameter, 0.8 * surrogate.parameter):
    primitive = jax.jit(jax.vmap(jax.grad(surrogate.primitive), (0, None)))
    smooth = np.abs(np.abs(X) - 0.5) > 0.01  # rect and tanh: off the ends
    if surrogate.meaning == 'width':
      smooth &= np.abs(np.abs(X) - parameter / 2) > 0.01
    np.testing.assert_allclose(
      jax.jit(surrogate.derivative)(X, parameter)[smooth],
      primitive(X, parameter)[smooth],
      rtol=1e-4,
      atol=1e-5,
    )


@pytest.mark.parametrize('name', known('surrogates'))
def test_check_grads_accepts_the_primitive_and_refuses_the_spike(name):
  parameter = SURROGATES[name].parameter
  points = jnp.array([-0.31, 0.12, 0.27])
  check_grads(
    lambda x: SURROGATES[name].primitive(x, parameter), (points,), 1, ['rev']
  )
  with pytest.raises(AssertionError):
    check_grads(lambda x: spike(x, 0.0, surrogate=name), (points,), 1, ['rev'])


def test_rect_window_of_equation_12_includes_both_ends():
  n = jnp.array([-1e-6, 0.0, 0.5, 1.0, 1 + 1e-6])
  gradient = _gradient(n, 0.5, 'rect')
  np.testing.assert_array_equal(gradient, [0, 1, 1, 1, 0])


def test_threshold_gets_the_opposite_gradient():
  n = jnp.array([0.2, 0.7, 3.0])
  gradient = jax.grad(
    lambda n, v: spike(n, v, surrogate='sigmoid').sum(), (0, 1)
  )
  to_n, to_v_th = jax.jit(gradient)(n, 0.5 * jnp.ones(3))
  np.testing.assert_array_equal(to_v_th, -to_n)


@pytest.mark.parametrize('name', known('surrogates'))
def test_far_potentials_have_finite_gradients(name):
  far = jnp.array([-jnp.inf, -3e38, 3e38, jnp.inf])
  gradient = _gradient(far, 0.5, name)
  assert np.isfinite(gradient).all()


def test_emit_fires_as_decided_and_not_as_the_distance_says():
  fired = jnp.array([True, False])
  np.testing.assert_array_equal(emit(fired, jnp.array([-1.0, 1.0])), [1, 0])


def test_unknown_surrogate_lists_the_known_ones():
  with pytest.raises(InputError, match="'tan': expected one of atan, "):
    spike(jnp.zeros(1), surrogate='tan')


def test_parameter_must_be_positive():
  with pytest.raises(InputError, match='the width of .rect. and must be pos'):
    spike(jnp.zeros(1), surrogate='rect', parameter=0.0)
