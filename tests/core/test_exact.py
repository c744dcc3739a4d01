"""Square roots and quotients: correctly rounded, whatever the platform does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpbn_jax.norm import exact

TINY = np.finfo(np.float32).tiny


@pytest.fixture(params=['cpu', 'gpu'], autouse=True)
def platform(request, monkeypatch):
  """Tests what each platform runs."""
  monkeypatch.setattr(jax, 'default_backend', lambda: request.param)
  return request.param


def _numbers(count, *, seed=0):
  """Returns normal numbers of every exponent and both signs."""
  rng = np.random.default_rng(seed)
  bits = rng.integers(0x00800000, 0x7F800000, count).astype(np.uint32)
  bits |= rng.integers(0, 2, count).astype(np.uint32) << 31
  around = np.float32([1, 2, 4, 0.25, TINY, np.finfo(np.float32).max])
  near = [np.nextafter(around, np.float32(towards)) for towards in (0, 3e38)]
  return np.concatenate([bits.view(np.float32), around, *near])


def _normal(x):
  return np.isfinite(x) & (np.abs(x) >= TINY)


def test_square_root_is_correctly_rounded():
  x = np.abs(_numbers(200_000))
  x = x[_normal(x)]
  np.testing.assert_array_equal(exact.square_root(x), np.sqrt(x))


def test_quotient_is_correctly_rounded():
  a, b = _numbers(200_000), _numbers(200_000, seed=1)
  with np.errstate(over='ignore', under='ignore'):
    expected = a / b
  normal = _normal(a) & _normal(b) & _normal(expected)
  assert normal.mean() > 0.7
  found = np.asarray(exact.quotient(jnp.asarray(a), jnp.asarray(b)))
  np.testing.assert_array_equal(found[normal], expected[normal])


def test_results_that_are_no_normal_numbers_are_those_of_the_platform():
  x = jnp.float32([0, -1, np.inf, np.nan])
  np.testing.assert_array_equal(exact.square_root(x), jnp.sqrt(x))
  a = jnp.float32([0, 1, -1, np.inf, 3e38, 1, np.nan, -2e-38])
  b = jnp.float32([2, 0, 0, 2, 1e-3, np.inf, 1, 1e3])
  np.testing.assert_array_equal(exact.quotient(a, b), a / b)


@pytest.mark.parametrize('off', [-3, -1, 2, 3])
@pytest.mark.parametrize('platform', ['gpu'], indirect=True)
def test_correction_mends_what_a_platform_approximates(off):
  rng = np.random.default_rng(0)
  a, b = rng.integers(2**23, 2**24, (2, 100_000))
  odd, shift = rng.integers(0, 2, 100_000), 23 + (a < b)
  root = np.rint(np.sqrt((a << (23 + odd)).astype(np.float64))).astype(int)
  ratio = np.rint((a << shift) / b).astype(int)
  a, b, odd, shift, near_root, near_ratio = (
    jnp.int32(x) for x in (a, b, odd, shift, root + off, ratio + off)
  )
  found = exact._corrected_root(a, odd, near_root)
  np.testing.assert_array_equal(found, root)
  found = exact._corrected_ratio(a, b, shift, near_ratio)
  np.testing.assert_array_equal(found, ratio)
