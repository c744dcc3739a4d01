"""Initial kernels, and what they keep from layer to layer."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpbn_jax import SURROGATES, InputError, build_model
from mpbn_jax.initializers import KERNEL_INITS, Scaled, get_kernel_init
from mpbn_jax.layers import ConvNorm, Factory
from mpbn_jax.models import blocks, settings_of
from mpbn_jax.spike_init import (
  FIRING_RATE,
  rate_of_images,
  steady_state,
  surrogate_parameter,
)

NEURON = {'tau': 0.5, 'v_th': 0.8}


def _simulated(sigma, *, steps, static, tau, v_th):
  """Returns (potentials, spikes) of 100,000 neurons, [steps, N]."""
  rng = np.random.default_rng(0)
  u_res, potentials = np.zeros(100_000), []
  current = rng.normal(0, sigma, u_res.shape)
  for _ in range(steps):
    if not static:
      current = rng.normal(0, sigma, u_res.shape)
    u = tau * u_res + current
    u_res = np.where(u > v_th, 0, u)
    potentials.append(u)
  potentials = np.array(potentials)
  return potentials, potentials > v_th


@pytest.mark.parametrize('fan', ['in', 'out'])
@pytest.mark.parametrize('shape', [(3, 3, 4, 8), (7, 7, 3, 5), (12, 10)])
def test_he_kernels_are_those_of_flax(fan, shape):
  theirs = nn.initializers.variance_scaling(2.0, f'fan_{fan}', 'normal')
  key = jax.random.key(3)
  ours = get_kernel_init(f'fan_{fan}', **NEURON)(key, shape)
  np.testing.assert_array_equal(ours, theirs(key, shape))


@pytest.mark.parametrize('tau', [0.0, 0.25, 0.5])
def test_steady_state_agrees_with_a_simulation(tau):
  state = steady_state(0.5, tau=tau, v_th=0.5)
  u, fired = _simulated(0.5, steps=12, static=False, tau=tau, v_th=0.5)
  # The potential is not quite normal.
  np.testing.assert_allclose(state.rate, fired[-1].mean(), rtol=0.03)
  np.testing.assert_allclose(state.deviation, u[-1].std(), rtol=0.02)
  np.testing.assert_allclose(state.mean, u[-1].mean(), atol=0.01)


def test_rate_of_a_static_image_agrees_with_a_simulation():
  _, fired = _simulated(0.4, steps=400, static=True, **NEURON)
  expected = fired[200:].mean()
  np.testing.assert_allclose(rate_of_images(0.4, **NEURON), expected, rtol=0.02)


def test_currents_keep_their_variance_with_micheli():
  init = get_kernel_init('micheli', **NEURON)
  spikes = np.random.default_rng(0).normal(size=(2000, 400)) > NEURON['v_th']
  kernel = init(jax.random.key(0), (400, 200))
  currents = jnp.asarray(spikes, jnp.float32) @ kernel
  np.testing.assert_allclose(currents.var(), 1, rtol=0.05)


def test_spike_init_keeps_the_firing_rate():
  init = get_kernel_init('spike_init', **NEURON)
  rng = np.random.default_rng(0)
  spikes = rng.random((30, 400)) < FIRING_RATE
  for layer in range(3):
    kernel = np.asarray(init(jax.random.key(layer), (400, 400)))
    currents, u_res, out = spikes @ kernel, np.zeros(400), []
    for current in currents:
      u = NEURON['tau'] * u_res + current
      out.append(u > NEURON['v_th'])
      u_res = np.where(out[-1], 0, u)
    spikes = np.array(out)
    assert 0.06 < spikes[5:].mean() < 0.14


def test_spike_init_starts_from_images_with_the_same_rate():
  init = get_kernel_init('spike_init', **NEURON).of_images
  sigma = math.sqrt(init.variance)
  np.testing.assert_allclose(
    rate_of_images(sigma, **NEURON), FIRING_RATE, rtol=1e-6
  )


@pytest.mark.parametrize('name', SURROGATES)
def test_spike_init_parameter_keeps_the_size_of_gradients(name):
  neuron = {'tau': 0.25, 'v_th': 0.5}
  parameter = surrogate_parameter(name, **neuron)
  sigma2 = get_kernel_init('spike_init', **neuron).variance
  state = steady_state(math.sqrt(sigma2 * FIRING_RATE), **neuron)
  u = np.random.default_rng(0).normal(state.mean, state.deviation, 400_000)
  slope = SURROGATES[name].derivative(jnp.asarray(u - 0.5), parameter)
  expected = (1 - (1 - FIRING_RATE) * 0.25**2) / sigma2
  np.testing.assert_allclose((slope**2).mean(), expected, rtol=0.02)


def test_surrogate_whose_gradients_cannot_keep_their_size_is_refused():
  with pytest.raises(InputError, match="no slope of the surrogate 'tanh' keep"):
    surrogate_parameter('tanh', tau=0.5, v_th=1.0)


def _kernels(**settings):
  settings = {'width': 4, 'conv_norm': 'none', 'unroll': False, **settings}
  model = build_model(settings)
  x = jnp.zeros((1, 16, 16, 3))
  return model.init(jax.random.key(0), x, train=False)['params']


@pytest.mark.parametrize('name', KERNEL_INITS)
def test_network_has_the_kernels_of_its_initializer(name):
  params = _kernels(name='spiking_cnn', kernel_init=name)
  init = get_kernel_init(name, tau=0.25, v_th=0.5)
  for layer, expected in (
    ('conv1', init.of_images or init),
    ('conv4', init),
  ):
    kernel = params[layer]['kernel']
    fan = (
      math.prod(kernel.shape[:2])
      * (kernel.shape[3 if expected.fan == 'out' else 2])
    )
    deviation = math.sqrt(expected.variance / fan)
    np.testing.assert_allclose(kernel.std(), deviation, rtol=0.2)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('network', 'last'),
  [('resnet20', 'stage1_block1_conv2'), ('preact_resnet', 'stage1_blocks')],
)
def test_last_scale_without_norms_is_that_of_the_last_kernel(network, last):
  settings = {'name': network, 'membrane_norm': 'affine'}
  plain = _kernels(**settings)
  damped = _kernels(**settings, last_scale=0.25)
  ours, theirs = (
    tree[last].get('conv2', tree[last])['kernel'] for tree in (damped, plain)
  )
  np.testing.assert_array_equal(ours, 0.25 * theirs)


def test_last_scale_of_convolutions_without_an_initializer_is_refused():
  class Bare:
    def __init__(self, features, parent):
      del features, parent

  with pytest.raises(InputError, match='got 0.5 for convolutions without a k'):
    blocks.kernel_scale(Bare, 0.5)


def test_network_with_an_initializer_of_flax_has_settings():
  model = build_model({'name': 'spiking_cnn'})
  flax = nn.initializers.lecun_normal()
  model = model.clone(conv=Factory(ConvNorm, kernel_init=flax))
  assert settings_of(model)['kernel_init'] is None


def test_scaled_initializers_are_compared_by_content():
  init = get_kernel_init('fan_in', **NEURON)
  assert Scaled(init, 0.5) == Scaled(init, 0.5)
