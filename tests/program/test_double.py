"""Training with jax_enable_x64, and in double precision: rounding or a mistake.

Networks compute in float32, whose sums differ in rounding with the number of
devices. The same code in float64 shows that nothing else differs.
"""

import functools
import tempfile
from pathlib import Path

import double
import jax
import numpy as np
import pytest
import runs
from jobs import Job, finished

from mpbn_jax import sharding, train_step, training

STEPS = 20
# A network with residual blocks; ResNet20 diverges at a higher rate.
RESNET = (
  '--config.model.name=preact_resnet',
  '--config.model.depth=10',
  '--config.model.dtype=float64',
  '--config.num_epochs=1',
  '--config.data.train_size=640',
  '--config.data.batch_size=32',
  '--config.optimizer.learning_rate=0.02',
)


def arrays_in(workdir):
  """Returns the arrays of the last checkpoint of a run, as they are stored."""
  with jax.enable_x64(True):
    return runs.arrays_of(workdir, step=STEPS)


@functools.cache
def alone(devices):
  """Returns the arrays that this process trains on some of its devices."""
  with (
    tempfile.TemporaryDirectory() as folder,
    jax.enable_x64(True),
    pytest.MonkeyPatch.context() as patch,
  ):
    double.widen(patch.setattr)
    mesh = sharding.make_mesh(jax.devices()[:devices])
    training.train(runs.config(*RESNET), workdir=Path(folder), mesh=mesh)
    return arrays_in(Path(folder))


def check_close(ours, theirs):
  assert ours.keys() == theirs.keys()
  trained = [name for name in ours if 'params' in name or 'stats' in name]
  assert {ours[name].dtype for name in trained} == {np.dtype('float64')}
  differences = {
    name: np.abs(array - theirs[name]).max() for name, array in ours.items()
  }
  print(f'arrays differ by {max(differences.values()):.1e}')
  assert max(differences.values()) < 1e-6, differences


@pytest.mark.slow
def test_twenty_steps_on_four_devices_are_those_of_one():
  check_close(alone(4), alone(1))


@pytest.mark.slow
@pytest.mark.job
def test_twenty_steps_of_two_processes_are_those_of_one_device(
  tmp_path, monkeypatch
):
  monkeypatch.setenv('JAX_ENABLE_X64', 'true')
  monkeypatch.setenv('PYTHONPATH', 'tests/program')
  config = '--config=tests/program/double.py'
  workdir = tmp_path / 'run'
  finished(Job(tmp_path / 'job', config, *RESNET, f'--workdir={workdir}'))
  check_close(arrays_in(workdir), alone(1))


def test_state_keeps_its_dtypes_with_x64():
  with jax.enable_x64(True):
    experiment = training.build(runs.config())
    state = train_step.abstract_state(experiment)
    batch = experiment.batches.abstract(experiment.batches.sizes[0])
    after, _ = train_step.make_train_step(experiment).eval_shape(state, batch)
  before = jax.tree.map(lambda leaf: leaf.dtype, state)
  assert jax.tree.map(lambda leaf: leaf.dtype, after) == before
