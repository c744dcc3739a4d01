"""Runs that start from weights of the reference, and bad input."""

import functools
import hashlib
import shutil

import common
import jax
import numpy as np
import pytest
import runs
from runs import the_error

import main as program
from mpbn_jax import build_model, command_line, load_run, report
from mpbn_jax.checkpoint import steps_in
from mpbn_jax.interop.torch import to_reference

KEY = '--config.'
# The smallest of them, at one step.
SMALL = 'resnet19_t1'
RANDOM_DATA = (
  '--config=configs/cifar10.py',
  KEY + 'data.fake=4',
  KEY + 'data.batch_size=4',
  KEY + 'evaluation.batch_size=4',
  KEY + 'num_epochs=1',
  KEY + 'log.tensorboard=false',
  KEY + 'model.unroll=false',
)


def network(file):
  """Returns the arguments that describe a golden network.

  The ImageNet one has 10 classes too, and runs on smaller images as well.
  """
  config, *_ = common.golden(file)
  return [f'{KEY}model.{key}={value}' for key, value in config.items()]


def run(workdir, *arguments, file=SMALL):
  """Runs main.py in this process; returns its exit code."""
  return program.main(
    [*RANDOM_DATA, *network(file), f'--workdir={workdir}', *arguments]
  )


def import_file(workdir, weights, *arguments, file=SMALL):
  return run(
    workdir, '--mode=import', f'--checkpoint={weights}', *arguments, file=file
  )


def golden_path(file=SMALL):
  return common.GOLDEN / f'{file}.npz'


def golden_state(file=SMALL):
  return common.golden_state(dict(np.load(golden_path(file))))


@pytest.fixture(scope='module')
def imported(tmp_path_factory):
  """Returns {file: work directory}; not to be changed."""
  directory = tmp_path_factory.mktemp('imported')
  for file in common.GOLDEN_NETWORKS:
    assert import_file(directory / file, golden_path(file), file=file) == 0
  return {file: directory / file for file in common.GOLDEN_NETWORKS}


@pytest.fixture
def workdir(imported, tmp_path):
  return shutil.copytree(imported[SMALL], tmp_path / 'run')


def variables_in(workdir, file=SMALL):
  _, config, *_ = command_line.parse([*RANDOM_DATA, *network(file)])
  _, state = report.restore(config, workdir=workdir)
  return state.variables


# ---- what import makes


# Every network folds in tests/models/test_golden_folds.py.
@pytest.mark.parametrize('file', [SMALL, 'vgg16_t2'])
def test_imported_network_folds_without_a_differing_spike(
  file, imported, tmp_path
):
  workdir = shutil.copytree(imported[file], tmp_path / 'run')
  assert run(workdir, '--mode=fold', file=file) == 0
  summary = report.read_summary(workdir)
  assert summary['step'] == 0
  assert summary['spikes_compared'] > 0
  assert summary['spikes_differing'] == 0
  assert summary['max_logit_difference'] == 0
  assert any(rate > 0 for rate in summary['firing_rate'].values())
  assert (workdir / 'folded' / '0').is_dir()


@pytest.mark.parametrize('file', common.GOLDEN_NETWORKS)
def test_checkpoint_holds_the_variables_of_the_file(file, imported):
  _, _, variables, *_ = common.golden(file)
  restored = variables_in(imported[file], file)
  jax.tree.map(np.testing.assert_array_equal, restored, variables)


def test_import_says_where_and_what_next(tmp_path, capsys):
  assert import_file(tmp_path / 'run', golden_path()) == 0
  out, err = capsys.readouterr()
  assert err == ''
  assert f'imported: {tmp_path}/run/checkpoints/0\n' in out
  assert '--mode=evaluate' in out
  checksum = hashlib.sha256(golden_path().read_bytes()).hexdigest()
  assert f'sha256 of {golden_path()}: {checksum}\n' in out


def test_evaluate_accepts_the_import(workdir):
  before = runs.snapshot(workdir)
  assert run(workdir, '--mode=evaluate') == 0
  assert report.read_summary(workdir)['spikes_differing'] == 0
  after = runs.snapshot(workdir)
  assert after.keys() - before.keys() == {'summary.json'}


