"""Means, deviations and paired differences of a few runs."""

from collections.abc import Mapping, Sequence

import numpy as np

CONFIDENCE = 0.95
_SAMPLES = 9_999


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
  """Returns (mean, sample standard deviation; None of a single value)."""
  deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
  return float(np.mean(values)), deviation


def mean_with_interval(values: Sequence[float]) -> tuple[float, float, float]:
  """Returns (mean, low, high), with bounds as in `paired_difference`."""
  zeros = dict.fromkeys(range(len(values)), 0.0)
  found = paired_difference(dict(enumerate(map(float, values))), zeros)
  if found is None:
    raise ValueError('expected at least one value, got none')
  return found[:3]


def paired_difference(
  ours: Mapping[int, float], theirs: Mapping[int, float]
) -> tuple[float, float, float, int] | None:
  """Returns (mean of ours - theirs, low, high, number of pairs), or None.

  Runs are paired by seed. The bounds are those of the bias-corrected and
  accelerated bootstrap at 95 % (`scipy.stats.bootstrap`), drawn with a fixed
  seed. With fewer than three pairs, or if all differences are equal, there are
  no bounds to estimate: both are then NaN, or the difference itself.

  Args:
    ours: {seed: value}.
    theirs: {seed: value}; seeds that only one of them has are left out.

  Example:
    >>> paired_difference({0: 0.9, 1: 0.8, 2: 0.7}, {0: 0.8, 1: 0.7, 2: 0.6})
    (0.1, 0.1, 0.1, 3)
  """
  from scipy import stats

  seeds = sorted(ours.keys() & theirs.keys())
  if not seeds:
    return None
  a, b = (np.array([of[seed] for seed in seeds]) for of in (ours, theirs))
  differences = np.round(a - b, 12)
  mean = float(np.round(differences.mean(), 12))
  if len(seeds) < 3:
    return mean, np.nan, np.nan, len(seeds)
  if np.ptp(differences) == 0:
    return mean, mean, mean, len(seeds)
  interval = stats.bootstrap(
    (a, b),
    lambda a, b, axis: (a - b).mean(axis),
    paired=True,
    vectorized=True,
    n_resamples=_SAMPLES,
    confidence_level=CONFIDENCE,
    method='BCa',
    rng=np.random.default_rng(0),
  ).confidence_interval
  return mean, float(interval.low), float(interval.high), len(seeds)
