"""Histograms on the device: exact bins, and nothing uncounted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpbn_jax.analysis.histograms import (
  BINS,
  Bins,
  bins_for,
  bins_of,
  count,
  histogram,
  moments_of,
)

LARGEST = np.finfo(np.float32).max


def _by_hand(u, edges):
  """Returns (below, counts, above, nan) of each step, in NumPy."""
  rows = []
  for t in range(u.shape[1]):
    values = u[:, t].reshape(-1).astype(np.float64)
    nan = np.isnan(values).sum()
    values = values[~np.isnan(values)]
    place = np.searchsorted(edges, values, side='right') - 1
    inside = place[(place >= 0) & (place < BINS)]
    counts = np.bincount(inside, minlength=BINS)
    rows.append((*((place < 0).sum(), counts, (place >= BINS).sum(), nan),))
  return [np.array(each) for each in zip(*rows, strict=True)]


@pytest.mark.parametrize('low', [-3.0, 0.0, 1e-3, -1e6])
@pytest.mark.parametrize('span', [0.0, 1e-4, 1.0, 7.3, 1e5])
def test_bins_hold_their_range_and_are_exact_in_float32(low, span):
  high = np.float32(low + span).item()
  bins = bins_for(low, high)
  assert bins.edges[0] <= low
  assert high < bins.edges[-1]
  assert np.log2(bins.width) == np.floor(np.log2(bins.width))
  np.testing.assert_array_equal(bins.edges, bins.edges.astype(np.float32))
  # No coarser than needed, unless float32 could not tell bins apart.
  if span and span >= 1e-3 * abs(low):
    assert bins.width * BINS <= 4 * span


@pytest.mark.parametrize('groups', [1, 3])
def test_every_potential_is_counted_once(groups):
  bins = Bins(-40, 0.125)
  rng = np.random.default_rng(0)
  u = rng.normal(0, 3, (6, 3, 4, 5)).astype(np.float32)
  # On the edges, beside them, far away, and nowhere.
  edges = bins.edges.astype(np.float32)
  beside = np.concatenate(
    [
      edges,
      np.nextafter(edges, np.float32(-np.inf)),
      np.nextafter(edges, np.float32(np.inf)),
    ]
  )
  special = [np.nan, np.inf, -np.inf, LARGEST, -LARGEST, 0.0, -0.0]
  u.reshape(-1)[:7] = special
  u[3:5].reshape(-1)[:120] = rng.choice(beside, 120)
  mask = np.array([True] * 5 + [False])
  run = jax.jit(functools.partial(count, groups=groups))
  found = run(u, mask, first=-40.0, width=0.125)
  ours = histogram(np.asarray(found, np.int64), bins)
  below, counts, above, nan = _by_hand(u[:5], bins.edges)
  np.testing.assert_array_equal(ours.below, below)
  np.testing.assert_array_equal(ours.counts, counts)
  np.testing.assert_array_equal(ours.above, above)
  np.testing.assert_array_equal(ours.nan, nan)
  assert nan.sum() == 1
  total = ours.below + ours.counts.sum(1) + ours.above + ours.nan
  np.testing.assert_array_equal(total, [5 * 20] * 3)


def test_moments_are_those_of_finite_potentials_outside_of_padding():
  u = jnp.array([[1.0, 3.0], [5.0, 5.0], [jnp.inf, jnp.nan], [99.0, 99.0]])
  mask = jnp.array([True, True, True, False])
  np.testing.assert_allclose(moments_of(u, mask), [[4, 1, 5, 3.5, 2.75]])
  rows = moments_of(u, mask, groups=2)  # examples 0 and 2, 1 and 3
  np.testing.assert_allclose(rows, [[2, 1, 3, 2, 1], [2, 5, 5, 5, 0]])
  assert bins_of(rows) == bins_of(moments_of(u, mask)) == bins_for(1.0, 5.0)


def test_bins_leave_outliers_out():
  bins = bins_of(np.array([[100, -1e4, 2.0, 0.0, 1.0]]))
  assert bins.edges[0] > -8
  assert bins.edges[-1] > 2
  # Nothing finite was seen.
  nothing = moments_of(jnp.full((2, 1), jnp.nan), jnp.ones(2, bool))
  assert bins_of(nothing) == bins_for(-1.0, 1.0)
  # Squares overflowed.
  bins_of(np.array([[2, -3e38, 3e38, 0.0, np.inf]]))


def test_quantiles_are_those_of_all_steps():
  counts = np.zeros((2, BINS), np.int64)
  counts[:, 10], counts[:, 20] = 3, 5
  empty = np.zeros(2, np.int64)
  found = histogram(np.column_stack([empty, counts, empty, empty]), Bins(0, 1))
  assert found.quantile(0.0) == 10
  assert found.quantile(0.375) == 11
  assert found.quantile(0.6875) == pytest.approx(20.5)
  outside = histogram(
    np.column_stack([[8, 8], counts, [8, 8], empty]), Bins(0, 1)
  )
  assert outside.quantile(0.1) == -np.inf
  assert outside.quantile(0.9) == np.inf
  values = found.to_json()
  assert values['edges'][0] == 10
  assert values['edges'][-1] == 21
  assert len(values['counts'][0]) == 11
