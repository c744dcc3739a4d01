"""Averages of the variables: their values, and who reads them."""

import functools
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from flax import traverse_util

from mpbn_jax import (
  InputError,
  arrays,
  averages,
  fold,
  load_run,
  norm,
  report,
  sharding,
  strip,
  train_step,
)
from mpbn_jax.configs import digits
from mpbn_jax.evaluation import evaluate
from mpbn_jax.experiment import build
from mpbn_jax.runs import with_weights_of

EMA = '--config.optimizer.ema=0.9'


@pytest.fixture(scope='module')
def averaged(tmp_path_factory):
  """Returns the work directory of a finished run with averages."""
  workdir = tmp_path_factory.mktemp('averaged') / 'run'
  assert runs.run(workdir, EMA) == 0
  return workdir


def _experiment(*, ema):
  config = digits.get_config()
  config.model.update({'width': 2, 'num_steps': 2, 'unroll': False})
  config.data.batch_size = 16
  config.optimizer.ema = ema
  return build(config)


def _states(experiment, *, steps):
  """Returns the states before and after each step, on the host."""
  state = train_step.init_state(experiment)
  step, states = train_step.make_train_step(experiment), [jax.device_get(state)]
  for i in range(steps):
    batch = experiment.batches.batch(i)
    state, _ = step(state, sharding.shard_batch(batch, experiment.mesh))
    states.append(jax.device_get(state))
  return states


def _named(tree):
  return traverse_util.flatten_dict(tree, sep='/')


def _saved(workdir):
  """Returns the state of the last checkpoint as nested dicts."""
  tree, _ = arrays.read(workdir / 'checkpoints' / str(runs.LAST))
  return tree['state']


def _assert_same(tree, other):
  ours, theirs = _named(tree), _named(other)
  assert ours.keys() == theirs.keys()
  for name, array in ours.items():
    np.testing.assert_array_equal(array, theirs[name], err_msg=name)


def test_averages_are_those_of_a_loop_over_the_steps():
  # The decay is 1/10, 2/11 and then 0.2.
  states = _states(_experiment(ema=0.2), steps=4)
  expected = _named(states[0].raw_variables)
  for before, state in enumerate(states[1:]):
    decay = min(0.2, (1 + before) / (10 + before))
    now = _named(state.raw_variables)
    expected = {
      name: decay * np.float64(average) + (1 - decay) * now[name]
      for name, average in expected.items()
    }
  got = _named(states[-1].variables)
  assert got.keys() == expected.keys()
  for name, average in got.items():
    assert average.dtype == now[name].dtype
    np.testing.assert_allclose(
      average, expected[name], rtol=1e-5, atol=1e-6, err_msg=name
    )


def test_constants_keep_their_bits():
  states = _states(_experiment(ema=0.2), steps=2)
  start, end = (_named(state.variables) for state in (states[0], states[-1]))
  constants = {k for k in end if k.rpartition('/')[2] in norm.CONSTANTS}
  assert len(constants) == 12  # eps of 8 norms, v_th of 4
  for name in constants:
    assert end[name].tobytes() == start[name].tobytes(), name


def test_training_does_not_read_the_averages():
  with_averages = _states(_experiment(ema=0.2), steps=3)[-1]
  without = _states(_experiment(ema=0.0), steps=3)[-1]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    with_averages.raw_variables,
    without.variables,
  )


def test_other_numbers_than_floats_are_the_latest():
  variables = {'params': {}, 'batch_stats': {'n': {'count': jnp.arange(3)}}}
  start = averages.start(variables)
  new = jax.tree.map(lambda x: x + 5, variables)
  got = averages.update(start, new, decay=0.9, step=100)
  np.testing.assert_array_equal(got['batch_stats']['n']['count'], [5, 6, 7])


def test_variables_too_short_to_average_are_refused():
  params = {'conv1': {'kernel': jnp.ones(3, jnp.bfloat16)}}
  with pytest.raises(InputError, match='got params/conv1/kernel of bfloat16'):
    averages.start({'params': params, 'batch_stats': {}})


# ---- runs


def test_run_that_was_stopped_ends_with_the_same_bits(
  averaged, tmp_path, monkeypatch
):
  workdir = tmp_path / 'run'
  stop = functools.partial(signal.raise_signal, signal.SIGTERM)
  runs.at_step(monkeypatch, 20, stop)
  assert runs.run(workdir, EMA) == 128 + signal.SIGTERM
  assert runs.run(workdir, EMA) == 0
  ours, theirs = runs.arrays_of(workdir), runs.arrays_of(averaged)
  assert ours.keys() == theirs.keys()
  for name, array in ours.items():
    assert array.tobytes() == theirs[name].tobytes(), name
  assert runs.metrics(workdir) == runs.metrics(averaged)


def test_averages_are_what_is_restored_and_loaded(averaged):
  saved = _saved(averaged)
  _, state = report.restore(runs.config(EMA), workdir=averaged)
  _assert_same(state.variables, saved['averages'])
  _assert_same(load_run(averaged).variables, saved['averages'])
  raw = saved['params']['conv1']['kernel']
  assert (raw != state.variables['params']['conv1']['kernel']).any()


def test_averages_are_what_is_validated_and_tested(averaged):
  experiment, state = report.restore(runs.config(EMA), workdir=averaged)
  logged = runs.metrics(averaged)[-1]['validation_loss']
  loss_of = functools.partial(evaluate, experiment, split='validation')
  np.testing.assert_allclose(loss_of(state.averages)['loss'], logged, rtol=1e-6)
  assert not np.isclose(loss_of(state.raw_variables)['loss'], logged)
  accuracy = evaluate(experiment, state.averages, split='test')['accuracy']
  np.testing.assert_allclose(
    accuracy, report.read_summary(averaged)['test_accuracy'], rtol=1e-6
  )


def test_averages_are_what_is_folded(averaged, tmp_path):
  workdir = shutil.copytree(averaged, tmp_path / 'run')
  assert runs.program.main(['--mode=fold', f'--workdir={workdir}']) == 0
  folded = load_run(workdir, folded='thresholds').variables
  _assert_same(folded, strip(fold(_saved(averaged)['averages'])))


@pytest.mark.parametrize('ema', [0.0, 0.9])
def test_new_run_starts_from_the_averages_of_another(averaged, ema):
  experiment = build(runs.config(f'--config.optimizer.ema={ema}'))
  state = train_step.init_state(experiment)
  started, kept = with_weights_of(state, averaged)
  assert kept == []
  theirs = _saved(averaged)['averages']
  _assert_same(started.raw_variables, theirs)
  _assert_same(started.variables, theirs)
  # The first step donates both.
  batch = sharding.shard_batch(experiment.batches.batch(0), experiment.mesh)
  train_step.make_train_step(experiment)(started, batch)


def test_another_decay_is_refused_when_resuming(averaged, capsys):
  assert runs.run(averaged, '--config.optimizer.ema=0.8') == 2
  assert 'optimizer.ema: 0.9 -> 0.8' in runs.the_error(capsys.readouterr())


def test_checkpoint_without_averages_has_the_tree_of_earlier_versions():
  # Orbax would also restore no tree with a further entry that is None.
  parts = {'step', 'params', 'batch_stats', 'opt_state', 'metrics'}
  assert _saved(runs.finished()).keys() == parts
