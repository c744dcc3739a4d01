"""Pages that a process keeps between calls of a program, and their number."""

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


for call in range(13):
  if call == 10:
    before = faults()
  double(x).block_until_ready()
print(faults() - before)
"""


GROWTH = """
import resource
import sys

import jax
import jax.numpy as jnp
import numpy as np

from mpbn_jax import memory

memory.reuse_pages()
if sys.argv[1] == 'without room':
  memory._make_room = lambda: None


@jax.jit
def step(x):  # 144 MiB of temporary arrays
  return jnp.outer(x, x) @ x / x.size


x = jnp.ones(6 * 1024)
memory.compile_ahead(step, x)
held, peaks = [], []
for _ in range(8):
  x = step(x).block_until_ready()
  held.append(np.ones(1 << 18))  # 2 MiB, more than there is between others
  peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
print(peaks[-1] - peaks[0])
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='of glibc')
def test_what_is_kept_between_steps_makes_no_step_take_new_pages():
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', GROWTH, mode],
      cwd=runs.ROOT,
      stdout=subprocess.PIPE,
      text=True,
    )
    for mode in ('with room', 'without room')
  ]
  grown, without = (int(p.communicate()[0]) for p in processes)
  assert grown < 32  # MiB; 16 are kept
  assert without > 64  # otherwise the room is of no use


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
