"""Gradient accumulation: one update from groups of a batch."""

import jax
import numpy as np
import pytest

from mpbn_jax import InputError, sharding, train_step
from mpbn_jax.configs import digits
from mpbn_jax.experiment import build


def _experiment(*, accumulate, devices=1, stats_groups=1, **data):
  config = digits.get_config()
  config.model.update({'width': 2, 'num_steps': 2, 'unroll': False})
  config.model.stats_groups = stats_groups
  config.data.update({'batch_size': 16, **data})
  config.optimizer.accumulate = accumulate
  mesh = sharding.make_mesh(jax.devices()[:devices])
  return build(config, mesh=mesh)


def _step(experiment, batch):
  """Returns the state after one step, and its loss."""
  step = train_step.make_train_step(experiment)
  batch = sharding.shard_batch(batch, experiment.mesh)
  return step(train_step.init_state(experiment), batch)


def _assert_close(a, b):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), a, b
  )


@pytest.mark.parametrize(
  'settings', [{}, {'mixup': 0.4}, {'stats_groups': 2}], ids=str
)
def test_update_is_the_mean_of_groups_with_statistics_of_their_own(settings):
  whole = _experiment(accumulate=2, **settings)
  batch = whole.batches.batch(0)
  state, loss = _step(whole, batch)
  # The same groups, each trained alone from the same parameters; the running
  # statistics of the first are those that the second starts from.
  alone = _experiment(accumulate=1, **settings)
  start = train_step.init_state(alone)
  params, losses, stats = [], [], start.batch_stats
  for group in range(2):
    part = jax.tree.map(lambda x, group=group: x[group::2], batch)
    before = train_step.init_state(alone).replace(batch_stats=stats)
    after, one = train_step.make_train_step(alone)(
      before, sharding.shard_batch(part, alone.mesh)
    )
    params.append(after.params)
    losses.append(one)
    stats = after.batch_stats
  # The first step of SGD is linear in the gradient.
  mean = jax.tree.map(lambda a, b: (a + b) / 2, *params)
  _assert_close(state.params, mean)
  _assert_close(state.batch_stats, stats)
  _assert_close(loss, sum(losses) / 2)
  assert int(state.step) == 1
  assert float(state.metrics.accuracy.count) == 16


def test_groups_do_not_depend_on_the_number_of_devices():
  one, four = (_experiment(accumulate=2, devices=n) for n in (1, 4))
  batch = one.batches.batch(0)
  (state, loss), (sharded, sharded_loss) = _step(one, batch), _step(four, batch)
  _assert_close(
    (state.params, state.batch_stats, loss),
    (sharded.params, sharded.batch_stats, sharded_loss),
  )


@pytest.mark.parametrize(('accumulate', 'devices'), [(3, 1), (8, 4), (32, 1)])
def test_groups_that_do_not_divide_a_batch_are_refused(accumulate, devices):
  with pytest.raises(InputError, match='optimizer.accumulate must divide'):
    _experiment(accumulate=accumulate, devices=devices)


def test_number_of_groups_is_at_least_one():
  with pytest.raises(InputError, match='optimizer.accumulate must be at least'):
    _experiment(accumulate=0)
