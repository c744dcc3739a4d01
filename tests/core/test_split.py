"""Products of float32 from products of TF32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mpbn_jax import InputError
from mpbn_jax.ops import convolution_plain, convolution_split, split
from mpbn_jax.ops.convolution import convolution

STATIC = ((1, 1), ((1, 1), (1, 1)))
SPLIT = 'TF32_TF32_F32_X3'
FLOATS = st.floats(-(2.0**99), 2.0**99, width=32).filter(
  lambda x: x == 0 or abs(x) > 2.0**-99
)


def tf32(a):
  """Rounds float32 to 11 bits, to nearest, ties to even, in NumPy."""
  bits = np.asarray(a, np.float32).view(np.uint32).astype(np.uint64)
  bits += 0xFFF + ((bits >> 13) & 1)
  return (bits & 0xFFFFE000).astype(np.uint32).view(np.float32)


@settings(deadline=None)  # a GPU takes seconds to compile
@given(arrays.arrays(np.float32, 8, elements=FLOATS))
def test_parts_are_numbers_of_tf32_and_their_sum_is_the_whole(a):
  high, low = (np.asarray(part) for part in jax.jit(split.parts)(a))
  np.testing.assert_array_equal(high, tf32(a))
  np.testing.assert_array_equal(low, tf32(low))
  whole = high.astype(np.float64) + low
  assert np.all(np.abs(whole - a) <= 2.0**-23 * np.abs(a))


def test_spikes_and_what_is_not_finite_are_their_first_part():
  a = jnp.asarray([0, 1, 0.75, jnp.inf, -jnp.inf, jnp.nan])
  high, low = split.parts(a)
  np.testing.assert_array_equal(high, a)
  np.testing.assert_array_equal(low[:5], 0)


def operands(spikes):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(4, 8, 8, 32))
  x = (x > 0) if spikes else x
  kernel, cotangent = (
    rng.normal(size=(3, 3, 32, 16)),
    rng.normal(size=(4, 8, 8, 16)),
  )
  return tuple(np.asarray(a, np.float32) for a in (cotangent, x, kernel))


def three(lowering, cotangent, x, kernel):
  return (
    lowering.forward(x, kernel, *STATIC),
    lowering.input_gradient(cotangent, x, kernel, *STATIC),
    lowering.kernel_gradient(cotangent, x, kernel, *STATIC),
  )


@pytest.mark.parametrize('spikes', [False, True])
def test_products_are_about_as_right_as_those_of_float32(spikes):
  """Under TF32 of JAX's own, the plain products here are wrong on a GPU."""
  given = operands(spikes)
  with jax.enable_x64(True):
    wide = tuple(jnp.asarray(a, jnp.float64) for a in given)
    exact = [np.asarray(a) for a in three(convolution_plain, *wide)]
  given = tuple(map(jnp.asarray, given))
  ours = jax.jit(lambda *given: three(convolution_split, *given))(*given)
  plain = jax.jit(lambda *given: three(convolution_plain, *given))(*given)
  for a, b, c in zip(ours, plain, exact, strict=True):
    assert np.std(a - c) <= 1.5 * np.std(b - c)
    assert np.std(a - c) < 1e-6 * np.std(c)


def test_a_spike_that_is_none_is_multiplied_with_all_its_bits():
  x, kernel = np.zeros((1, 1, 1, 2), np.float32), np.ones((1, 1, 2, 1), 'f')
  x[..., 1] = np.float32(1 / 3)
  y = jax.jit(
    lambda x, k: convolution_split.forward(x, k, (1, 1), ((0, 0), (0, 0)))
  )(x, kernel)
  assert abs(float(y.item()) - 1 / 3) < 2.0**-24


def lowered(precision, platform):
  x, kernel = jnp.zeros((1, 8, 8, 4)), jnp.zeros((3, 3, 4, 4))

  def loss(x, kernel):
    return convolution(x, kernel, padding=((1, 1), (1, 1))).sum()

  with jax.default_matmul_precision(precision):
    traced = jax.jit(jax.grad(loss, (0, 1))).trace(x, kernel)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def test_a_gpu_splits_products_where_jax_is_set_so_and_others_do_not():
  assert 'stablehlo.reduce_precision' in lowered(SPLIT, 'cuda')
  for precision, platform in (
    (SPLIT, 'tpu'),
    ('highest', 'cuda'),
  ):
    assert 'reduce_precision' not in lowered(precision, platform)


@pytest.mark.parametrize(
  ('precision', 'asked'),
  [
    ('F32_F32_F32', 'HIGHEST'),
    ('TF32_TF32_F32', 'HIGH'),
    ('highest', 'HIGHEST'),
    ('tensorfloat32', 'HIGH'),
  ],
)
def test_xla_is_asked_for_what_an_algorithm_of_jax_means(precision, asked):
  text = lowered(precision, 'cuda')
  assert f'precision {asked}>' in text
  assert 'precision DEFAULT' not in text


def test_an_algorithm_for_matmuls_alone_is_refused():
  x, kernel = jnp.zeros((1, 8, 8, 4)), jnp.zeros((3, 3, 4, 4))
  with (
    jax.default_matmul_precision('BF16_BF16_F32_X6'),
    pytest.raises(InputError, match="got 'BF16_BF16_F32_X6', which is for"),
  ):
    convolution(x, kernel)


def test_a_convolution_that_jax_sets_to_split_is_right_here():
  """On the platform of the tests: on a GPU, with its tensor cores."""
  _, x, kernel = operands(spikes=True)
  with jax.enable_x64(True):
    exact = convolution_plain.forward(
      jnp.asarray(x, jnp.float64), jnp.asarray(kernel, jnp.float64), *STATIC
    )
  with jax.default_matmul_precision(SPLIT):
    y = jax.jit(lambda x, k: convolution(x, k, padding=STATIC[1]))(x, kernel)
  assert np.abs(np.asarray(y) - np.asarray(exact)).max() < 1e-4
