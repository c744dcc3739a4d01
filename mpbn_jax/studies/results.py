"""The results file of a study: what was trained, and what came out."""

import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import mpbn_jax
from mpbn_jax import files
from mpbn_jax.errors import InputError
from mpbn_jax.studies.study import (
  REPORT,
  TUNE,
  Study,
  Task,
  choose,
  reported_tasks,
)

FORMAT = 1


class Results:
  """The results of a study, in memory and in a JSON file.

  The file has one line per run, in the order in which they ended:

      {format, study, question, notes, arms, paper, compared_with, reach,
       grid, chosen, version, hashes, tuning: [...], runs: [...]}

  A run of `runs` has arm, seed, hash (of the configuration), version (of this
  package), config, test_accuracy (last epoch), best_accuracy (of the best epoch
  on validation, None without a validation split), folded_test_accuracy,
  spikes_compared, spikes_differing, firing_rate by layer, seconds, curve,
  commit, device, versions and date; or `failed`, why there is no result. One of
  `tuning` has its choice and validation_accuracy. Accuracies are fractions.

  Args:
    path: the file; it is created with the first result.
    study: the study. Runs of other arms, settings or versions stay in the file.

  Raises:
    InputError: the file cannot be read, or belongs to another study.
  """

  def __init__(self, path: pathlib.Path, study: Study):
    self.path, self.study = path, study
    self._content: dict[str, Any] = {'tuning': [], 'runs': []}
    if path.exists():
      self._content = read(path)
      if self._content['study'] != study.name:
        raise InputError(
          f'expected the results of study {study.name!r} in {path}, got those '
          f'of {self._content["study"]!r}: choose another --results'
        )

  def _of(self, kind):
    return self._content['tuning' if kind == TUNE else 'runs']

  def find(self, task: Task) -> dict | None:
    """Returns the result of a training, or None."""
    for run in self._of(task.kind):
      if _identity(run) == _identity_of(task):
        return run
    return None

  def add(self, task: Task, result: Mapping[str, Any]) -> None:
    """Adds the result of a training and writes the file."""
    if self.find(task) is not None:
      return
    self._of(task.kind).append(
      {
        'arm': task.arm,
        'seed': task.seed,
        'hash': task.hash,
        'version': mpbn_jax.__version__,
        **({'choice': dict(task.choice)} if task.kind == TUNE else {}),
        **result,
      }
    )
    self.write()

  def chosen(self) -> dict[str, dict[str, Any]]:
    """Returns {arm: its settings} of the arms that could choose."""
    accuracies = {
      (TUNE, run['arm'], run['seed'], run['hash']): run['validation_accuracy']
      for run in self._content['tuning']
      if run['version'] == mpbn_jax.__version__
    }
    return choose(self.study, accuracies)

  def write(self) -> None:
    """Writes the file atomically."""
    chosen = self.chosen()
    tasks = reported_tasks(self.study, chosen)
    head = {
      'format': FORMAT,
      'study': self.study.name,
      'question': self.study.question,
      'notes': self.study.notes,
      'arms': list(self.study.arms),
      'paper': {
        arm: [config.paper.accuracy, config.paper.deviation]
        for arm, config in self.study.arms.items()
        if config.paper.accuracy is not None
      },
      'compared_with': dict(self.study.compared_with),
      'reach': self.study.reach,
      'grid': {k: list(v) for k, v in self.study.grid.items()},
      'chosen': chosen,
      'version': mpbn_jax.__version__,
      'hashes': {task.arm: task.hash for task in tasks},
    }
    lines = [f'{json.dumps(k)}: {json.dumps(v)}' for k, v in head.items()]
    lines += [f'"{k}": {_listed(self._content[k])}' for k in ('tuning', 'runs')]
    self.path.parent.mkdir(parents=True, exist_ok=True)
    files.write_whole(self.path, '{' + ',\n'.join(lines) + '}\n')


def _listed(runs: Iterable[Mapping]) -> str:
  separators = (',', ':')
  lines = [json.dumps(run, separators=separators) for run in runs]
  return '[\n' + ',\n'.join(lines) + '\n]'


def _identity(run):
  return run['arm'], run['seed'], run['hash'], run['version']


def _identity_of(task):
  return task.arm, task.seed, task.hash, mpbn_jax.__version__


def read(path: pathlib.Path) -> dict[str, Any]:
  """Returns the content of a results file.

  Raises:
    InputError: it cannot be read, or has another format.
  """
  try:
    content = json.loads(path.read_text())
    if content['format'] != FORMAT:
      raise ValueError(f'it has format {content["format"]}, not {FORMAT}')
    for name in ('study', 'tuning', 'runs'):
      content[name]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise InputError(
      f'expected the results of a study in {path}, which cannot be read '
      f'({error}): restore it, or choose another --results'
    ) from error
  return content


def reported(content: Mapping[str, Any]) -> dict[str, dict[int, dict]]:
  """Returns {arm: {seed: run}} of the study as it is now.

  Runs with other settings, or of another version, stay in the file, but a table
  must not mix them.
  """
  arms: dict[str, dict[int, dict]] = {}
  for run in content['runs']:
    now = content['hashes'].get(run['arm']), content['version']
    if (run['hash'], run['version']) == now:
      arms.setdefault(run['arm'], {})[run['seed']] = run
  return arms


__all__ = ['FORMAT', 'REPORT', 'TUNE', 'Results', 'read', 'reported']
