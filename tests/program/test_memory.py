"""Memory of a process: pages between calls, and what compilation leaves."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
import runs

from mpbn_jax import MODELS, memory
from mpbn_jax.models.resnet import SpikingResNet

FAULTS = """
import resource
import sys

import jax
import jax.numpy as jnp

from mpbn_jax import memory

if sys.argv[1] == 'reuse':
  assert memory.reuse_pages()
double = jax.jit(lambda x: 2 * x)
x = jnp.ones(1 << 23)  # 32 MiB, 8,192 pages


def faults():
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


# In the first calls, something small may come to lie where a result was, and
# the next call takes new pages: in 30 processes, the last time in the 17th.
for call in range(33):
  if call == 30:
    before = faults()
  double(x).block_until_ready()
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='of glibc')
def test_reused_pages_are_not_cleared_again():
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', FAULTS, mode],
      cwd=runs.ROOT,
      stdout=subprocess.PIPE,
      text=True,
    )
    for mode in ('reuse', 'return')
  ]
  reused, returned = (int(p.communicate()[0]) for p in processes)
  assert reused < 1_000
  assert returned > 20_000  # the default: otherwise nothing was to gain


def test_other_platforms_keep_their_allocator(monkeypatch):
  monkeypatch.setattr(jax.config, 'update', lambda *args: None)
  monkeypatch.setattr(memory, '_of_c_library', lambda name: None)
  assert not memory.reuse_pages()


@pytest.mark.parametrize('least', [False, True])
def test_a_function_compiled_ahead_computes_the_same(least):
  step = jax.jit(lambda x, y: (jnp.sin(x) + y).sum())
  x, y = jnp.arange(3.0), jnp.float32(2)
  shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
  program = memory.compile_ahead(step, shape, y, least=least)
  assert program(x, y) == step(x, y)
  assert 'op_name="jit' not in program.as_text()


def test_the_least_memory_forgets_only_what_can_be_compiled_again():
  other = jax.jit(lambda x: x + 1)
  assert other(1.0) == 2
  step = jax.jit(lambda x: jnp.sin(x))
  program = memory.compile_ahead(step, 1.0)
  assert other._cache_size() == 1
  # The next call of the step finds the program: its module has the same name.
  assert step.lower(1.0).compile().as_text() == program.as_text()
  program = memory.compile_ahead(jax.jit(lambda x: 2 * x), 1.0, least=True)
  assert other._cache_size() == 0
  assert (program(1.0), other(1.0)) == (2, 2)


def test_other_platforms_keep_names_and_programs(monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  step = jax.jit(lambda x: jnp.sin(x))
  program = memory.compile_ahead(step, 1.0, least=True)
  assert 'op_name="jit' in program.as_text()


def test_recomputed_blocks_train_with_the_least_memory(tmp_path, monkeypatch):
  tiny = functools.partial(SpikingResNet, stage_sizes=(1,), stem='single')
  monkeypatch.setitem(MODELS, 'tiny', tiny)
  asked, ahead = [], memory.compile_ahead

  def noted(*arguments, **settings):
    asked.append(settings)
    return ahead(*arguments, **settings)

  monkeypatch.setattr(memory, 'compile_ahead', noted)
  for remat in ('false', 'true'):
    # With the least memory, the second epoch compiles again.
    for epochs in (1, 2):
      arguments = (f'--config.model.remat={remat}', '--config.model.name=tiny')
      workdir, epochs = tmp_path / remat, f'--config.num_epochs={epochs}'
      assert runs.run(workdir, *arguments, epochs) == 0
  assert asked == [{'least': False}] * 2 + [{'least': True}] * 2
