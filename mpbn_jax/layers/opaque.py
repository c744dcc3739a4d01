"""Values that take the place of arrays and that no array function can open."""

from typing import Any, NoReturn

import jax
import numpy as np

from mpbn_jax.errors import InputError


class Opaque:
  """A value that every operator, protocol and method of arrays rejects.

  Subclasses say what they are and what to do instead; they may define the
  operators that they do understand. Identity and hash are those of the object.
  Instances are not a pytree, so transformations cannot open them either.
  """

  __slots__ = ()

  def _what(self) -> str:
    """Returns what this is, a plural without an article."""
    raise NotImplementedError

  def _instead(self) -> str:
    """Returns who reads it, and what to do instead."""
    raise NotImplementedError

  def __getattr__(self, name: str) -> NoReturn:
    # `hasattr` stays False for attributes that arrays do not have.
    if any(hasattr(kind, name) for kind in _ARRAYS) or name in _PROTOCOLS:
      self._refuse()
    raise AttributeError(f'{type(self).__name__} has no attribute {name!r}')

  def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
    del args, kwargs
    # Not a TypeError: functions under `jit` replace it by their own, which does
    # not name the value.
    raise InputError(
      f'expected an array, got the {self._what()}, {self._instead()}'
    )


# The protocols of JAX and NumPy, and every method that Python's syntax calls.
_ARRAYS = (jax.Array, np.ndarray)
_PROTOCOLS = ('__jax_array__', '__array__', '__array_interface__')
_OPERATORS = (
  *('add', 'sub', 'mul', 'matmul', 'truediv', 'floordiv', 'mod', 'divmod'),
  *('pow', 'lshift', 'rshift', 'and', 'or', 'xor'),
)
for _name in (
  *(f'__{side}{name}__' for side in ('', 'r', 'i') for name in _OPERATORS),
  *('__neg__', '__pos__', '__abs__', '__invert__', '__round__'),
  *('__eq__', '__ne__', '__lt__', '__le__', '__gt__', '__ge__'),
  *('__bool__', '__int__', '__float__', '__complex__', '__index__'),
  *('__len__', '__iter__', '__reversed__', '__contains__', '__getitem__'),
  *('__array_ufunc__', '__array_function__'),
):
  setattr(Opaque, _name, Opaque._refuse)
