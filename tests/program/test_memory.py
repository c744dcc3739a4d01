"""Pages that a process keeps between calls of a program."""

import subprocess
import sys

import jax
import pytest
import runs

from mpbn_jax import memory

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
