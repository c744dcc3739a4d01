"""A step on four devices against the step on one."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpbn_jax import InputError, evaluation, sharding, train_step, training
from mpbn_jax.configs import digits
from mpbn_jax.models.spiking_cnn import SpikingCNN
from mpbn_jax.norm import base

COLLECTIVES = re.compile(
  r'\b(all-gather|all-to-all|collective-permute|reduce-scatter)(-start)?\('
)
ALL_REDUCE = re.compile(r'\ball-reduce(?:-start)?\(')


def _config(**model):
  config = digits.get_config()
  config.model.width = 8
  config.model.num_steps = 2
  config.model.update(model)
  config.data.batch_size = 32
  config.evaluation.batch_size = 32
  return config


@functools.cache
def _experiment(devices, membrane_norm='mpbn_channel', **model):
  mesh = sharding.make_mesh(jax.devices()[:devices])
  config = _config(membrane_norm=membrane_norm, **model)
  return training.build(config, mesh=mesh)


@functools.cache
def _compiled(devices, membrane_norm='mpbn_channel', **model):
  experiment = _experiment(devices, membrane_norm, **model)
  step = train_step.make_train_step(experiment)
  state = train_step.init_state(experiment)
  batch = sharding.shard_batch(experiment.batches.batch(0), experiment.mesh)
  return step.lower(state, batch).compile()


@functools.cache
def _three_steps(devices, membrane_norm='mpbn_channel', **model):
  experiment = _experiment(devices, membrane_norm, **model)
  compiled = _compiled(devices, membrane_norm, **model)
  state = train_step.init_state(experiment)
  losses = []
  for step in range(3):
    batch = sharding.shard_batch(
      experiment.batches.batch(step), experiment.mesh
    )
    state, loss = compiled(state, batch)
    losses.append(float(loss))
  return state, losses


NORMS = ['mpbn_channel', 'mpbn_element']


@pytest.mark.slow
@pytest.mark.parametrize('norm', NORMS)
def test_compiled_step_gathers_no_activations(norm):
  text = _compiled(4, norm).as_text()
  assert 'all-reduce' in text  # the gradients and statistics do travel
  assert not COLLECTIVES.findall(text)


@pytest.mark.slow
@pytest.mark.parametrize('norm', NORMS)
def test_each_of_four_devices_computes_a_quarter(norm):
  flops = [_compiled(n, norm).cost_analysis()['flops'] for n in (1, 4)]
  print(f'{norm}: {flops[1] / flops[0]:.4f} of the FLOPs of one device')
  assert flops[1] <= 0.27 * flops[0]


# A whole group on each device: what is left is the sum of the gradients and of
# the running statistics, which are ready together.
@pytest.mark.slow
@pytest.mark.parametrize('norm', NORMS)
def test_groups_of_devices_exchange_nothing_before_the_gradients(norm):
  layers, steps = 4, 2
  counts = [
    len(ALL_REDUCE.findall(_compiled(4, norm, **groups).as_text()))
    for groups in ({}, {'stats_groups': 4})
  ]
  print(f'{norm}: {counts[0]} all-reduces with global statistics, {counts[1]}')
  # Of each norm: mean, variance and gradients.
  assert counts[0] >= 3 * layers * (1 + steps)
  assert counts[1] == 1
  assert not COLLECTIVES.findall(_compiled(4, norm, stats_groups=4).as_text())


def test_mean_and_second_moment_travel_together(monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
  batch = sharding.along_batch(sharding.make_mesh(jax.devices()))

  @functools.partial(jax.jit, in_shardings=(batch, None))
  def of_batch(x, near):
    return base.moments(x, axes=(0, 1), near=near)

  text = of_batch.lower(jnp.ones((8, 3, 2)), jnp.ones(2)).compile().as_text()
  assert len(ALL_REDUCE.findall(text)) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
  ('norm', 'groups'),
  [*((norm, {}) for norm in NORMS), (NORMS[0], {'stats_groups': 4})],
  ids=str,
)
def test_statistics_and_loss_are_those_of_one_device(norm, groups):
  (one, losses), (four, other) = (
    _three_steps(n, norm, **groups) for n in (1, 4)
  )
  np.testing.assert_allclose(losses, other, rtol=0, atol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5),
    jax.device_get(one.batch_stats),
    jax.device_get(four.batch_stats),
  )


def test_evaluation_on_four_devices_is_that_of_one():
  one, four = _experiment(1), _experiment(4)
  variables = train_step.init_state(one).variables
  scores = evaluation.evaluate(one, variables, split='test')
  variables = train_step.init_state(four).variables
  others = evaluation.evaluate(four, variables, split='test')
  assert scores['accuracy'] == others['accuracy']
  np.testing.assert_allclose(scores['loss'], others['loss'], rtol=1e-6)


def test_network_is_traced_once_to_check_it_and_to_train_it(monkeypatch):
  traced, encoder = [], SpikingCNN.encoder

  def counted(network):
    traced.append(network)
    return encoder(network)

  monkeypatch.setattr(SpikingCNN, 'encoder', counted)
  # Of a network that no other test has compiled.
  mesh = sharding.make_mesh(jax.devices())
  experiment = training.build(_config(tau=0.125), mesh=mesh)
  init = train_step.make_init(experiment)
  step = train_step.make_train_step(experiment)
  train_step.check_trainable(experiment, init=init, step=step)
  state = init(train_step.init_key(experiment))
  batch = sharding.shard_batch(experiment.batches.batch(0), experiment.mesh)
  step(state, batch)
  assert len(traced) == 2  # the initialization and the step


@pytest.mark.parametrize('groups', [3, 64])
def test_groups_that_do_not_divide_the_batch_are_refused(groups):
  with pytest.raises(
    InputError, match=f'model.stats_groups must divide the 32 .*got {groups}'
  ):
    training.build(_config(stats_groups=groups))


def test_groups_over_parts_of_devices_are_refused():
  config = _config(stats_groups=6)
  config.data.batch_size = 48
  with pytest.raises(
    InputError, match='divide the 4 devices or be a mult.*stats_groups=4'
  ):
    training.build(config)


def test_number_of_groups_is_at_least_one():
  with pytest.raises(InputError, match='model.stats_groups must be at least 1'):
    training.build(_config(stats_groups=0))


def test_batch_that_does_not_divide_says_by_what():
  config = _config()
  config.data.batch_size = 30
  with pytest.raises(
    InputError,
    match='data.batch_size must be divisible by the 4 devices, got 30: use',
  ):
    training.build(config)
