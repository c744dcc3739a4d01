"""Studies that are stopped in any way and started again."""

import pathlib
import shutil
import signal
import subprocess
import sys

import pytest
import runs
import small_study

import main as program
from mpbn_jax import lock
from mpbn_jax.studies import results, runner, tables

FILE = pathlib.Path(small_study.__file__)
PRETENDED = FILE.with_name('pretended_worker.py')
RUN = f"""
import sys
from mpbn_jax import __main__
from mpbn_jax.studies import runner
runner.WORKER = [{str(PRETENDED)!r}]
sys.exit(__main__.main(sys.argv[1:]))
"""


def _start(folder):
  """Starts a study with a grid, whose trainings only pretend."""
  return subprocess.Popen(
    [sys.executable, '-c', RUN, *_arguments(folder, f'{FILE}:grid')],
    cwd=runs.ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def _arguments(folder, config):
  return [
    '--mode=reproduce',
    f'--config={config}',
    f'--workdir={folder / "study"}',
    f'--results={folder / "small.json"}',
    '--processes=2',
  ]


def _until_done(process, count):
  for line in process.stdout:
    if line.startswith(f'[{count}/8]'):
      return
  raise AssertionError(process.stderr.read())


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """Returns (folder, output) of a study that was not stopped."""
  folder = tmp_path_factory.mktemp('whole')
  process = _start(folder)
  output, error = process.communicate()
  assert process.returncode == 0, error
  return folder, output


def test_a_stopped_study_repeats_nothing_and_ends_with_the_same_table(
  tmp_path, whole
):
  process = _start(tmp_path)
  _until_done(process, 2)
  process.kill()
  process.communicate()
  assert len(results.read(tmp_path / 'small.json')['tuning']) == 2

  process = _start(tmp_path)
  _until_done(process, 5)
  process.send_signal(signal.SIGTERM)
  _, error = process.communicate()
  assert process.returncode == 128 + signal.SIGTERM
  assert 'of 8 runs done' in error
  assert 'run the same command again to resume' in error

  process = _start(tmp_path)
  output, error = process.communicate()
  assert process.returncode == 0, error
  table = whole[1][whole[1].index('arm ') : whole[1].index('written')]
  assert table in output
  ours, theirs = (f / 'small.md' for f in (tmp_path, whole[0]))
  assert ours.read_text() == theirs.read_text()
  ended = list((tmp_path / 'study').glob('*/finished'))
  assert [path.read_text() for path in ended] == ['.'] * 8


def test_arms_choose_by_validation_with_seeds_that_are_not_reported(whole):
  content = results.read(whole[0] / 'small.json')
  assert content['chosen'] == {
    'none': {'optimizer.learning_rate': 0.05},
    'mpbn_channel': {'optimizer.learning_rate': 0.1},
  }
  assert {run['seed'] for run in content['tuning']} == {1000}
  assert {run['seed'] for run in content['runs']} == {0, 1}
  assert len(content['tuning']) == len(content['runs']) == 4


def test_a_finished_study_trains_nothing_even_without_its_work_directory(
  whole, tmp_path, capsys
):
  shutil.copy(whole[0] / 'small.json', tmp_path)
  assert program.main(_arguments(tmp_path, f'{FILE}:grid')) == 0
  assert capsys.readouterr().out.startswith('arm ')
  assert not list((tmp_path / 'study').glob('*/*'))


def test_more_seeds_only_add_runs(whole, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(runner, 'WORKER', [str(PRETENDED)])
  shutil.copy(whole[0] / 'small.json', tmp_path)
  before = results.read(tmp_path / 'small.json')
  arguments = _arguments(tmp_path, f'{FILE}:grid')
  assert program.main([*arguments, '--seeds=3']) == 0
  assert capsys.readouterr().out.startswith('[9/10] ')
  after = results.read(tmp_path / 'small.json')
  assert after['runs'][:4] == before['runs']
  assert [run['seed'] for run in after['runs'][4:]] == [2, 2]


@pytest.mark.slow
def test_a_study_trains_folds_and_reports(tmp_path, capsys):
  arguments = _arguments(tmp_path, FILE)
  assert program.main([*arguments, '--seeds=1']) == 0
  content = results.read(tmp_path / 'small.json')
  arms = results.reported(content)
  run = arms['mpbn_channel'][0]
  assert run['spikes_differing'] == 0 < run['spikes_compared']
  assert run['folded_test_accuracy'] == run['test_accuracy']
  assert run['config']['model']['width'] == 2
  assert len(run['curve']['validation_accuracy']) == 2
  assert arms['none'][0]['folded_test_accuracy'] is None
  assert run['versions'].keys() == {'jax', 'flax', 'numpy'}
  assert '| mpbn_channel |' in tables.markdown(content)
  assert (tmp_path / 'small.png').stat().st_size > 1000


def test_a_training_that_cannot_start_is_named_with_its_last_words(
  tmp_path, capsys
):
  arguments = [*_arguments(tmp_path, FILE), '--processes=1']
  assert program.main([*arguments, '--config.data.batch_size=1000']) == 2
  error = capsys.readouterr().err
  assert 'expected none, seed 0 to end with a result' in error
  assert 'data.batch_size' in error
  assert not results.read(tmp_path / 'small.json')['runs']


def test_trainings_share_the_memory_of_a_gpu_unless_told_otherwise(monkeypatch):
  name = 'XLA_PYTHON_CLIENT_PREALLOCATE'
  monkeypatch.delenv(name, raising=False)
  assert runner.environment()[name] == 'false'
  monkeypatch.setenv(name, 'true')
  assert runner.environment()[name] == 'true'


def test_two_runners_of_one_study_are_refused(tmp_path, capsys):
  (tmp_path / 'study').mkdir()
  with lock.hold(tmp_path / 'study'):
    assert program.main(_arguments(tmp_path, FILE)) == 2
  assert 'expected no other process to use' in capsys.readouterr().err


def test_a_diverged_training_is_a_result(tmp_path):
  study = small_study.get_study()
  with study.arms['none'].unlocked():
    study.arms['none'].paper.accuracy = 60.0
    study.arms['none'].paper.deviation = 0.1
  found = results.Results(tmp_path / 'small.json', study)
  for task in runner.reported_tasks(study, found.chosen()):
    result = {'failed': 'loss is nan', 'config': {}, 'commit': None}
    if task.arm == 'none':
      result = {
        'test_accuracy': 0.5 + 0.1 * task.seed,
        'best_accuracy': None,
        'folded_test_accuracy': None,
        'spikes_differing': None,
        'firing_rate': {'lif1': 0.2},
        'seconds': 30.0,
        'config': {},
        'commit': None,
      }
    found.add(task, result)
  content = results.read(tmp_path / 'small.json')
  none, mpbn = tables.rows(content, content['arms'])
  assert none[1:] == [
    *('60.00 ± 0.10', '55.00 ± 7.07', '-', '-', '-', '-', '20.0 %', '2', '0.5'),
  ]
  assert mpbn[8] == '0 (2 diverged)'
