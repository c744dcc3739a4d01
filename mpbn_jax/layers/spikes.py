"""Normed spikes: spikes that carry the gain of their norm.

A spike norm that folds is a gain per channel (and time step). In evaluation the
spikes carry the gain, and a layer that reads them multiplies its kernel by it
(`absorption.py`). Folding stores that product, so the network itself determines
which layer absorbs which norm. `Spikes` cannot be read in any other way.
"""

import enum
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mpbn_jax import norm as norms
from mpbn_jax.errors import InputError
from mpbn_jax.layers.opaque import Opaque


class Fold(enum.Enum):
  """Where the gain of normed spikes is applied."""

  OPEN = 'with the spikes, or, in training, in them'
  NOW = 'on its way into the kernels of the readers'
  DONE = 'in the kernels of the readers'


class Spikes(Opaque):
  """Normed spikes [B, T, ..., C], opaque except for shape, ndim and dtype.

  `ConvNorm`, `DenseNorm`, `Readout` and `Identity` read them; `average_pool`,
  `mean_over_space` and `over_time` (of functions that accept them) pass them
  on. Any other use raises an InputError. They are not a pytree, so
  transformations cannot open them either.

  Attributes:
    source: path of their norm.
    shape: shape of the array.
    ndim: its rank.
    dtype: its type.
    array: the normed spikes as an array, for any other use. Their norm then
      cannot be folded; `Identity` also returns an array and does absorb the
      norm.
  """

  __slots__ = ('_array', '_fold', '_gain', '_merged', '_path')

  def __init__(
    self,
    array: jax.Array,
    *,
    path: tuple[str, ...],
    gain: jax.Array | None = None,
    fold: Fold = Fold.OPEN,
    merged: bool = False,
  ):
    """Only `SpikeNorm` creates instances.

    Args:
      array: [B, T, ..., C].
      path: path of the norm.
      gain: [C] or [T, C], by which every reader multiplies its kernel.
      fold: where the gain is applied.
      merged: whether the array is [B * T, ..., C], inside `over_time`.
    """
    self._array = array
    self._path = path
    self._gain = gain
    self._fold = fold
    self._merged = merged

  @property
  def source(self) -> str:
    return '/'.join(self._path)

  @property
  def shape(self) -> tuple[int, ...]:
    return self._array.shape

  @property
  def ndim(self) -> int:
    return self._array.ndim

  @property
  def dtype(self) -> Any:
    return self._array.dtype

  @property
  def array(self) -> jax.Array:
    if self._fold is not Fold.OPEN:
      raise InputError(
        f'expected layers that read the normed spikes of {self.source!r}, got '
        'code that takes their .array: this norm cannot be folded (read them '
        'through an Identity, which returns an array)'
      )
    if self._gain is None:
      return self._array
    gain = self._gain
    if self._merged and gain.ndim == 2:
      steps, rows = gain.shape[0], self._array.shape[0]
      gain = jnp.tile(gain, (rows // steps, 1))
    gain = norms.along(gain, self._array[None] if self._merged else self._array)
    return (gain * self._array).astype(self.dtype)

  def __repr__(self) -> str:
    shape = ', '.join(map(str, self.shape))
    # Where JAX does not look for `__jax_array__`, it shows only this text.
    return (
      f'<normed spikes of {self.source!r}, {self.dtype}[{shape}], which only '
      'ConvNorm, DenseNorm, Readout and Identity read>'
    )

  def _what(self) -> str:
    return f'normed spikes of {self.source!r}'

  def _instead(self) -> str:
    return (
      'which ConvNorm, DenseNorm, Readout and Identity read and average_pool, '
      'mean_over_space and over_time pass on: read them through an Identity, '
      'which returns an array (or take .array: then their norm cannot be '
      'folded)'
    )


def on_array(
  spikes: Spikes, function: Callable, *, merged: bool | None = None
) -> Spikes:
  """Returns spikes with a function applied to their array.

  The function must commute with a factor per channel and step; it is not
  checked.
  """
  return Spikes(
    function(spikes._array),
    path=spikes._path,
    gain=spikes._gain,
    fold=spikes._fold,
    merged=spikes._merged if merged is None else merged,
  )


def opened(
  x: 'jax.Array | Spikes',
) -> tuple[tuple[jax.Array, ...], dict | None]:
  """Returns the arrays in x, and the data that `closed` needs to restore x.

  For transformations that accept only arrays.
  """
  if not isinstance(x, Spikes):
    return (x,), None
  form = {'path': x._path, 'fold': x._fold, 'merged': x._merged}
  return (x._array, *(() if x._gain is None else (x._gain,))), form


def closed(
  arrays: tuple[jax.Array, ...], form: dict | None
) -> 'jax.Array | Spikes':
  """Returns the x that `opened` took apart."""
  if form is None:
    return arrays[0]
  array, *gain = arrays
  return Spikes(array, gain=gain[0] if gain else None, **form)


def check_array(x: Any) -> None:
  """Raises InputError if x holds normed spikes in place of an array."""
  if isinstance(x, Spikes):
    x._refuse()


def check_merged(spikes: Spikes, function: str, *, merged: bool) -> None:
  """Raises InputError unless the spikes are merged (or not) as expected."""
  if spikes._merged != merged:
    due, got = ('inside', 'outside') if merged else ('outside', 'inside')
    raise InputError(
      f'expected {function} {due} over_time, got the normed spikes of '
      f'{spikes.source!r} {got} of it: over_time(lambda x: average_pool(x, '
      'window=2), spikes), for example, merges the steps and splits them again'
    )
