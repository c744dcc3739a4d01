"""Pages that a process keeps between calls of a program."""

import subprocess
import sys

import jax
import pytest
import runs

from mpbn_jax import memory

FAULTS = """
import resource
import statistics
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


taken = []
for call in range(20):
  before = faults()
  double(x).block_until_ready()
  taken.append(faults() - before)
# A single call may find that something small lies where its result was.
print(int(statistics.median(taken[10:])))
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
  assert reused < 400
  assert returned > 7_000  # the default: otherwise nothing was to gain


def test_other_platforms_keep_their_allocator(monkeypatch):
  monkeypatch.setattr(jax.config, 'update', lambda *args: None)
  monkeypatch.setattr(memory, '_of_c_library', lambda name: None)
  assert not memory.reuse_pages()
