"""Memory of programs: its plan, its pages, and what compilation leaves."""

import ctypes
import gc
import sys
from typing import Any

import jax
from jax.extend.mlir import ir, passmanager

_ROOM = 2**26  # bytes


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


def reuse_pages() -> bool:
  """Has this process keep the memory that it frees, if it computes on a CPU.

  The temporary arrays of a program are one allocation, which the C library
  returns to the system after every call. The system then clears it again, page
  by page: 10 to 30 % of the time of a training step (docs/performance.md). The
  price is that the process stays as large as it once was.

  Call it before JAX starts: programs then run in the thread that calls them,
  because memory of other threads is always returned. The call returns when its
  result is ready, as if followed by `jax.block_until_ready`.

  Returns:
    Whether pages are kept: not on other platforms, nor with another C library
    than GNU's.

  Example:
    >>> kept = reuse_pages()
  """
  jax.config.update('jax_cpu_enable_async_dispatch', False)
  mallopt = _of_c_library('mallopt')
  if jax.default_backend() != 'cpu' or mallopt is None:
    return False
  # Of <malloc.h>: M_MMAP_MAX = -4, M_TRIM_THRESHOLD = -1.
  return bool(mallopt(-4, 0) and mallopt(-1, -1))


def compile_ahead(
  step: Any, *arguments: Any, least: bool = False
) -> jax.stages.Compiled:
  """Compiles a function before its first call, and returns memory.

  Tracing and compiling a large network frees some 150 MiB that the C library
  keeps for later, in pieces that the arrays of a step do not fit into: they are
  returned to the system. What is kept between steps gets room of its own, so
  that it seldom lies where the arrays of the next step would.

  On a CPU, the program has no names of layers and no source lines, which only
  profiles would show: training a ResNet20 takes 7 to 44 MiB less
  (docs/performance.md). To profile a step, compile it with `jax.jit` alone.

  Args:
    step: the result of `jax.jit`.
    *arguments: those of the calls. They are not read: `jax.ShapeDtypeStruct`
      will do.
    least: whether, on a CPU, JAX forgets all that it has traced and compiled in
      this process, which it does again when it is called again. The process
      that trains a ResNet20 takes about 20 MiB less (docs/performance.md).

  Returns:
    The compiled program, to call with such arguments. Without `least`, the next
    call of `step` finds it, too.

  Example:
    >>> program = compile_ahead(jax.jit(lambda x: x + 1), 2.0)
    >>> float(program(3.0))
    4.0
  """
  on_cpu = jax.default_backend() == 'cpu'
  least = least and on_cpu
  _return_memory(forget=least)
  lowered = step.lower(*arguments)
  if on_cpu:
    _forget_names(lowered.compiler_ir('stablehlo'))
  if least:
    _return_memory(forget=True)
  compiled: jax.stages.Compiled = lowered.compile()
  del lowered
  _return_memory(forget=least)
  _make_room()
  return compiled


def _return_memory(*, forget):
  """Returns what is free to the system, if asked what JAX has cached, too."""
  if forget:
    jax.clear_caches()
    gc.collect()
  trim = _of_c_library('malloc_trim')
  if trim is not None:
    trim(0)


def _forget_names(module):
  """Removes the names and source lines of operations from an MLIR module."""
  name = module.operation.attributes['sym_name'].value
  with module.context:
    # Another name: the compilation cache would find the program with names.
    unnamed = ir.StringAttr.get(f'{name}_without_names')
    module.operation.attributes['sym_name'] = unnamed
    strip = passmanager.PassManager.parse('builtin.module(strip-debuginfo)')
    strip.run(module.operation)


def _make_room():
  """Has the C library keep a free block for what is not a temporary array.

  The temporary arrays of a step are one block, which leaves a gap of its size
  when the step ends. What finds no smaller gap is put there, the next step does
  not fit any more and takes new pages, and the process has grown by the whole
  block: so did 7 of 20 processes, and none of 20 with this room, which is not
  for certain in every program (docs/performance.md). The room has no pages
  until something is put there.
  """
  malloc, free = _of_c_library('malloc'), _of_c_library('free')
  if malloc is None:
    return
  malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
  free.argtypes = [ctypes.c_void_p]
  room = malloc(_ROOM)
  # Never freed: the room would become one with what is free behind it.
  malloc(_ROOM // 32)
  free(room)


def _of_c_library(name):
  """Returns a function that GNU's C library has, or None."""
  if sys.platform != 'linux':
    return None
  return getattr(ctypes.CDLL(None), name, None)
