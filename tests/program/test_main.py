"""The modes of main.py."""

import json
import shutil

import pytest
import runs
from runs import the_error

from mpbn_jax import report

KEY = '--config.'

SUMMARY_KEYS = {
  'test_accuracy',
  'folded_test_accuracy',
  'spikes_compared',
  'spikes_differing',
  'max_logit_difference',
  'firing_rate',
  'seconds',
}


@pytest.fixture
def trained():
  """Returns the work directory of a finished run; not to be changed."""
  return runs.finished()


@pytest.fixture
def workdir(trained, tmp_path):
  return shutil.copytree(trained, tmp_path / 'run')


def test_training_writes_a_summary_with_every_number(trained):
  summary = report.read_summary(trained)
  assert summary.keys() >= SUMMARY_KEYS
  assert summary['step'] == runs.EPOCHS * runs.STEPS_PER_EPOCH
  assert 0 <= summary['test_accuracy'] <= 1
  assert summary['spikes_differing'] == 0
  assert summary['max_logit_difference'] == 0
  assert summary['folded_test_accuracy'] == summary['test_accuracy']
  # 359 test images, 2 steps; 8x8 maps with 2 + 2, 4x4 with 4 + 4 channels.
  assert summary['spikes_compared'] == 359 * 2 * (64 * 4 + 16 * 8)
  assert sorted(summary['firing_rate']) == ['lif1', 'lif2', 'lif3', 'lif4']
  assert all(0 < rate < 1 for rate in summary['firing_rate'].values())


def test_training_twice_evaluates_without_training(workdir, capsys):
  before = runs.snapshot(workdir)
  assert runs.run(workdir, KEY + 'log.tensorboard=true') == 0
  out, err = capsys.readouterr()
  assert err == ''
  assert 'is trained: step 32 of 32' in out
  after = runs.snapshot(workdir)
  ours = json.loads(before.pop('summary.json'))
  theirs = json.loads(after.pop('summary.json'))
  assert after == before
  for key in SUMMARY_KEYS - {'seconds'}:
    assert theirs[key] == ours[key]


def test_table_says_what_the_summary_says(workdir, capsys):
  runs.run(workdir)
  summary = report.read_summary(workdir)
  lines = capsys.readouterr().out.splitlines()
  assert max(len(line) for line in lines if str(workdir) not in line) <= 80
  rows = {}
  for line in lines:
    name, _, value = line.partition('  ')
    rows[name] = value.strip()
  assert rows['test accuracy'] == f'{summary["test_accuracy"]:.2%}'
  assert rows['test accuracy, thresholds folded'] == rows['test accuracy']
  assert rows['spikes that differ'] == f'0 of {summary["spikes_compared"]:,}'
  assert rows['largest difference of a logit'] == '0'
  assert rows['seconds of this command'] == f'{summary["seconds"]:.1f}'
  for layer, rate in summary['firing_rate'].items():
    span = summary['thresholds'][layer]
    assert rows[layer].split('  ')[:2] == [
      f'{rate:.1%}',
      f'{span["min"]:.4g} to {span["max"]:.4g}',
    ]


def test_fold_of_convolutions_is_counted(workdir, capsys):
  arguments = ['--mode=fold', KEY + 'evaluation.fold=all']
  assert runs.run(workdir, *arguments) == 0
  assert 'thresholds and kernels folded' in capsys.readouterr().out
  assert report.read_summary(workdir)['fold'] == 'all'


def test_evaluate_changes_only_the_summary(workdir):
  before = runs.snapshot(workdir)
  assert runs.run(workdir, '--mode=evaluate') == 0
  after = runs.snapshot(workdir)
  assert before.pop('summary.json') != after.pop('summary.json')
  assert after == before


def test_evaluating_the_best_leaves_the_summary_of_the_last(workdir, capsys):
  (workdir / 'summary.json').unlink()
  arguments = ['--mode=evaluate', KEY + 'evaluation.checkpoint=best']
  assert runs.run(workdir, *arguments) == 0
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  measured = [json.loads(line) for line in lines if 'validation' in line]
  best = max(measured, key=lambda line: line['validation_accuracy'])
  summary = json.loads((workdir / 'summary_best.json').read_text())
  assert summary['step'] == best['step']
  assert not (workdir / 'summary.json').exists()