def test_the_best_checkpoint_of_an_import_is_not_known(workdir, capsys):
  best = KEY + 'evaluation.checkpoint=best'
  assert run(workdir, '--mode=evaluate', best) == 2
  assert 'measured on validation' in the_error(capsys.readouterr())


@pytest.mark.slow
def test_training_goes_on_from_the_import(workdir, capsys):
  before = variables_in(workdir)
  small_steps = KEY + 'log.every_steps=1'
  assert run(workdir, small_steps) == 0
  assert 'continues: step 0 of 1' in capsys.readouterr().out
  assert report.read_summary(workdir)['step'] == 1
  assert (workdir / 'metrics.jsonl').exists()
  after = variables_in(workdir)
  moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), before, after)
  # By a step of the rate 0.1, and not to other initial values.
  assert 0 < max(jax.tree.leaves(moved['params'])) < 1


def test_averages_of_an_import_start_from_it(imported, tmp_path):
  workdir = tmp_path / 'run'
  ema = KEY + 'optimizer.ema=0.9'
  assert import_file(workdir, golden_path(), ema) == 0
  jax.tree.map(
    np.testing.assert_array_equal,
    load_run(workdir).variables,
    load_run(imported[SMALL]).variables,
  )


def test_module_prefix_and_batch_counters_are_ignored(imported, tmp_path):
  state = {f'module.{k}': array for k, array in golden_state().items()}
  state['module.model.bn1.bn.num_batches_tracked'] = np.int64(3)
  np.savez(tmp_path / 'a.npz', **state)
  assert import_file(tmp_path / 'run', tmp_path / 'a.npz') == 0
  jax.tree.map(
    np.testing.assert_array_equal,
    variables_in(tmp_path / 'run'),
    variables_in(imported[SMALL]),
  )


def test_data_are_not_read(tmp_path, monkeypatch):
  from mpbn_jax import experiment

  monkeypatch.setattr(experiment, 'load_dataset', None)
  assert import_file(tmp_path / 'run', golden_path(), KEY + 'data.fake=0') == 0


def test_network_of_event_frames_is_imported(tmp_path):
  state = golden_state()
  kernel = 'model.conv1.pool.weight'
  np.savez(tmp_path / 'a.npz', **state | {kernel: state[kernel][:, :2]})
  dvs = KEY + 'data.name=cifar10_dvs'
  assert import_file(tmp_path / 'run', tmp_path / 'a.npz', dvs) == 0


# ---- errors


def test_import_without_a_file_is_an_error(tmp_path, capsys):
  assert run(tmp_path / 'run', '--mode=import') == 2
  message = the_error(capsys.readouterr())
  assert '--mode=import needs the weights, got no --checkpoint' in message
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('mode', ['train', 'evaluate', 'fold'])
def test_a_file_without_import_is_an_error(mode, tmp_path, capsys):
  arguments = [f'--mode={mode}', f'--checkpoint={golden_path()}']
  assert run(tmp_path / 'run', *arguments) == 2
  message = the_error(capsys.readouterr())
  assert f'only for --mode=import, got --mode={mode}' in message
  assert not (tmp_path / 'run').exists()


def test_all_entries_that_do_not_fit_are_named_at_once(tmp_path, capsys):
  state = golden_state()
  state.pop('model.fc.conv.bias')
  state['model.fc.conv.weight'] = state['model.fc.conv.weight'][:7]
  state['model.more'] = np.zeros(3)
  np.savez(tmp_path / 'a.npz', **state)
  assert import_file(tmp_path / 'run', tmp_path / 'a.npz') == 2
  message = the_error(capsys.readouterr())
  assert 'missing model.fc.conv.bias' in message
  assert 'model.fc.conv.weight has shape (7, ' in message
  assert 'extra model.more' in message
  assert not (tmp_path / 'run').exists()


