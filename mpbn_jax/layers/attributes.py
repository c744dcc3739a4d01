"""Module attributes: checks on construction, and factories."""

import dataclasses
import functools
import math
import numbers

import flax.linen as nn
import jax
import numpy as np

from mpbn_jax.errors import InputError


class Factory(functools.partial):
  """A `functools.partial` of a module, compared by content.

  Flax's `ModuleDef`: a network receives it as an attribute and makes its layers
  with it, so that the network does not repeat the settings of its layers.

  Example:
    >>> from mpbn_jax import LIF
    >>> lif = Factory(LIF, tau=0.5)
    >>> lif(name='lif1').tau
    0.5
    >>> lif == Factory(LIF, tau=0.5)
    True
  """

  def _content(self):
    return self.func, self.args, tuple(sorted(self.keywords.items()))

  def __eq__(self, other):
    if not isinstance(other, Factory):
      return NotImplemented
    return self._content() == other._content()

  def __hash__(self):
    return hash(self._content())


def check_types(module: nn.Module) -> None:
  """Raises InputError for attributes that do not match their declared types.

  Integers must be at least 0 and numbers finite; arrays may replace numbers.
  """
  for field in dataclasses.fields(module):
    value = getattr(module, field.name)
    name = field.name
    if field.type is bool and not isinstance(value, bool):
      raise InputError(f'{name} must be True or False, got {value!r}')
    if field.type is int and not _is_integer(value, least=0):
      raise InputError(f'{name} must be an integer >= 0, got {value!r}')
    unset = value is None and field.type == float | None
    if field.type in (float, float | None) and not (unset or _finite(value)):
      raise InputError(f'{name} must be a finite number, got {value!r}')


def check_positive(module: nn.Module, *names: str) -> None:
  """Raises InputError unless these attributes are positive integers."""
  for name in names:
    value = getattr(module, name)
    if not _is_integer(value, least=1):
      raise InputError(f'{name} must be an integer >= 1, got {value!r}')


def _is_integer(value, *, least):
  whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
  return whole and value >= least


def _finite(value):
  if isinstance(value, (jax.Array, np.ndarray)):  # unknown during tracing
    return True
  real = isinstance(value, numbers.Real) and not isinstance(value, bool)
  return real and math.isfinite(value)
