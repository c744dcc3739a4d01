"""The recurrence's own backward pass, next to the one that JAX derives."""

import dataclasses
import functools

import common
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpbn_jax import LIF, NORMS, SURROGATES
from mpbn_jax.neuron import RESETS
from mpbn_jax.norm import BatchNorm, names_at
from mpbn_jax.ops import recurrence

B, T, SIDE, C = 5, 4, 3, 3
LEARNED = {'learn_tau': True, 'learn_v_th': True}


def _currents(seed=0):
  rng = np.random.default_rng(seed)
  x = rng.normal(0.3, 1, (B, T, SIDE, SIDE, C))
  return jnp.asarray(x, jnp.float32)


def _results(settings, *, autodiff):
  """Returns (gradients, spikes and new statistics) of a layer."""
  layer, x = LIF(**settings, autodiff=autodiff), _currents()
  variables = common.random_norms(layer.init(jax.random.key(0), x, train=False))
  if layer.start == 'mean':
    variables['batch_stats']['start'] = jnp.float32(0.4)
  weights = _currents(seed=1)

  @jax.jit
  @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
  def run(params, x):
    spikes, new = layer.apply(
      {**variables, 'params': params}, x, train=True, mutable=['batch_stats']
    )
    return (spikes * weights).sum(), (spikes, new)

  (_, outputs), gradients = run(variables.get('params', {}), x)
  return gradients, outputs


def _check(settings):
  gradients, outputs = _results(settings, autodiff=False)
  expected, same = _results(settings, autodiff=True)
  (spikes, stats), (same_spikes, same_stats) = outputs, same
  np.testing.assert_array_equal(spikes, same_spikes)
  # Only on CPU do both programs sum in the same order.
  rtol = 0 if jax.default_backend() == 'cpu' else 2e-6
  close = functools.partial(np.testing.assert_allclose, rtol=rtol)
  jax.tree.map(close, stats, same_stats)

  def check(path, ours, theirs):
    # A gradient of a parameter sums terms of both signs.
    scale = max(float(jnp.abs(theirs).max()), 1.0)
    error = float(jnp.abs(ours - theirs).max())
    assert error <= 1e-5 * scale, jax.tree_util.keystr(path)

  jax.tree_util.tree_map_with_path(check, gradients, expected)
  assert all((leaf != 0).any() for leaf in jax.tree.leaves(expected))


@pytest.mark.parametrize('detach_reset', [False, True])
@pytest.mark.parametrize('reset', RESETS)
@pytest.mark.parametrize('norm', names_at('membrane'))
def test_gradients_are_those_that_jax_derives(norm, reset, detach_reset):
  _check(
    {'norm': norm, 'reset': reset, 'detach_reset': detach_reset, **LEARNED}
  )


@pytest.mark.parametrize('surrogate', SURROGATES)
def test_gradients_of_every_surrogate_are_those_that_jax_derives(surrogate):
  _check(
    {'norm': 'mpbn_channel', 'surrogate': surrogate, 'surrogate_parameter': 1.7}
  )


@pytest.mark.parametrize('norm', ['none', 'mpbn_channel'])
def test_gradients_from_a_start_are_those_that_jax_derives(norm):
  _check({'norm': norm, 'start': 'mean', **LEARNED})


@pytest.mark.parametrize('norm', ['none', 'mpbn_channel'])
def test_gradients_in_units_of_v_th_are_those_that_jax_derives(norm):
  _check({'norm': norm, 'surrogate_unit': 'v_th', 'v_th': 0.8, **LEARNED})


@pytest.mark.parametrize('norm', names_at('membrane'))
def test_gradients_in_a_loop_are_those_that_jax_derives(norm):
  _check({'norm': norm, 'unroll': False})


def _stored(autodiff, norm):
  """Returns how many values as large as all currents the forward pass keeps."""
  layer, x = LIF(norm=norm, autodiff=autodiff), _currents()
  variables = layer.init(jax.random.key(0), x, train=False)

  def run(params, x):
    spikes, _ = layer.apply(
      {**variables, 'params': params}, x, train=True, mutable=['batch_stats']
    )
    return spikes

  _, pull = jax.vjp(run, variables.get('params', {}), x)
  sizes = [leaf.size for leaf in jax.tree.leaves(pull)]
  return sum(size for size in sizes if size >= x.size // T) / x.size


@pytest.mark.parametrize('norm', names_at('membrane'))
def test_potentials_and_spikes_are_all_that_is_stored(norm):
  assert _stored(False, norm) == 2 < _stored(True, norm)


@pytest.mark.usefixtures('registries')
def test_norm_with_another_training_is_differentiated_by_jax(monkeypatch):
  class Doubled(BatchNorm):
    def __call__(self, params, stats, u, **options):
      return super().__call__(params, stats, 2 * u, **options)

  NORMS['doubled'] = dataclasses.replace(NORMS['mpbn_channel'], train=Doubled())
  monkeypatch.setattr(recurrence, 'lif_scan', None)
  gradients, _ = _results({'norm': 'doubled'}, autodiff=False)
  assert (gradients[1] != 0).any()


@pytest.mark.usefixtures('registries')
def test_surrogate_that_replaces_another_is_the_one_that_is_used():
  settings = {'norm': 'mpbn_channel', 'surrogate': 'own'}
  SURROGATES['own'] = SURROGATES['atan']
  (_, before), _ = _results(settings, autodiff=False)
  SURROGATES['own'] = SURROGATES['tanh']
  (_, after), _ = _results(settings, autodiff=False)
  assert (before != after).any()
  _check(settings)
