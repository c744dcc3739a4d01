"""What do all tests share? Four virtual devices and a compilation cache."""

import os
import pathlib
import tempfile

import jax

jax.config.update('jax_num_cpu_devices', 4)
# Compiled programs are shared between the workers and between runs.
CACHE = pathlib.Path(
  os.environ.get('JAX_COMPILATION_CACHE_DIR')
  or pathlib.Path(tempfile.gettempdir()) / 'mpbn_jax_test_cache'
)
jax.config.update('jax_compilation_cache_dir', str(CACHE))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)
os.environ['JAX_COMPILATION_CACHE_DIR'] = str(CACHE)  # for subprocesses


def pytest_collection_modifyitems(items):
  """The longest file first: begun last, one worker would end with it alone."""
  items.sort(key=lambda item: 'test_paper_training' not in item.nodeid)
