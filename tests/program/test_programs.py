"""Programs that equal experiments share, and those that they must not."""

import dataclasses

import common
import jax
import numpy as np
import pytest

from mpbn_jax import NORMS, build_model, programs, train_step, training
from mpbn_jax.configs import digits
from mpbn_jax.evaluation import evaluate
from mpbn_jax.experiment import build


def _config(**changes):
  config = digits.get_config()
  config.model.update({'width': 2, 'num_steps': 1})
  for key, value in changes.items():
    config.update_from_flattened_dict({key.replace('__', '.'): value})
  return config


def test_equal_experiments_share_their_programs():
  # The seed is an argument of the compiled functions.
  one, other = build(_config()), build(_config(seed=1))
  for make in (train_step.make_init, train_step.make_train_step):
    assert make(one) is make(other)


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('model__tau', 0.5),
    ('loss__label_smoothing', 0.1),
    ('loss__name', 'tet'),
    ('loss__regularizer', 0.1),
    ('loss__distillation_temperature', 3.0),
    ('optimizer__ema', 0.9),
    ('optimizer__name', 'adamw'),
    ('optimizer__schedule', 'linear'),
    ('optimizer__momentum', 0.8),
    ('optimizer__learning_rate', 0.3),
    ('num_epochs', 7),
  ],
)
def test_another_setting_is_another_program(key, value):
  one, other = build(_config()), build(_config(**{key: value}))
  make = train_step.make_train_step
  assert make(one) is not make(other)


def test_other_devices_are_another_program():
  config = _config()
  one = build(config)
  mesh = training.sharding.make_mesh(jax.devices()[:1])
  other = build(config, mesh=mesh)
  for make in (train_step.make_init, train_step.make_train_step):
    assert make(one) is not make(other)


@pytest.mark.usefixtures('registries')
def test_norm_that_replaces_another_is_the_one_that_is_evaluated():
  config = _config(model__conv_norm='bn')
  experiment = build(config)
  variables = train_step.init_state(experiment).variables
  before = evaluate(experiment, variables, split='test')
  NORMS['bn'] = dataclasses.replace(
    NORMS['bn'], evaluate=lambda params, stats, x: x * 0
  )
  after = evaluate(build(config), variables, split='test')
  assert after['loss'] != before['loss']


def test_arguments_that_cannot_be_hashed_are_not_remembered():
  made = []

  @programs.shared
  def make(array):
    made.append(array)
    return len(made)

  assert [make((1,)), make((1,)), make([1]), make([1])] == [1, 1, 2, 3]


def test_compared_networks_are_compiled_once():
  model = build_model({'name': 'spiking_cnn', 'width': 2, 'num_steps': 1})
  traced = []

  @programs.shared
  def make(model):
    @jax.jit
    def run(variables, x):
      traced.append(model)
      return model.apply(variables, x, train=False)

    return run

  x = common.images()
  variables = common.random_variables(model, x)
  results = [make(network)(variables, x) for network in (model, model.clone())]
  assert len(traced) == 1
  np.testing.assert_array_equal(*results)
