"""Functions of layers as they run: the same values, blocks, repeated layers."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpbn_jax import LIF, InputError
from mpbn_jax.analysis.blocks import unstacked
from mpbn_jax.analysis.watching import shapes_of, watched
from mpbn_jax.evaluation import recorded


class Repeated(nn.Module):
  """One neuron layer that runs twice, on other currents."""

  @nn.compact
  def __call__(self, x, *, train):
    lif = LIF(name='lif')
    x = lif(nn.Dense(5, name='d1')(x), train=train)
    x = lif(nn.Dense(5, name='d2')(x), train=train)
    return nn.Dense(2, name='head')(x).mean(1)


class Block(nn.Module):
  @nn.compact
  def __call__(self, x, _=None):
    return LIF(name='lif')(nn.Dense(4, name='d')(x), train=False), None


class Blocks(nn.Module):
  """Three blocks that are one in the program."""

  axes: tuple = (('intermediates', 0), ('potentials', 0))

  @nn.compact
  def __call__(self, x, *, train):
    del train
    scan = nn.scan(
      Block,
      variable_axes={'params': 0, **dict(self.axes)},
      split_rngs={'params': True},
      length=3,
    )
    x, _ = scan(name='blocks')(x, None)
    return nn.Dense(2, name='head')(x).mean(1)


def _network(model):
  x = 3 * jax.random.normal(jax.random.key(1), (6, 2, 4))
  return model.init(jax.random.key(0), x, train=False), x


@pytest.mark.parametrize(
  ('model', 'given'),
  [
    (Repeated(), {'lif': np.float32(1), 'lif(2)': np.float32(2)}),
    (Blocks(), {'blocks/lif': np.float32([1, 2, 3])}),
  ],
  ids=['repeated', 'blocks'],
)
def test_a_function_gets_what_is_recorded_and_what_is_given(model, given):
  variables, x = _network(model)

  def function(layer, factor):
    assert set(layer) == {'spikes', 'before', 'v_th'}
    return {
      'spikes': layer['spikes'].sum(),
      'potential': factor * layer['before'].sum((0, 2)),
    }

  run = jax.jit(functools.partial(watched, model, function=function))
  logits, found = run(variables, x, given=given)
  expected, layers = recorded(model, variables, x, potentials=True)
  np.testing.assert_allclose(logits, expected, atol=1e-6)
  assert found.keys() == layers.keys() == given.keys()
  for name, layer in layers.items():
    spikes, u = unstacked(layer, 'spikes'), unstacked(layer, 'before')
    assert 0 < spikes.mean() < 1
    np.testing.assert_array_equal(
      found[name]['spikes'].reshape(-1), spikes.sum((1, 2, 3))
    )
    factors = given[name].reshape(-1, 1)
    np.testing.assert_allclose(
      found[name]['potential'].reshape(u.shape[0], -1),
      factors * u.sum((1, 3)),
      rtol=1e-4,
      atol=1e-4,
    )


def test_results_of_any_sign_change_nothing():
  model = Repeated()
  variables, x = _network(model)
  expected = model.apply(variables, x, train=False)
  for value in (-1e30, jnp.nan, -jnp.inf, jnp.inf):
    logits, _ = watched(
      model, variables, x, lambda *_, v=value: jnp.float32(v), given={}
    )
    np.testing.assert_array_equal(logits, expected)


def test_blocks_without_an_axis_for_potentials_are_refused():
  model = Blocks(axes=(('intermediates', 0),))
  variables, x = _network(model)
  with pytest.raises(
    InputError, match="potentials of 'blocks/lif', got none .*'potentials': 0"
  ):
    shapes_of(model, variables, x)


def test_blocks_that_are_stacked_along_another_axis_are_refused():
  model = Blocks(axes=(('intermediates', 0), ('potentials', 1)))
  variables, x = _network(model)
  with pytest.raises(
    InputError, match="of 'blocks/lif' stacked along their first axis"
  ):
    shapes_of(model, variables, x)
