"""A study: its arms, its seeds, and the trainings that it still needs."""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from mpbn_jax import config as config_lib
from mpbn_jax.errors import InputError, unknown

TUNE, REPORT = 'tune', 'report'
FIRST_TUNING_SEED = 1000
# Keys that change no result, beside config_lib.FREE_KEYS.
_SAME_RESULT = ('seed', 'model.autodiff', 'model.keep', 'model.remat')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
  """A question, and the trainings that answer it.

  Attributes:
    name: name of the results file.
    question: one sentence.
    arms: {name: configuration}, in the order of the table. The seed of a
      configuration is replaced.
    compared_with: {arm: the arm that it is compared with, seed by seed}.
    seeds: seeds of the reported runs.
    grid: {key: values} of the settings that each arm chooses on the validation
      split; {} chooses nothing.
    tuning_seeds: seeds with which it does, none of which is reported.
    notes: what a reader of the table must know.
    reach: an accuracy on the validation split, a fraction; the page of the
      study then says after how many epochs each arm reaches it.

  Raises:
    InputError: an arm or a key is unknown, or seeds are given twice.

  Example:
    >>> from mpbn_jax.configs import digits
    >>> study = Study(
    ...   name='rates',
    ...   question='Which learning rate?',
    ...   arms={'only': digits.get_config()},
    ...   compared_with={},
    ...   grid={'optimizer.learning_rate': (0.1, 0.2)},
    ... )
    >>> study.choices()
    [{'optimizer.learning_rate': 0.1}, {'optimizer.learning_rate': 0.2}]
  """

  name: str
  question: str
  arms: Mapping[str, ml_collections.ConfigDict]
  compared_with: Mapping[str, str]
  seeds: Sequence[int] = tuple(range(5))
  grid: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
  tuning_seeds: Sequence[int] = (FIRST_TUNING_SEED,)
  notes: str = ''
  reach: float | None = None

  def __post_init__(self):
    if not self.arms:
      raise InputError(f'expected the arms of study {self.name!r}, got none')
    for pair in self.compared_with.items():
      for arm in pair:
        if arm not in self.arms:
          raise unknown(f'arm of study {self.name!r}', arm, self.arms)
    if self.reach is not None and not 0 < self.reach <= 1:
      raise InputError(
        f'reach must be an accuracy, a fraction in (0, 1], in study '
        f'{self.name!r}, got {self.reach}: write 0.9 for 90 %, for example'
      )
    used = {'seeds': self.seeds}
    if self.grid:
      used['tuning_seeds'] = self.tuning_seeds
    used |= {f'values of {key}': values for key, values in self.grid.items()}
    for what, values in used.items():
      if not values or len(set(values)) < len(values):
        raise InputError(
          f'expected different {what} in study {self.name!r}, at least one, '
          f'got {list(values)}'
        )
    common = sorted(set(self.seeds) & set(self.tuning_seeds))
    if common and self.grid:
      raise InputError(
        'expected other seeds for choosing settings than the reported ones, '
        f'got {common} in both: start those at {FIRST_TUNING_SEED}'
      )
    for config in self.arms.values():
      flat = config_lib.flatten(config)
      for key in self.grid:
        if key not in flat:
          raise config_lib.unknown_key(key, flat)

  def choices(self) -> list[dict[str, Any]]:
    """Returns the combinations of the grid; one empty one without a grid."""
    names, values = self.grid.keys(), self.grid.values()
    return [
      dict(zip(names, combination, strict=True))
      for combination in itertools.product(*values)
    ]


@dataclasses.dataclass(frozen=True)
class Task:
  """One training.

  Attributes:
    kind: TUNE (validates) or REPORT (reads the test split, once).
    arm: name of the arm.
    seed: its seed.
    config: the whole configuration, with seed and chosen settings.
    choice: the settings of the grid that it has.
  """

  kind: str
  arm: str
  seed: int
  config: ml_collections.ConfigDict
  choice: Mapping[str, Any]

  @functools.cached_property
  def hash(self) -> str:
    """The settings that change results, as a short hexadecimal number."""
    return config_hash(self.config)

  @property
  def key(self) -> tuple[str, str, int, str]:
    """What identifies it among the runs of one version of the code."""
    return self.kind, self.arm, self.seed, self.hash

  @property
  def directory(self) -> str:
    """Name of its work directory."""
    name = re.sub(r'\W+', '-', self.arm).strip('-')
    # Other arms may have the same name then.
    unique = hashlib.sha256(f'{self.arm} {self.hash}'.encode()).hexdigest()[:8]
    return f'{name}_{self.kind}_{self.seed}_{unique}'


def config_hash(config: Mapping) -> str:
  """Returns a hash of the settings that change results, without the seed."""
  free = tuple(key for key in config_lib.FREE_KEYS if key != 'num_epochs')
  flat = {
    key: value
    for key, value in config_lib.as_before(config).items()
    if not key.startswith((*free, *_SAME_RESULT))
  }
  # Of the free keys, this one alone changes what is reported.
  if config['evaluation']['fold'] != 'thresholds':
    flat['evaluation.fold'] = config['evaluation']['fold']
  text = json.dumps(flat, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _task(kind, arm, seed, config, choice):
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.seed = seed
    config.update_from_flattened_dict(dict(choice))
  return Task(kind, arm, seed, config.lock(), choice)


def tuning_tasks(study: Study) -> Iterator[Task]:
  """Yields the trainings that choose the settings of every arm."""
  if not study.grid:
    return
  for seed in study.tuning_seeds:
    for arm, config in study.arms.items():
      for choice in study.choices():
        yield _task(TUNE, arm, seed, config, choice)


def reported_tasks(
  study: Study, chosen: Mapping[str, Mapping[str, Any]]
) -> Iterator[Task]:
  """Yields the reported trainings, one seed of all arms after the other.

  Args:
    study: the study.
    chosen: {arm: its settings}; an arm that is missing has not chosen yet.
  """
  for seed in study.seeds:
    for arm, config in study.arms.items():
      if arm in chosen:
        yield _task(REPORT, arm, seed, config, chosen[arm])


def choose(
  study: Study, accuracies: Mapping[tuple, float | None]
) -> dict[str, dict[str, Any]]:
  """Returns {arm: the settings with the best mean validation accuracy}.

  An arm whose trainings are not all done is left out. Settings with which one
  seed diverged are only chosen if all did.

  Args:
    study: the study.
    accuracies: {task.key: last validation accuracy, None if it diverged}.
  """
  if not study.grid:
    return {arm: {} for arm in study.arms}
  found: dict[str, list] = {arm: [] for arm in study.arms}
  for task in tuning_tasks(study):
    value = accuracies.get(task.key, math.nan)
    found[task.arm].append((task.choice, value))
  chosen = {}
  for arm, measured in found.items():
    if any(value is not None and math.isnan(value) for _, value in measured):
      continue

    def mean(choice, measured=measured):
      values = [value for other, value in measured if other == choice]
      diverged = any(value is None for value in values)
      return -1.0 if diverged else statistics.fmean(values)

    chosen[arm] = max(study.choices(), key=mean)  # the first of equals
  return chosen
