"""Training of the paper's experiments, at width 4 on fake data."""

import common
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpbn_jax import sharding, training
from mpbn_jax.configs import paper
from mpbn_jax.datasets import get_spec
from mpbn_jax.evaluation import evaluate
from mpbn_jax.train_step import start_state


def _experiment(row, num_steps):
  config = paper.get_config(f'{row.names[0]}@code')
  config.model.width = 4
  config.model.num_steps = num_steps
  config.model.unroll = False  # the compile time does not grow with T
  config.data.fake = 4
  config.data.batch_size = config.evaluation.batch_size = 4
  return training.build(config, mesh=sharding.make_mesh(jax.devices()[:1]))


def _program(row):
  """Returns what tells the compiled programs of rows apart: not T, nor K."""
  config = paper.get_config(f'{row.names[0]}@code')
  shape = get_spec(config.data.name).image_shape
  return config.model.name, shape, config.model.membrane_norm


def _covering():
  """Returns rows of every network, kind of input and membrane norm.

  Each is in one of them; that they combine is what other tests hold
  (tests/models/test_family.py). ResNet34 is ResNet18 with more blocks.
  """
  rows, covered = [], {('network', 'resnet34')}
  while left := [row for row in paper.ROWS if _kinds(row) - covered]:
    rows.append(max(left, key=lambda row: len(_kinds(row) - covered)))
    covered |= _kinds(rows[-1])
  return rows


def _kinds(row):
  network, shape, norm = _program(row)
  return {('network', network), ('input', shape), ('norm', norm)}


ROWS = _covering()


@pytest.mark.parametrize(
  'row', paper.ROWS, ids=[row.names[0] for row in paper.ROWS]
)
def test_every_row_builds(row):
  experiment = _experiment(row, row.num_steps)
  assert experiment.model.num_steps == row.num_steps


@pytest.mark.slow
@pytest.mark.parametrize('row', ROWS, ids=[row.names[0] for row in ROWS])
def test_row_trains_two_steps_and_evaluates(row):
  experiment = _experiment(row, row.num_steps)
  step = training.make_train_step(experiment)
  x = jnp.zeros((1, *experiment.dataset.example_shape))
  variables = common.random_variables(experiment.model, x)
  initial = start_state(variables, optimizer=experiment.optimizer)
  initial = jax.device_get(initial)  # the step donates its own
  state = initial
  for i in range(2):
    state, loss = step(state, experiment.batches.batch(i))
    assert np.isfinite(loss)
  for name in ('params', 'batch_stats'):
    moved = jax.tree.map(
      lambda a, b: bool((a != b).any()),
      getattr(initial, name),
      jax.device_get(getattr(state, name)),
    )
    assert any(jax.tree.leaves(moved)), name
  scores = evaluate(experiment, state.variables, split='test')
  assert np.isfinite(scores['loss'])
