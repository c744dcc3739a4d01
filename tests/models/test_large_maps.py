"""Copies of large maps, which training on a CPU does without."""

import common
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mpbn_jax import memory
from mpbn_jax.models.resnet import SpikingResNet
from mpbn_jax.norm.base import batch_norm_gradients
from mpbn_jax.ops import order, sums
from mpbn_jax.ops.convolution import convolution

PADDING = ((1, 1), (1, 1))


@pytest.fixture(params=[1, 2**40], ids=['large', 'small'])
def largeness(request, monkeypatch):
  monkeypatch.setattr(order, '_LARGE', request.param)
  return request.param


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('shape', [(9,), (3, 1, 3), (1, 9)])
def test_what_is_computed_once_keeps_its_bits(dtype, shape):
  x = jnp.asarray([-0.0, 0, 1, 3.5, jnp.nan, jnp.inf, -jnp.inf, 7, 9], dtype)
  x = x.reshape(shape)
  for other in (0.0, -0.0, jnp.nan, 2.0):
    found = jax.jit(lambda x, y: order.once(x, y))(x, jnp.full((2, 3), other))
    assert found.dtype == x.dtype
    assert np.asarray(found).tobytes() == np.asarray(x).tobytes()


def test_on_other_platforms_nothing_is_large(monkeypatch):
  monkeypatch.setattr(order, '_LARGE', 1)
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert not order.is_large(jnp.ones(3))


@pytest.mark.parametrize('shape', [(4, 3, 2, 2, 32), (4, 2, 2, 32), (6, 5)])
def test_sums_by_time_steps_are_sums(shape, largeness):
  rng = np.random.default_rng(0)
  g, x = rng.normal(size=(2, *shape))
  shift = rng.normal(size=shape[-1])
  axes = tuple(range(len(shape) - 1))
  found = sums.of_products(*map(jnp.float32, (g, x, shift)), axes)
  np.testing.assert_allclose(found, (g * (x + shift)).sum(axes), rtol=1e-4)


def test_gradients_of_a_norm_are_those_that_jax_derives(largeness):
  rng = np.random.default_rng(0)
  x, cotangent = map(jnp.float32, rng.normal(size=(2, 4, 3, 2, 2, 32)))
  scale, axes, eps = jnp.float32(rng.normal(size=32)), (0, 1, 2, 3), 1e-5

  def norm(x, scale):
    mean, var = x.mean(axes), x.var(axes)
    return scale * (x - mean) / jnp.sqrt(var + eps)

  _, pull = jax.vjp(norm, x, scale)
  moments = x.mean(axes), x.var(axes)
  dx, dparams = batch_norm_gradients(
    cotangent, x, moments, scale=scale, eps=jnp.float32(eps), axes=axes
  )
  for found, expected in zip(
    (dx, dparams['scale']), pull(cotangent), strict=True
  ):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_gradients_of_a_network_do_not_depend_on_what_is_large(monkeypatch):
  found = []
  for large in (1, 2**40):
    monkeypatch.setattr(order, '_LARGE', large)
    loss, params = training_loss()
    found.append(jax.jit(jax.grad(loss, has_aux=True))(params)[0])
  largest = max(np.abs(a).max() for a in jax.tree.leaves(found[0]))
  for a, b in zip(*map(jax.tree.leaves, found), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * largest)


def test_a_step_plans_less_memory_where_maps_are_large(monkeypatch):
  monkeypatch.setattr(jax, 'device_count', lambda: 1)

  def temporary(large):
    monkeypatch.setattr(order, '_LARGE', large)
    loss, params = training_loss(width=32)
    step = jax.jit(
      jax.grad(loss, has_aux=True), compiler_options=memory.compiler_options()
    )
    plan = step.lower(params).compile().memory_analysis()
    return plan.temp_size_in_bytes

  # 0.82; 0.91 without `order.once`, 0.95 without sums by time steps.
  assert temporary(8 * 4 * 32 * 32 * 32) < 0.87 * temporary(2**40)


def training_loss(width=8):
  model = SpikingResNet(width=width, num_steps=4, stage_sizes=(1,), remat=True)
  x = np.random.default_rng(0).normal(size=(8, 32, 32, 3))
  return common.training_loss(model, jnp.asarray(x, jnp.float32))


def test_images_on_several_devices_are_not_gathered(monkeypatch):
  monkeypatch.setattr(order, '_LARGE', 1)
  mesh = jax.make_mesh(
    (4,), ('data',), axis_types=(AxisType.Auto,), devices=jax.devices()[:4]
  )
  images, shared = (
    NamedSharding(mesh, PartitionSpec(*axes)) for axes in (['data'], [])
  )

  def gradients(x, kernel):
    def loss(x, kernel):
      return jnp.sin(convolution(x, kernel, padding=PADDING)).sum()

    return jax.grad(loss, (0, 1))(x, kernel)

  step = jax.jit(
    gradients,
    in_shardings=(images, shared),
    out_shardings=(images, shared),
  )
  x, kernel = jnp.ones((8, 8, 8, 4)), jnp.ones((3, 3, 4, 4))
  text = step.lower(x, kernel).compile().as_text()
  assert 'dynamic-update-slice' in text
  assert 'all-reduce' in text  # of the kernel's gradient
  for gathers in ('all-gather', 'all-to-all', 'collective-permute'):
    assert gathers not in text
