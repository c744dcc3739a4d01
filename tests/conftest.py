"""Four virtual devices and a compilation cache for all tests."""

import gc
import os
import pathlib
import signal
import tempfile

import jax
import pytest

# The older code of fused loops, in one piece, compiles in half the time. Tests
# of bits ask for the newer one (`common.as_users_compile`). JAX 0.11 has only
# that, and stops at unknown flags.
if jax.__version_info__ < (0, 11):
  os.environ['XLA_FLAGS'] = ' '.join(
    (
      os.environ.get('XLA_FLAGS', ''),
      '--xla_cpu_use_fusion_emitters=false',
      '--xla_cpu_parallel_codegen_split_count=1',
    )
  )
jax.config.update('jax_num_cpu_devices', 4)
# Compiled programs are shared between the workers and between runs.
CACHE = pathlib.Path(
  os.environ.get('JAX_COMPILATION_CACHE_DIR')
  or pathlib.Path(tempfile.gettempdir()) / 'mpbn_jax_test_cache'
)
jax.config.update('jax_compilation_cache_dir', str(CACHE))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
# Subprocesses compile likewise.
os.environ['JAX_COMPILATION_CACHE_DIR'] = str(CACHE)
os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = 'true'


# A shell that starts the tests in the background has them ignore Ctrl-C, and
# every process that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)


# These look at what a compiler does to bits.
FULLY_OPTIMIZED = {
  'test_folded_networks',
  'test_folding',
  'test_golden_folds',
  'test_neuron',
}


@pytest.fixture(autouse=True, scope='module')
def quick_compilation(request):
  """Compiles in half the time what runs once or twice, and is tiny."""
  quick = request.module.__name__ not in FULLY_OPTIMIZED
  jax.config.update('jax_disable_most_optimizations', quick)


@pytest.fixture
def registries():
  """Forgets afterwards what a test registers."""
  from mpbn_jax import MODELS, NORMS, SURROGATES
  from mpbn_jax.datasets import DATASETS

  saved = [
    (registry, dict(registry))
    for registry in (DATASETS, MODELS, NORMS, SURROGATES)
  ]
  yield
  for registry, entries in saved:
    registry.clear()
    registry.update(entries)


def pytest_collection_finish():
  """Keeps the garbage collector from walking through JAX for every trace."""
  gc.collect()
  gc.freeze()
  gc.set_threshold(100_000, 20, 100)


def pytest_collection_modifyitems(items):
  """Files with slow tests first: one worker must not end with one alone."""
  slow = {item.path for item in items if item.get_closest_marker('slow')}
  items.sort(key=lambda item: item.path not in slow)
