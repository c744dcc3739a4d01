"""Studies: what they refuse, how settings are chosen, what identifies a run."""

import dataclasses

import numpy as np
import pytest
import small_study
from runs import ROOT

from mpbn_jax import InputError, config_files
from mpbn_jax import config as config_lib
from mpbn_jax.studies import intervals, study

STUDIES = sorted((ROOT / 'configs' / 'studies').glob('[!_]*.py'))


@pytest.mark.parametrize('path', STUDIES, ids=lambda path: path.stem)
def test_every_study_can_be_read(path):
  found = config_files.load_study(path)
  assert found.name.startswith(path.stem)
  assert len(found.seeds) >= 3
  assert f'configs/studies/{path.name}' in path.read_text()


@pytest.mark.parametrize(
  ('name', 'arms', 'pairs'),
  [('table1', 12, 6), ('table2/cifar10', 7, 0), ('table6@code', 4, 0)],
)
def test_tables_of_the_paper_are_studies(name, arms, pairs):
  found = config_files.load_study(f'configs/paper.py:{name}')
  assert (len(found.arms), len(found.compared_with)) == (arms, pairs)
  for arm, other in found.compared_with.items():
    assert other == arm.replace('/mpbn/', '/baseline/')
  assert all(config.paper.accuracy for config in found.arms.values())


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'arms': {}}, 'expected the arms'),
    ({'compared_with': {'none': 'nobody'}}, "unknown arm of study 'small'"),
    ({'seeds': (0, 1000)}, r'other seeds .* got \[1000\] in both'),
    ({'seeds': (0, 0)}, r'different seeds .* got \[0, 0\]'),
    ({'tuning_seeds': ()}, 'different tuning_seeds'),
    ({'grid': {'optimizer.momentum': ()}}, 'values of optimizer.momentum'),
    ({'grid': {'optimizer.lr': (1,)}}, 'did you mean .optimizer.learning_rate'),
  ],
)
def test_a_study_that_cannot_be_run_is_refused(changes, message):
  whole = small_study.get_study('grid')
  with pytest.raises(InputError, match=message):
    dataclasses.replace(whole, **changes)


def test_settings_are_chosen_by_their_mean_and_never_if_a_seed_diverged():
  whole = dataclasses.replace(
    small_study.get_study('grid'), tuning_seeds=(1000, 1001)
  )
  measured = {
    ('none', 0.05): (0.9, None),
    ('none', 0.1): (0.2, 0.3),
    ('mpbn_channel', 0.05): (0.4, 0.8),
    ('mpbn_channel', 0.1): (0.7, 0.4),
  }
  accuracies = {
    task.key: measured[task.arm, *task.choice.values()][task.seed - 1000]
    for task in study.tuning_tasks(whole)
  }
  chosen = study.choose(whole, accuracies)
  key = 'optimizer.learning_rate'
  assert chosen == {'none': {key: 0.1}, 'mpbn_channel': {key: 0.05}}
  tasks = list(study.reported_tasks(whole, chosen))
  assert {t.config.optimizer.learning_rate for t in tasks} == {0.05, 0.1}
  assert [t.config.seed for t in tasks] == [0, 0, 1, 1]
  # An arm whose grid is not finished has chosen nothing.
  del accuracies[next(iter(accuracies))]
  assert study.choose(whole, accuracies).keys() == {'mpbn_channel'}


def test_the_hash_is_of_what_changes_results():
  config = small_study.get_study().arms['none']
  before = study.config_hash(config)
  for key, value, same in (
    ('seed', 3, True),
    ('log.every_steps', 3, True),
    ('model.keep', 'spikes', True),
    ('evaluation.batch_size', 3, True),
    ('evaluation.fold', 'all', False),
    ('num_epochs', 3, False),
    ('model.width', 3, False),
    ('optimizer.learning_rate', 0.3, False),
  ):
    changed = config.copy_and_resolve_references()
    changed.update_from_flattened_dict({key: value})
    assert (study.config_hash(changed) == before) == same, key


def test_a_key_that_is_added_later_changes_no_hash(monkeypatch):
  config = small_study.get_study().arms['none']
  before = study.config_hash(config)
  added = config.copy_and_resolve_references()
  with added.unlocked():
    added.optimizer.new = 'sgd'
  assert study.config_hash(added) != before
  monkeypatch.setitem(config_lib._ADDED, 'optimizer.new', 'sgd')
  assert study.config_hash(added) == before


def test_the_example_of_the_page_is_a_study(tmp_path):
  page = (ROOT / 'docs' / 'studies.md').read_text()
  file = tmp_path / 'own.py'
  file.write_text(page.split('```python\n')[1].split('```')[0])
  found = config_files.load_study(file)
  assert list(found.arms) == ['bn', 'tebn']
  assert len(list(study.tuning_tasks(found))) == 4


def test_differences_are_paired_by_seed():
  ours, theirs = {0: 0.5, 1: 0.6, 2: 0.8, 7: 0}, {2: 0.7, 0: 0.4, 1: 0.5}
  mean, low, high, count = intervals.paired_difference(ours, theirs)
  assert (mean, low, high, count) == (0.1, 0.1, 0.1, 3)
  assert intervals.paired_difference({0: 1.0}, {1: 1.0}) is None
  _, low, _, count = intervals.paired_difference({0: 1, 1: 0.5}, {0: 0.5, 1: 0})
  assert np.isnan(low)
  assert count == 2


def test_intervals_are_those_of_the_bootstrap():
  """Against the percentile bootstrap, which BCa is without skew and bias."""
  rng = np.random.default_rng(0)
  differences = rng.normal(0.01, 0.02, 12)
  differences = np.concatenate([differences, 0.02 - differences])  # no skew
  ours = dict(enumerate(0.8 + differences))
  theirs = dict.fromkeys(ours, 0.8)
  mean, low, high, _ = intervals.paired_difference(ours, theirs)
  drawn = rng.choice(differences, (20_000, len(differences))).mean(1)
  expected = np.quantile(drawn, (0.025, 0.975))
  np.testing.assert_allclose(mean, 0.01, atol=1e-9)
  np.testing.assert_allclose((low, high), expected, atol=5e-4)


def test_mean_and_deviation_are_those_of_a_sample():
  assert intervals.mean_and_deviation([0.5]) == (0.5, None)
  mean, deviation = intervals.mean_and_deviation([0.1, 0.3])
  assert (round(mean, 9), round(deviation, 9)) == (0.2, round(0.02**0.5, 9))