def test_without_membrane_norm_trains_and_refuses_to_fold(tmp_path, capsys):
  workdir = tmp_path / 'run'
  norm = KEY + 'model.membrane_norm=none'
  assert runs.run(workdir, norm, KEY + 'num_epochs=1') == 0
  assert (
    'no thresholds: membrane_norm is none; '
    '--config.evaluation.fold=all folds the other norms '
  ) in ' '.join(capsys.readouterr().out.split())
  summary = report.read_summary(workdir)
  assert summary.keys() >= SUMMARY_KEYS
  assert summary['test_accuracy'] is not None
  assert summary['folded_test_accuracy'] is None
  assert summary['spikes_compared'] is None
  before = runs.snapshot(workdir)
  assert runs.run(workdir, norm, '--mode=fold') == 2
  message = the_error(capsys.readouterr())
  assert 'nothing to fold' in message
  assert 'membrane_norm' in message
  assert runs.snapshot(workdir) == before


# ---- going on with another configuration


def stored_epochs(workdir):
  return json.loads((workdir / 'config.json').read_text())['num_epochs']


def test_more_epochs_say_how_the_learning_rate_changes(workdir, capsys):
  arguments = [KEY + 'num_epochs=3', KEY + 'log.every_steps=4']
  assert runs.run(workdir, *arguments) == 0
  out, _ = capsys.readouterr()
  lines = out.splitlines()
  assert lines[0].endswith('continues: step 32 of 48')
  # 0.1 (1 + cos(pi 32/48)), and 0.1 (1 + cos(pi 31/32)).
  assert lines[1] == (
    'num_epochs changes from 2 to 3, and the learning rate with it: 0.05 in '
    'the next step, 0.0004815 in the last'
  )
  assert report.read_summary(workdir)['step'] == 48
  assert stored_epochs(workdir) == 3


@pytest.mark.parametrize('mode', ['train', 'evaluate'])
def test_fewer_epochs_than_were_trained_are_not_recorded(
  mode, workdir, capsys, monkeypatch
):
  summarized = []
  monkeypatch.setattr(
    report, 'summarize', lambda *args, **_: summarized.append(args[0])
  )
  before = runs.snapshot(workdir)
  assert runs.run(workdir, KEY + 'num_epochs=1', f'--mode={mode}') == 0
  out, _ = capsys.readouterr()
  if mode == 'train':
    says = f'{workdir} is trained: step 32 of 32 (2 epochs; 1 asked for)'
    assert out.splitlines() == [says]
  (experiment,) = summarized
  assert experiment.config.num_epochs == 2
  assert experiment.total_steps == 32
  assert runs.snapshot(workdir) == before


def test_run_that_was_stopped_beyond_what_is_asked_for_stays(
  tmp_path, capsys, monkeypatch
):
  workdir = runs.half(tmp_path / 'run')
  monkeypatch.setattr(report, 'summarize', lambda *_, **__: None)
  before = runs.snapshot(workdir)
  assert runs.run(workdir, KEY + 'num_epochs=1') == 0
  says = 'is left unchanged: step 16 of 32 (2 epochs; 1 asked for)'
  assert says in capsys.readouterr().out
  assert runs.snapshot(workdir) == before


@pytest.mark.parametrize('mode', runs.MODES)
def test_changed_keys_are_refused_by_name(mode, workdir, capsys):
  before = runs.snapshot(workdir)
  changed = [KEY + 'model.tau=0.5', KEY + 'optimizer.nesterov=true']
  assert runs.run(workdir, f'--mode={mode}', *changed) == 2
  message = the_error(capsys.readouterr())
  assert 'model.tau: 0.25 -> 0.5' in message
  assert 'optimizer.nesterov: False -> True' in message
  assert '--workdir' in message
  assert runs.snapshot(workdir) == before