def test_image_of_another_depth_names_the_kernel(tmp_path, capsys):
  digits = KEY + 'data.name=digits'
  assert import_file(tmp_path / 'run', golden_path(), digits) == 2
  message = the_error(capsys.readouterr())
  assert "does not fit 'digits', images of 8x8 with 1 channels" in message
  assert 'params/stem_conv1/kernel has shape (3, 3, 3, 8)' in message
  assert not (tmp_path / 'run').exists()


def test_element_norms_of_another_image_size_are_named(tmp_path, capsys):
  config = common.golden(SMALL)[0] | {'membrane_norm': 'mpbn_element'}
  init = functools.partial(build_model(config).init, train=False)
  image = jax.ShapeDtypeStruct((1, 16, 16, 3), np.float32)
  shapes = jax.eval_shape(init, jax.random.key(0), image)
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)
  np.savez(tmp_path / 'a.npz', **to_reference(zeros, config))
  element = KEY + 'model.membrane_norm=mpbn_element'
  assert import_file(tmp_path / 'run', tmp_path / 'a.npz', element) == 2
  message = the_error(capsys.readouterr())
  leaf = 'batch_stats/stem_lif1/mpbn_element/mean'
  assert f'{leaf} has shape (16, 16, 8), expected (32, 32, 8)' in message
  assert 'images of 32x32 with 3 channels (data.name)' in message
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('value', [np.nan, np.inf, 1e300])
def test_weights_that_are_not_finite_are_named(value, tmp_path, capsys):
  state = golden_state()
  bias = np.asarray(state['model.fc.conv.bias'], np.float64)
  bias[3] = value
  np.savez(tmp_path / 'a.npz', **state | {'model.fc.conv.bias': bias})
  assert import_file(tmp_path / 'run', tmp_path / 'a.npz') == 2
  message = the_error(capsys.readouterr())
  assert 'model.fc.conv.bias with NaN or infinity' in message
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('argument', 'fragment'),
  {
    'model.name=spiking_cnn': "unknown architecture of the reference 'spiking",
    'model.num_classes=7': 'model.num_classes must be 10',
    'data.name=mnist': "unknown dataset 'mnist'",
    'model.tau=2': 'kept fraction',
    'data.batch_size=6': 'divisible by the 4 devices',
    'optimizer.learning_rate=0': 'must be positive',
  }.items(),
)
def test_bad_configuration_is_refused(argument, fragment, tmp_path, capsys):
  assert import_file(tmp_path / 'run', golden_path(), KEY + argument) == 2
  assert fragment in the_error(capsys.readouterr())
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('changed', [(), (KEY + 'model.tau=0.5',)])
def test_directory_with_a_run_is_refused(changed, workdir, capsys):
  before = runs.snapshot(workdir)
  assert import_file(workdir, golden_path(), *changed) == 2
  message = the_error(capsys.readouterr())
  assert 'expected a --workdir for a new run' in message
  assert 'holds a run (checkpoint 0): choose another' in message
  assert runs.snapshot(workdir) == before


def test_directory_with_another_configuration_is_refused(workdir, capsys):
  shutil.rmtree(workdir / 'checkpoints')
  before = runs.snapshot(workdir)
  assert import_file(workdir, golden_path(), KEY + 'model.tau=0.5') == 2
  assert 'model.tau: 0.25 -> 0.5' in the_error(capsys.readouterr())
  assert runs.snapshot(workdir) == before


def test_import_that_was_killed_can_be_repeated(workdir):
  checkpoints = workdir / 'checkpoints'
  (checkpoints / '0').rename(checkpoints / '.0.1-a.tmp')
  (checkpoints / 'index.json').write_text('{"steps": []}')
  assert import_file(workdir, golden_path()) == 0
  assert steps_in(checkpoints) == [0]
  assert sorted(p.name for p in checkpoints.iterdir()) == [
    '0',
    'index.json',
  ]


def test_unwritable_workdir_is_one_line(tmp_path, capsys):
  (tmp_path / 'file').write_text('mine')
  assert import_file(tmp_path / 'file', golden_path()) == 2
  message = the_error(capsys.readouterr())
  assert 'expected a work directory that can be written' in message
