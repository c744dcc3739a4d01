"""Epochs that arms take to reach a given validation accuracy."""

import math
from collections.abc import Mapping
from typing import Any

from mpbn_jax.studies import intervals
from mpbn_jax.studies.results import reported

_METRIC = 'validation_accuracy'
_NOTE = (
  'The first epoch after which the accuracy on the validation split is at '
  'least {level}: the mean over the seeds that reach it, with its 95 % '
  'interval. Seeds that never do, and those that diverged, are only counted.'
)


def first_epoch(run: Mapping[str, Any], reach: float) -> float | None:
  """Returns the first epoch whose validation accuracy is at least `reach`.

  Args:
    run: a run of a results file, with its curve and configuration; it is
      validated after its last epoch, and may be validated less often than once
      an epoch before.
    reach: a fraction.

  Returns:
    The number of epochs trained by then; None if the run diverged or never
    reached it.
  """
  points = run.get('curve', {}).get(_METRIC, [])
  for step, accuracy in points:
    if accuracy >= reach:
      return step * run['config']['num_epochs'] / points[-1][0]
  return None


def epochs(content: Mapping[str, Any]) -> dict[str, dict[int, float | None]]:
  """Returns {arm: {seed: first epoch, or None}} of the arms with validation.

  Args:
    content: of a results file whose study has a level to reach.
  """
  found = {}
  for arm, runs in reported(content).items():
    measured = {
      seed: run
      for seed, run in runs.items()
      if 'failed' in run or run.get('curve', {}).get(_METRIC)
    }
    if measured:
      found[arm] = {
        seed: first_epoch(run, content['reach'])
        for seed, run in sorted(measured.items())
      }
  return found


def markdown(content: Mapping[str, Any]) -> str:
  """Returns the table of all arms; '' if the study has no level to reach."""
  if content.get('reach') is None:
    return ''
  level = f'{100 * content["reach"]:g} %'
  found = epochs(content)
  lines = [
    f'## Epochs to {level}',
    '',
    _NOTE.format(level=level),
    '',
    '| arm | epochs | seeds that reach it |',
    '| --- | --- | --- |',
  ]
  for arm in content['arms']:
    of_seeds = found.get(arm, {})
    reached = [epoch for epoch in of_seeds.values() if epoch is not None]
    count = f'{len(reached)} of {len(of_seeds)}' if of_seeds else '-'
    lines.append(f'| {arm} | {_mean(reached)} | {count} |')
  return '\n'.join(lines) + '\n'


def _mean(values):
  if not values:
    return '-'
  mean, low, high = intervals.mean_with_interval(values)
  return f'{mean:.1f}' + (
    '' if math.isnan(low) else f' [{low:.1f}, {high:.1f}]'
  )
