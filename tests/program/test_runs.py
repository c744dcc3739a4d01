"""Runs know themselves: their configuration, their network, their weights."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs

from mpbn_jax import InputError, build_model, command_line, load_run
from mpbn_jax.config_files import load
from mpbn_jax.runs import with_weights_of
from mpbn_jax.train_step import start_state


def _predict(run):
  x = np.random.default_rng(0).uniform(0, 16, (16, *run.spec.image_shape))
  images = run.spec.normalize(jnp.asarray(x, jnp.float32))
  return np.asarray(run.model.apply(run.variables, images, train=False))


def test_without_config_a_run_goes_on_with_its_own(tmp_path, capsys):
  workdir = shutil.copytree(runs.finished(), tmp_path / 'run')
  command = command_line.parse([f'--workdir={workdir}', '--mode=evaluate'])
  assert command.config.model.width == 2  # of TINY, not of configs/digits.py
  assert command.workdir == workdir
  before = (workdir / 'config.json').read_bytes()
  assert runs.program.main(['--mode=evaluate', f'--workdir={workdir}']) == 0
  assert 'width 2' in capsys.readouterr().out
  assert runs.program.main([f'--workdir={workdir}']) == 0
  assert f'{workdir} is trained: step 32 of 32' in capsys.readouterr().out
  assert (workdir / 'config.json').read_bytes() == before


def test_config_json_is_a_configuration(tmp_path):
  workdir = runs.finished()
  file = workdir / 'config.json'
  command = command_line.parse([f'--config={file}', '--config.seed=3'])
  assert (command.config.model.width, command.config.seed) == (2, 3)
  assert command.workdir == workdir  # the run's own, unless another is given
  other = command_line.parse([f'--config={file}', f'--workdir={tmp_path}/x'])
  assert other.workdir == tmp_path / 'x'
  assert load(file) == other.config


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda c: c.pop('seed'), "got no 'seed'"),
    (lambda c: c.update(more=1), "got the unknown key 'more'"),
    (lambda c: c.update(seed='x'), 'a value of another type'),
    (lambda c: c.pop('format'), 'format 1, and this version .* format 2'),
    (lambda c: c['model'].update(name='resnet21'), "unknown model 'resnet21'"),
  ],
)
def test_config_json_that_is_none_is_one_line(change, message, tmp_path):
  workdir = shutil.copytree(runs.finished(), tmp_path / 'run')
  content = json.loads((workdir / 'config.json').read_text())
  change(content)
  (workdir / 'config.json').write_text(json.dumps(content))
  with pytest.raises(InputError, match=message):
    load_run(workdir)


def test_run_is_loaded_trained_and_folded(tmp_path, capsys):
  workdir = shutil.copytree(runs.finished(), tmp_path / 'run')
  trained = load_run(workdir)
  assert trained.spec.name == 'digits'
  with pytest.raises(InputError, match='got none: run --mode=fold --workdir='):
    load_run(workdir, folded='thresholds')
  assert runs.program.main(['--mode=fold', f'--workdir={workdir}']) == 0
  folded = load_run(workdir, folded='thresholds')
  assert 'threshold' in folded.variables
  np.testing.assert_array_equal(_predict(trained), _predict(folded))
  best = load_run(workdir, checkpoint='best')
  assert jax.tree.structure(best.variables) == jax.tree.structure(
    trained.variables
  )


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'checkpoint': 'first'}, "unknown checkpoint 'first'"),
    ({'folded': 'kernels'}, "unknown fold 'kernels'"),
  ],
)
def test_unknown_parts_of_a_run_are_named(options, message):
  with pytest.raises(InputError, match=message):
    load_run(runs.finished(), **options)


def test_folder_without_a_run_is_refused(tmp_path):
  with pytest.raises(InputError, match='without a config.json: pass the'):
    load_run(tmp_path)


def test_new_run_starts_from_the_weights_of_another(tmp_path, capsys):
  new = tmp_path / 'new'
  other = runs.finished()
  before = runs.snapshot(other)
  # Nothing is learned: the weights of the other run are those of this one.
  arguments = [f'--init_from={other}', '--config.optimizer.learning_rate=1e-30']
  assert runs.run(new, *arguments) == 0
  assert f'initial weights from {other}\n' in capsys.readouterr().out
  theirs, ours = (load_run(path).variables for path in (other, new))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
    theirs['params'],
    ours['params'],
  )
  stored = json.loads((new / 'config.json').read_text())
  assert stored['init_from'] == str(other)
  assert runs.snapshot(other) == before
  # Resumed, it does not start again.
  assert runs.run(new, *arguments) == 0
  assert 'initial weights' not in capsys.readouterr().out


def test_another_number_of_classes_gets_a_new_head():
  settings = {'width': 2, 'num_steps': 2, 'num_classes': 5}
  model = build_model({'name': 'spiking_cnn', **settings})
  x = jnp.zeros((1, 8, 8, 1))
  variables = jax.jit(lambda: model.init(jax.random.key(1), x, train=False))()
  state = start_state(variables, optimizer=optax.identity())
  started, new = with_weights_of(state, runs.finished())
  assert new == ['params/head/bias', 'params/head/kernel']
  theirs = load_run(runs.finished()).variables
  for name, layer in started.params.items():
    expected = variables['params'] if name == 'head' else theirs['params']
    jax.tree.map(np.testing.assert_array_equal, layer, expected[name])
  jax.tree.map(
    np.testing.assert_array_equal, started.batch_stats, theirs['batch_stats']
  )


def test_weights_of_another_network_are_refused_by_name(tmp_path, capsys):
  new = tmp_path / 'new'
  arguments = [f'--init_from={runs.finished()}', '--config.model.width=4']
  assert runs.run(new, *arguments) == 2
  error = runs.the_error(capsys.readouterr())
  assert not new.exists()
  assert 'batch_stats/conv1/bn/mean has shape (2,), expected (4,)' in error
  assert 'config.init_from' in error
  arguments = [f'--init_from={runs.finished()}', '--config.model.v_th=0.7']
  assert runs.run(new, *arguments) == 2
  error = runs.the_error(capsys.readouterr())
  assert 'mpbn_channel/v_th is 0.5, expected 0.7' in error
