"""Memory of training steps: its plan, and what compilation leaves behind."""

import ctypes
import sys
from typing import Any

import jax


def compiler_options() -> dict[str, Any] | None:
  """Returns the options of `jax.jit` with which training steps are compiled.

  XLA's CPU backend orders operations for concurrency by default, although it
  runs the large ones one after the other. Ordered for memory, a training step
  needs up to a sixth less of it; its time was not seen to change
  (docs/performance.md). Other platforms have no such option. JAX accepts
  options only for functions that are not called inside another `jit`.

  Example:
    >>> step = jax.jit(lambda x: x + 1, compiler_options=compiler_options())
  """
  if jax.default_backend() != 'cpu':
    return None
  return {'xla_cpu_scheduler_type': 'CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED'}


def compile_ahead(step: Any, *arguments: Any) -> jax.stages.Compiled:
  """Compiles a function for its first call, and returns memory to the system.

  Tracing and compiling a large network frees some 150 MiB that the C library
  keeps for later, in pieces that the arrays of a step do not fit into.

  Args:
    step: the result of `jax.jit`. Its next call finds the compiled program.
    *arguments: those of the next call. They are not read.

  Returns:
    The compiled program.
  """
  compiled: jax.stages.Compiled = step.lower(*arguments).compile()
  if sys.platform == 'linux':
    # Other C libraries than GNU's have no such function.
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
    if trim is not None:
      trim(0)
  return compiled
