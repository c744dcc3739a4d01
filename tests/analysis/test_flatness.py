"""Landscapes of a study's networks: which, from where, and their table."""

import functools
import json
import shutil

import numpy as np
import pytest
import runs

from mpbn_jax import InputError
from mpbn_jax.analysis import flatness, landscape
from mpbn_jax.analysis.landscape import Landscape
from mpbn_jax.studies import Study
from mpbn_jax.studies.results import Results
from mpbn_jax.studies.study import reported_tasks

ARMS = ('one', 'another')


def _study(seeds=(0,)):
  arms = {name: runs.config() for name in ARMS}
  return Study(
    name='tiny',
    question='Flat?',
    arms=arms,
    compared_with={'another': 'one'},
    seeds=seeds,
  )


def _results(folder, study, *, missing=(), failed=()):
  """Returns results in which every training is done but for those named."""
  results = Results(folder / 'tiny.json', study)
  for task in reported_tasks(study, results.chosen()):
    key = task.arm, task.seed
    if key not in missing:
      result = {'failed': 'loss is nan'} if key in failed else {'done': True}
      results.add(task, result)
  return results


def _landscape(rise):
  """Returns one that rises by `rise` at a radius of 1 in every direction."""
  lines = np.array([[1 + rise, 1.0, 1 + rise]] * 3)
  grid = np.linspace(-1, 1, 3)
  return Landscape(
    loss=1.0,
    alphas=np.array([-1.0, 0.0, 1.0]),
    lines=lines,
    grid=grid,
    plane=np.ones((3, 3)),
    examples=8,
    seed=0,
  )


def test_the_same_seeds_are_taken_from_every_arm(tmp_path):
  study = _study(seeds=range(4))
  results = _results(
    tmp_path, study, missing={('one', 0)}, failed={('another', 2)}
  )
  found = flatness.tasks_of(study, results, arms=ARMS, seeds=2)
  assert {arm: [t.seed for t in found[arm]] for arm in ARMS} == dict.fromkeys(
    ARMS, [1, 3]
  )


def test_too_few_trained_seeds_are_refused(tmp_path):
  study = _study(seeds=range(3))
  results = _results(tmp_path, study, missing={('one', 0)})
  with pytest.raises(InputError, match='3 seeds that are trained.*got 2: run'):
    flatness.tasks_of(study, results, arms=ARMS, seeds=3)


def test_unknown_arm_is_refused(tmp_path):
  study = _study()
  results = _results(tmp_path, study)
  with pytest.raises(InputError, match="arm of study 'tiny' 'on'.*'one'"):
    flatness.tasks_of(study, results, arms=('on',), seeds=1)


def test_table_pairs_arms_by_seed():
  found = {
    'one': {seed: _landscape(1.0 + 0.1 * seed) for seed in range(3)},
    'another': {seed: _landscape(0.5 + 0.1 * seed) for seed in range(3)},
  }
  first, second = flatness.markdown(found).splitlines()[2:]
  assert first == '| 1 | one | 1.100 ± 0.100 | - | 1.200 |'
  assert second == (
    '| 1 | another | 0.600 ± 0.100 | -0.500 [-0.500, -0.500] | 0.700 |'
  )


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """Returns the folder of the results, after the command has run twice."""
  folder = tmp_path_factory.mktemp('flatness')
  study = _study()
  results = _results(folder, study)
  for task in reported_tasks(study, results.chosen()):
    shutil.copytree(runs.finished(), folder / 'runs' / task.directory)
  small = functools.partial(
    landscape.landscape, directions=3, radii=(0.5,), side=3, examples=64
  )
  calls = []

  def counted(*arguments):
    calls.append(arguments)
    return small(*arguments)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(flatness, 'landscape', counted)
    patch.setattr(flatness.config_files, 'load_study', lambda source: study)
    for _ in range(2):
      code = flatness.main(
        [
          *('tiny.py', '--arms', *ARMS, '--seeds=1'),
          f'--workdir={folder / "runs"}',
          f'--results={folder / "tiny.json"}',
        ]
      )
      assert code == 0
  return folder / 'landscapes', calls


def test_command_writes_the_landscapes_of_every_network(written):
  folder, _ = written
  content = json.loads((folder / 'tiny.json').read_text())
  found = [(one['arm'], one['seed']) for one in content['landscapes']]
  assert found == [(arm, 0) for arm in ARMS]
  assert (folder / 'tiny.png').stat().st_size > 10_000
  page = (folder / 'tiny.md').read_text()
  assert 'on 64 examples around 1 network of each arm, along 3' in page


def test_networks_that_were_measured_are_not_measured_again(written):
  _, calls = written
  assert len(calls) == len(ARMS)
