"""Compiled programs, shared between equal networks and experiments."""

import functools
from collections.abc import Callable
from typing import Any

from mpbn_jax import neuron, surrogate
from mpbn_jax import norm as norms


def shared(make: Callable) -> Callable:
  """Makes a function return the compiled program that it returned before.

  JAX keeps compiled code with the function object that was compiled. A function
  that is created again, for an equal network, would be traced and compiled
  again: when a run is resumed or repeated in a notebook, for example.

  Results are remembered for equal arguments, while the registries of norms,
  surrogates and resets, where a network looks names up, are unchanged. The last
  eight are kept. What cannot be hashed is not remembered. A class or function
  that is changed in place (by IPython's autoreload) counts as unchanged: then
  restart the process.

  Args:
    make: a function of positional arguments, which must determine its result.
  """

  @functools.lru_cache(maxsize=8, typed=True)
  def remembered(registered, *args):
    del registered
    return make(*args)

  @functools.wraps(make)
  def function(*args: Any) -> Any:
    registered = (
      *norms.NORMS.items(),
      *surrogate.SURROGATES.items(),
      *neuron.RESETS.items(),
    )
    try:
      hash((registered, args))
    except TypeError:
      return make(*args)
    return remembered(registered, *args)

  return function
