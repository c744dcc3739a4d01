"""Histograms of membrane potentials, counted exactly on the device."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

BINS = 96
_SLOTS = BINS + 4  # below, the bins, above, NaN, padding
_DEVIATIONS = 4.0
_LARGEST_INDEX = 2**22  # of a bin: exact in float32, and so are its neighbours


class Bins(NamedTuple):
  """`BINS` bins [i * width, (i + 1) * width) from i = first on.

  The width is a power of two, so that float32 finds the bin of a number without
  rounding.

  Attributes:
    first: index of the first bin.
    width: width of every bin.
  """

  first: int
  width: float

  @property
  def edges(self) -> np.ndarray:
    """The edges of the bins, float64 [BINS + 1]."""
    return (self.first + np.arange(BINS + 1)) * self.width


@dataclasses.dataclass(frozen=True, eq=False)
class Histogram:
  """How many potentials of a layer lie in each bin, at each step.

  Attributes:
    bins: the bins.
    counts: int64 [T, BINS].
    below: int64 [T], potentials below the first bin, -inf among them.
    above: int64 [T], those above the last bin, +inf among them.
    nan: int64 [T], those that are not a number.
  """

  bins: Bins
  counts: np.ndarray
  below: np.ndarray
  above: np.ndarray
  nan: np.ndarray

  def quantile(self, share: float) -> float:
    """Returns the potential below which a share of them lies, of all steps.

    It is interpolated inside of a bin; -inf or +inf if it lies outside the
    bins, and NaN if nothing was counted.
    """
    counts = self.counts.sum(0)
    below = self.below.sum()
    cumulated = below + np.concatenate([[0], np.cumsum(counts)])
    total = cumulated[-1] + self.above.sum()
    wanted = share * total
    if not total:
      return math.nan
    if wanted < below:
      return -math.inf
    if wanted > cumulated[-1]:
      return math.inf
    # The first filled bin that reaches so far.
    place = np.flatnonzero((cumulated[1:] >= wanted) & (counts > 0))
    if not place.size:  # exactly all that are below
      return float(self.bins.edges[0])
    inside = (wanted - cumulated[place[0]]) / counts[place[0]]
    return float(self.bins.edges[place[0]] + inside * self.bins.width)

  def to_json(self) -> dict[str, Any]:
    """Returns JSON-serializable fields, without empty bins at the ends."""
    filled = np.flatnonzero(self.counts.sum(0))
    start, end = (filled[0], filled[-1] + 1) if filled.size else (0, 0)
    return {
      'edges': self.bins.edges[start : end + 1].tolist(),
      'counts': self.counts[:, start:end].tolist(),
      **{k: getattr(self, k).tolist() for k in ('below', 'above', 'nan')},
    }


def bins_for(low: float, high: float) -> Bins:
  """Returns the finest bins that hold [low, high], which lies in their middle.

  Example:
    >>> bins = bins_for(-1.0, 2.0)
    >>> bins.width, float(bins.edges[0]), float(bins.edges[-1])
    (0.0625, -2.4375, 3.5625)
  """
  span = max(high - low, max(abs(low), abs(high)) / _LARGEST_INDEX, 1e-30)
  width = 2.0 ** (math.floor(math.log2(span / BINS)) - 1)
  while True:
    first, last = math.floor(low / width), math.floor(high / width)
    if (
      last - first < BINS and max(abs(first), abs(last)) < _LARGEST_INDEX - BINS
    ):
      return Bins(first - (BINS - 1 - (last - first)) // 2, width)
    width *= 2


def bins_of(moments: np.ndarray) -> Bins:
  """Returns bins for potentials, within 4 standard deviations of their mean.

  Args:
    moments: rows of `moments_of`, [..., 5].
  """
  rows = np.asarray(moments, np.float64).reshape((-1, 5))
  number, lowest, highest, mean, variance = rows[rows[:, 0] > 0].T
  if not number.size:  # nothing finite
    return bins_for(-1.0, 1.0)
  center = np.average(mean, weights=number)
  spread = np.average(variance + (mean - center) ** 2, weights=number)
  reach = _DEVIATIONS * spread**0.5
  if not math.isfinite(center + reach):  # float32 overflowed
    return bins_for(float(lowest.min()), float(highest.max()))
  return bins_for(
    float(max(lowest.min(), center - reach)),
    float(min(highest.max(), center + reach)),
  )


def moments_of(u: jax.Array, mask: jax.Array, *, groups: int = 1) -> jax.Array:
  """Returns (number, min, max, mean, variance) of finite potentials.

  [groups, 5], a row for each group of examples; see `count`.

  Args:
    u: [B, T, ...].
    mask: [B], False on padding.
    groups: divides B.
  """
  u, mask = _in_groups(u, mask, groups)

  def of_group(group):
    part = _group(u, group)
    ok = _along(_group(mask, group), part) & jnp.isfinite(part)
    number = ok.sum(dtype=jnp.float32)
    mean = jnp.where(ok, part, 0).sum() / number
    variance = jnp.where(ok, jnp.square(part - mean), 0).sum() / number
    lowest = jnp.where(ok, part, jnp.inf).min()
    highest = jnp.where(ok, part, -jnp.inf).max()
    return jnp.stack([number, lowest, highest, mean, variance])

  return jax.lax.map(of_group, jnp.arange(groups))


def _in_groups(u, mask, groups):
  """Returns (u [T, B / groups, groups, ...], mask [1, B / groups, groups]).

  Time first, as neurons compute it: no copy. Example i is in group i mod
  groups, so that each device has a part of all.
  """
  u = jnp.moveaxis(u, 1, 0)
  u = u.reshape((len(u), -1, groups, *u.shape[2:]))
  return u, mask.reshape((1, -1, groups))


def _group(x, group):
  return jax.lax.dynamic_index_in_dim(x, group, axis=2, keepdims=False)


def _along(mask, u):
  """Returns a mask [1, B] that broadcasts to u [T, B, ...]."""
  return mask.reshape((1, -1, *(1,) * (u.ndim - 2)))


def count(
  u: jax.Array,
  mask: jax.Array,
  *,
  first: jax.Array,
  width: jax.Array,
  groups: int = 1,
) -> jax.Array:
  """Returns how many potentials lie in each slot, int32 [T, slots].

  Args:
    u: float32 [B, T, ...].
    mask: [B], False on padding, which is not counted.
    first: of `Bins`.
    width: of `Bins`.
    groups: divides B into groups that are counted one after the other, which
      needs that much less memory.
  """
  steps = u.shape[1]
  u, mask = _in_groups(u, mask, groups)

  def add(group, counts):
    slots = _slots(_group(u, group), _group(mask, group), first, width)
    return counts.at[slots].add(1)

  empty = jnp.zeros(steps * _SLOTS, jnp.int32)
  counts = jax.lax.fori_loop(0, groups, add, empty)
  return counts.reshape(steps, _SLOTS)


def _slots(u, mask, first, width):
  """Returns the slot of each potential u, [T, B, ...], int32."""
  # Powers of two multiply exactly, and indices are small: no rounding.
  index = jnp.floor(u * (1 / width)) - first
  slot = jnp.clip(index, -1, BINS).astype(jnp.int32) + 1
  slot = jnp.where(jnp.isnan(u), BINS + 2, slot)
  slot = jnp.where(_along(mask, u), slot, BINS + 3)
  return _SLOTS * jnp.arange(len(u)).reshape((-1, *(1,) * (u.ndim - 1))) + slot


def histogram(counts: np.ndarray, bins: Bins) -> Histogram:
  """Returns the histogram of sums of `count`, int64 [T, slots]."""
  return Histogram(
    bins=bins,
    counts=counts[:, 1 : BINS + 1],
    below=counts[:, 0],
    above=counts[:, BINS + 1],
    nan=counts[:, BINS + 2],
  )
