"""What a process sets up first: warnings, compiled programs and memory."""

import logging
import os
import pathlib
import sys
from collections.abc import Mapping


def say_warnings() -> None:
  """Prints this package's warnings as one line each, and no others."""
  from absl import logging as absl_logging

  # If the root logger has no handler, absl adds one that prints all again.
  logging.basicConfig(handlers=[logging.NullHandler()])
  handler = logging.StreamHandler(sys.stderr)
  handler.setFormatter(logging.Formatter('warning: %(message)s'))
  ours = logging.getLogger('mpbn_jax')
  ours.handlers = [handler]  # replace, so that repeated calls add none
  absl_logging.set_verbosity(absl_logging.ERROR)


def prepare(config: Mapping) -> None:
  """Keeps compiled programs and freed memory; call it before JAX starts.

  Args:
    config: as in `configs/default.py`.
  """
  from mpbn_jax import memory

  _keep_compiled_programs(config['log']['compilation_cache'])
  memory.reuse_pages()


def _keep_compiled_programs(directory):
  """Turns on JAX's persistent compilation cache unless it is already set."""
  import jax

  if not directory or 'JAX_COMPILATION_CACHE_DIR' in os.environ:
    return
  path = pathlib.Path(directory).expanduser()
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    logging.getLogger('mpbn_jax').warning(
      'no compilation cache in %s (%s), so every run compiles again: set '
      '--config.log.compilation_cache',
      path,
      error.strerror,
    )
    return
  jax.config.update('jax_compilation_cache_dir', str(path))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)
