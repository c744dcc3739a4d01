"""Training with jax_enable_x64, and in double precision: rounding or a mistake.

Networks compute in float32, whose sums differ in rounding with the number of
devices. The same code in float64 shows that nothing else differs.
"""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from mpbn_jax import sharding, train_step, training
from mpbn_jax.models import network

STEPS = 20
RESNET = (
  '--config.model.name=resnet20',
  '--config.data.batch_size=32',
  '--config.optimizer.learning_rate=0.02',
)


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


@pytest.fixture
def double(x64, monkeypatch):
  """Makes float64 of float32 in the modules of the package."""
  twice = types.SimpleNamespace(**{**vars(jnp), 'float32': jnp.float64})
  for name, module in list(sys.modules.items()):
    if name.startswith('mpbn_jax.') and getattr(module, 'jnp', None) is jnp:
      monkeypatch.setattr(module, 'jnp', twice)
  monkeypatch.setattr(network, 'DTYPES', ('float64',))


def trained(config, devices):
  """Returns (losses, state) after 20 steps."""
  mesh = sharding.make_mesh(jax.devices()[:devices])
  experiment = training.build(config, mesh=mesh)
  step = train_step.make_train_step(experiment)
  state, losses = train_step.init_state(experiment), []
  for i in range(STEPS):
    batch = sharding.shard_batch(experiment.batches.batch(i), mesh)
    state, loss = step(state, batch)
    losses.append(float(loss))
  return losses, jax.device_get(state)


@pytest.mark.slow
@pytest.mark.usefixtures('double')
def test_twenty_steps_on_four_devices_are_those_of_one():
  config = runs.config(*RESNET)
  config.model.dtype = 'float64'
  (losses, one), (others, four) = (trained(config, n) for n in (1, 4))
  print('losses differ by', np.abs(np.subtract(losses, others)).max())
  np.testing.assert_allclose(losses, others, rtol=0, atol=1e-6)
  for ours, theirs in zip(
    *(jax.tree.leaves(s.raw_variables) for s in (one, four)), strict=True
  ):
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.usefixtures('x64')
def test_state_keeps_its_dtypes_with_x64():
  experiment = training.build(runs.config())
  state = train_step.abstract_state(experiment)
  batch = experiment.batches.abstract(experiment.batches.sizes[0])
  after, _ = train_step.make_train_step(experiment).eval_shape(state, batch)
  assert jax.tree.map(lambda leaf: leaf.dtype, after) == jax.tree.map(
    lambda leaf: leaf.dtype, state
  )
