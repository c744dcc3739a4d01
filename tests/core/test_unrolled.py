"""Unrolled loops over time steps, next to `jax.lax.scan`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mpbn_jax import LIF, fold, strip
from mpbn_jax.norm import names_at
from mpbn_jax.ops import recurrence, unrolled

# Below and above the steps at which a carry is computed once, and results join.
STEPS = [1, 4, 5, 9, 17]
SHAPE = (3, 4, 4, 2)


@pytest.fixture(autouse=True)
def no_step_is_too_small(monkeypatch):
  monkeypatch.setattr(unrolled, '_LEAST', 1)
  monkeypatch.setattr(recurrence, '_LEAST_UNROLLED', 0)


def _currents(steps, *, batch=SHAPE[0]):
  rng = np.random.default_rng(steps)
  x = rng.normal(0.3, 1, (batch, steps, *SHAPE[1:]))
  return jnp.asarray(x, jnp.float32)


def _same(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('steps', [0, *STEPS])
@pytest.mark.parametrize('rank', [0, 1, 4])
def test_unrolled_loop_returns_what_scan_does(steps, rank):
  x = _currents(max(steps, 1)).swapaxes(0, 1)[:steps]
  x = x[(slice(None),) + (slice(None),) * rank + (0,) * (4 - rank)]

  def step(carry, current):
    u, count = carry
    u = 0.5 * u + current
    spikes = (u > 0.5).astype(u.dtype)
    return (u * (1 - spikes), count + 1), {'spikes': spikes, 'u': u}

  start = jnp.zeros(x.shape[1:]), 0
  run = jax.jit(
    functools.partial(unrolled.scan, step), static_argnames='unroll'
  )
  for unroll in (True, 1, 2):
    expected = jax.lax.scan(step, start, x, unroll=1)
    _same(run(start, x, unroll=unroll), expected)


@pytest.mark.parametrize('reverse', [False, True])
@pytest.mark.parametrize('in_groups', [False, True])
@pytest.mark.parametrize('steps', STEPS)
def test_results_are_joined_in_the_order_of_time(steps, in_groups, reverse):
  x = _currents(steps).swapaxes(0, 1)

  @jax.jit
  def run(x):
    last, results = unrolled.run(
      lambda u, x: (x, x), x[0], x, reverse=reverse, computed_once=True
    )
    return last, unrolled.join(results, in_groups=in_groups)

  last, joined = run(x)
  np.testing.assert_array_equal(joined, x)
  np.testing.assert_array_equal(last, x[0 if reverse else -1])


@pytest.mark.parametrize('norm', ['none', 'mpbn_channel', 'folded'])
@pytest.mark.parametrize('steps', STEPS)
def test_neurons_are_the_same_unrolled_and_looped(steps, norm):
  x = _currents(steps)
  layer = LIF(norm='none' if norm == 'none' else 'mpbn_channel')
  variables = layer.init(jax.random.key(0), x, train=False)
  if norm == 'folded':
    variables = strip(fold(variables))

  def results(unroll):
    own = layer.clone(unroll=unroll)

    @jax.jit
    def run(x):
      def loss(x):
        spikes = own.apply(variables, x, train=False)
        return (spikes * jnp.cos(x)).sum(), spikes

      (_, spikes), gradient = jax.value_and_grad(loss, has_aux=True)(x)
      return own.apply(variables, x, train=False), spikes, gradient

    return run(x)

  alone, spikes, gradient = results(True)
  np.testing.assert_array_equal(alone, spikes)
  _, looped, expected = results(False)
  np.testing.assert_array_equal(spikes, looped)
  np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)
  assert 0 < spikes.mean() < 1


@pytest.mark.parametrize('norm', names_at('membrane'))
@pytest.mark.parametrize('steps', [9, 17])
def test_training_is_the_same_unrolled_and_looped(steps, norm):
  x = _currents(steps)

  def results(unroll):
    layer = LIF(norm=norm, unroll=unroll)
    variables = layer.init(jax.random.key(0), x, train=False)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def run(x):
      spikes, new = layer.apply(
        variables, x, train=True, mutable=['batch_stats']
      )
      return (spikes * jnp.cos(x)).sum(), (spikes, new)

    return run(x)

  gradient, outputs = results(True)
  expected, looped = results(False)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-6), outputs, looped
  )
  np.testing.assert_array_equal(outputs[0], looped[0])
  np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ('steps', 'least', 'loops'), [(9, 96, True), (9, 95, False), (8, 96, False)]
)
def test_training_loops_over_many_small_steps(steps, least, loops, monkeypatch):
  monkeypatch.setattr(recurrence, '_LEAST_UNROLLED', least)
  layer = LIF(norm='none')

  @jax.jit
  def gradient(x):
    def loss(x):
      return (layer.apply({}, x, train=True) * jnp.cos(x)).sum()

    return jax.grad(loss)(x)

  text = gradient.lower(_currents(steps)).as_text()
  assert text.count('stablehlo.while') == 2 * loops


def test_long_loops_do_not_compute_their_first_steps_again_and_again():
  def flops(steps):
    layer = LIF(norm='none')
    run = jax.jit(lambda x: layer.apply({}, x, train=False))
    cost = run.lower(_currents(steps)).compile().cost_analysis()
    return cost['flops'] / steps

  # 3.9 times as many; 39 times without carries that are computed once
  assert flops(64) < 8 * flops(4)


def test_images_on_several_devices_are_not_gathered():
  mesh = jax.make_mesh(
    (4,), ('data',), axis_types=(AxisType.Auto,), devices=jax.devices()[:4]
  )
  images = NamedSharding(mesh, PartitionSpec('data'))
  layer = LIF(norm='none')
  run = jax.jit(
    lambda x: layer.apply({}, x, train=False),
    in_shardings=images,
    out_shardings=images,
  )
  x = _currents(9, batch=8)
  text = run.lower(x).compile().as_text()
  assert 'dynamic-update-slice' in text
  for gathers in ('all-gather', 'all-to-all', 'collective-permute'):
    assert gathers not in text
  expected = layer.clone(unroll=False).apply({}, x, train=False)
  np.testing.assert_array_equal(run(x), expected)
