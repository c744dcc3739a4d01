"""Does every registered normalization compute what its reference computes?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from mpbn_jax import NORMS, InputError
from mpbn_jax.norm import PLACES, check_norm, moments

B, T, H, W, C = 5, 3, 4, 3, 6


def _variables(shape, seed=0):
  rng = np.random.default_rng(seed)
  params = {'scale': rng.normal(1, 0.5, shape), 'bias': rng.normal(0, 1, shape)}
  stats = {'mean': rng.normal(0, 1, shape), 'var': rng.uniform(0.1, 2, shape)}
  return jax.tree.map(np.float32, params), jax.tree.map(np.float32, stats)


def _input(seed=1):
  rng = np.random.default_rng(seed)
  return rng.normal(0.4, 1.3, (B, T, H, W, C)).astype(np.float32)


def _bn(params, stats, x, *, train):
  return reference.batch_norm(
    x, **params, **stats, train=train, momentum=0.1, eps=1e-5
  )


def _element(params, stats, x, *, train):
  # Statistics over the first axis alone: one BN over B of H * W * C channels.
  flat = jax.tree.map(np.ravel, {**params, **stats})
  y, mean, var = reference.batch_norm(
    x.reshape(len(x), -1),
    **flat,
    train=train,
    momentum=0.1,
    eps=1e-5,
  )
  return y.reshape(x.shape), mean.reshape(H, W, C), var.reshape(H, W, C)


# (reference, shape of the variables) of every registered norm. A membrane
# norm is called with the potential of one step.
REFERENCES = {
  'bn': (_bn, (C,)),
  'mpbn_channel': (_bn, (C,)),
  'mpbn_element': (_element, (H, W, C)),
}


def _case(name):
  function, shape = REFERENCES[name]
  x = _input() if NORMS[name].place == 'current' else _input()[:, 0]
  return function, *_variables(shape), x


def test_every_registered_norm_has_a_reference():
  assert set(REFERENCES) == set(NORMS)


@pytest.mark.parametrize('name', NORMS)
def test_entry_is_complete(name):
  norm = NORMS[name]
  assert norm.place in PLACES
  assert (norm.fold is None) == bool(norm.why_not)
  assert (norm.fires is not None) == (norm.place == 'membrane')


@pytest.mark.parametrize('name', NORMS)
def test_initial_variables_are_the_identity(name):
  params, stats = NORMS[name].init((H, W, C))
  assert params['scale'].shape == REFERENCES[name][1]
  for tree, leaf, value in (
    (params, 'scale', 1),
    (params, 'bias', 0),
    (stats, 'mean', 0),
    (stats, 'var', 1),
  ):
    assert (tree[leaf] == value).all()


@pytest.mark.parametrize('name', NORMS)
def test_training_agrees_with_the_reference(name):
  function, params, stats, x = _case(name)
  y, new = NORMS[name].train(params, stats, x, momentum=0.1, eps=1e-5)
  expected, mean, var = function(params, stats, x, train=True)
  # A mean of some hundred float32 values, and the square root of one.
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=2e-5)
  np.testing.assert_allclose(new['mean'], mean, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(new['var'], var, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', NORMS)
def test_evaluation_agrees_with_the_reference(name):
  function, params, stats, x = _case(name)
  y = NORMS[name].evaluate(params, stats, x, eps=1e-5)
  expected, _, _ = function(params, stats, x, train=False)
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', NORMS)
def test_gradients_agree_with_autodiff_of_a_plain_version(name):
  _, params, stats, x = _case(name)
  axes = tuple(range(x.ndim - 1)) if len(REFERENCES[name][1]) == 1 else (0,)
  cotangent = np.random.default_rng(2).normal(0, 1, x.shape)

  def ours(params, x):
    y, _ = NORMS[name].train(params, stats, x, momentum=0.1, eps=1e-5)
    return (y * cotangent).sum()

  def plain(params, x):
    deviation = jnp.sqrt(jnp.var(x, axes) + 1e-5)
    y = (x - jnp.mean(x, axes)) / deviation * params['scale'] + params['bias']
    return (y * cotangent).sum()

  got = jax.grad(ours, (0, 1))(params, x)
  expected = jax.grad(plain, (0, 1))(params, x)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    got,
    expected,
  )


@pytest.mark.parametrize('name', NORMS)
def test_running_statistics_pass_no_gradient(name):
  _, params, stats, x = _case(name)

  def run_mean(x):
    _, new = NORMS[name].train(params, stats, x, momentum=0.1, eps=1e-5)
    return new['mean'].sum() + new['var'].sum()

  assert (jax.grad(run_mean)(x) == 0).all()


@pytest.mark.parametrize('name', NORMS)
def test_statistics_are_float32_whatever_the_input_is(name):
  _, params, stats, x = _case(name)
  y, new = NORMS[name].train(
    params, stats, jnp.asarray(x, jnp.bfloat16), momentum=0.1, eps=1e-5
  )
  assert y.dtype == jnp.bfloat16
  assert new['mean'].dtype == new['var'].dtype == jnp.float32


@pytest.mark.parametrize('name', NORMS)
def test_one_value_per_statistic_is_refused(name):
  shape = (1, 1, 1, C) if NORMS[name].place == 'membrane' else (1, 1, 1, 1, C)
  params, stats = NORMS[name].init(shape[1:])
  with pytest.raises(InputError, match='at least 2 values per statistic, got'):
    NORMS[name].train(params, stats, jnp.zeros(shape), momentum=0.1, eps=1e-5)


def test_copies_count_in_the_unbiased_variance_only():
  params, stats = _variables((C,))
  x = _input()[:, :1]
  repeated = np.repeat(x, T, axis=1)
  once, new_once = NORMS['bn'].train(
    params, stats, x, momentum=0.1, eps=1e-5, copies=T
  )
  all_, new_all = NORMS['bn'].train(
    params, stats, repeated, momentum=0.1, eps=1e-5
  )
  np.testing.assert_allclose(once, all_[:, :1], rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(new_once['var'], new_all['var'], rtol=1e-5)


def test_variance_of_a_constant_is_not_negative():
  _, var = moments(jnp.full((1000, 3), 0.1), axes=(0,))
  assert (var >= 0).all()


@pytest.mark.parametrize('name', NORMS)
def test_unknown_norm_lists_those_of_its_place(name):
  place = NORMS[name].place
  with pytest.raises(InputError, match=f'normalization of the {place}.*{name}'):
    check_norm('mpbm', place=place)


def test_norm_of_another_place_is_refused():
  with pytest.raises(InputError, match='none'):
    check_norm('bn', place='membrane')
