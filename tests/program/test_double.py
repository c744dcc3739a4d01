"""Training with jax_enable_x64, and in double precision: rounding or a mistake.

Networks compute in float32, whose sums differ in rounding with the number of
devices. The same code in float64 shows that nothing else differs.
"""

import functools
import json
import subprocess
import sys

import double
import jax
import numpy as np
import pytest
import runs
from jobs import free_port

from mpbn_jax import sharding, train_step, training


@functools.cache
def alone(devices):
  """Returns the results of this process on some of its devices."""
  with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
    double.widen(patch.setattr)
    return double.results(sharding.make_mesh(jax.devices()[:devices]))


def check_close(ours, theirs):
  for name in ('losses', 'variables'):
    difference = np.abs(np.subtract(ours[name], theirs[name])).max()
    print(f'{name} differ by {difference:.1e}')
    assert difference < 1e-6
  assert ours['dtypes'] == theirs['dtypes'] == ['float64']


@pytest.mark.slow
def test_twenty_steps_on_four_devices_are_those_of_one():
  check_close(alone(4), alone(1))


@pytest.mark.slow
@pytest.mark.job
def test_twenty_steps_of_two_processes_are_those_of_one_device():
  port = str(free_port())
  processes = [
    subprocess.Popen(
      [sys.executable, 'tests/program/double.py', '2', str(index), port],
      cwd=runs.ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(2)
  ]
  said = [process.communicate(timeout=120) for process in processes]
  assert [process.returncode for process in processes] == [0, 0], said
  check_close(json.loads(said[0][0].splitlines()[-1]), alone(1))


def test_state_keeps_its_dtypes_with_x64():
  with jax.enable_x64(True):
    experiment = training.build(runs.config())
    state = train_step.abstract_state(experiment)
    batch = experiment.batches.abstract(experiment.batches.sizes[0])
    after, _ = train_step.make_train_step(experiment).eval_shape(state, batch)
  before = jax.tree.map(lambda leaf: leaf.dtype, state)
  assert jax.tree.map(lambda leaf: leaf.dtype, after) == before
