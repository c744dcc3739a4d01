"""Tables of a study: text, Markdown and CSV, made from its results file."""

import csv
import io
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mpbn_jax import files
from mpbn_jax import tables as terminal
from mpbn_jax.studies import epochs, intervals
from mpbn_jax.studies.results import read, reported

NOT_MEASURED = '-'
HEADINGS = (
  'arm',
  'paper',
  'ours, last epoch',
  'best on validation',
  'difference',
  'after folding',
  'spikes differing',
  'firing rate',
  'seeds',
  'minutes',
)


def rows(content: Mapping[str, Any], arms: Iterable[str]) -> list[list[str]]:
  """Returns the cells of a table, one row per arm.

  Accuracies are percentages: mean ± sample standard deviation over seeds. The
  difference is that to the arm it is compared with, paired by seed, with its
  95 % interval.

  Args:
    content: of a results file.
    arms: the arms to show; what was not measured is NOT_MEASURED.
  """
  runs = reported(content)
  return [_row(arm, runs, content) for arm in arms]


def _row(arm, runs, content):
  all_of_arm = runs.get(arm, {})
  of_arm = finished(all_of_arm)
  diverged = len(all_of_arm) - len(of_arm)
  paper = _printed(*content['paper'].get(arm, ()))
  if not of_arm:
    seeds = f'0 ({diverged} diverged)' if diverged else '0'
    empty = [NOT_MEASURED] * (len(HEADINGS) - 4)
    return [arm, paper, *empty, seeds, NOT_MEASURED]
  other = content['compared_with'].get(arm)
  differing = [run['spikes_differing'] for run in of_arm.values()]
  return [
    arm,
    paper,
    percent(of_arm, 'test_accuracy'),
    percent(of_arm, 'best_accuracy'),
    _difference(of_arm, finished(runs.get(other, {})), other),
    percent(of_arm, 'folded_test_accuracy'),
    NOT_MEASURED if None in differing else f'{sum(differing):,}',
    f'{100 * np.mean([_rate(run) for run in of_arm.values()]):.1f} %',
    f'{len(of_arm)}' + f' ({diverged} diverged)' * bool(diverged),
    f'{np.mean([run["seconds"] for run in of_arm.values()]) / 60:.1f}',
  ]


def finished(runs: Mapping[int, Mapping]) -> dict[int, Mapping]:
  """Returns the runs of {seed: run} that did not diverge."""
  return {seed: run for seed, run in runs.items() if 'failed' not in run}


def _rate(run):
  return np.mean(list(run['firing_rate'].values()))


def _printed(accuracy=None, deviation=None):
  if accuracy is None:
    return NOT_MEASURED
  return f'{accuracy:.2f}' + (
    '' if deviation is None else f' ± {deviation:.2f}'
  )


def percent(runs: Mapping[int, Mapping], name: str) -> str:
  """Returns mean ± sample standard deviation of {seed: run}, in percent.

  A single run has no deviation; a number that a run lacks is NOT_MEASURED.
  """
  values = [run[name] for run in runs.values()]
  if None in values:
    return NOT_MEASURED
  mean, deviation = intervals.mean_and_deviation(values)
  text = f'{100 * mean:.2f}'
  return text if deviation is None else f'{text} ± {100 * deviation:.2f}'


def _difference(runs, others, other):
  found = difference(runs, others)
  return NOT_MEASURED if found is None else f'{signed(found)} to {other}'


def difference(
  runs: Mapping[int, Mapping], others: Mapping[int, Mapping]
) -> tuple[float, float, float, int] | None:
  """Returns `intervals.paired_difference` of the test accuracies of two arms.

  Args:
    runs: {seed: run}, without those that diverged.
    others: the same for the arm that it is compared with.
  """
  return intervals.paired_difference(
    {seed: run['test_accuracy'] for seed, run in runs.items()},
    {seed: run['test_accuracy'] for seed, run in others.items()},
  )


def signed(found: tuple[float, float, float, int]) -> str:
  """Returns a `difference` in percentage points, '+1.00 [+0.50, +1.50]'."""
  mean, low, high, _ = found
  text = f'{100 * mean:+.2f}'
  if not math.isnan(low):
    text += f' [{100 * low:+.2f}, {100 * high:+.2f}]'
  return text


def markdown(content: Mapping[str, Any]) -> str:
  """Returns the table of all arms as Markdown."""
  return markdown_table(rows(content, content['arms']))


def markdown_table(cells: list[list[str]]) -> str:
  """Returns rows as a Markdown table, without columns that are empty."""
  table = [list(HEADINGS), *cells]
  shown = [
    column
    for column in zip(*table, strict=True)
    if set(column[1:]) != {NOT_MEASURED} or column[0] == 'ours, last epoch'
  ]
  lines = [f'| {" | ".join(row)} |' for row in zip(*shown, strict=True)]
  return '\n'.join([lines[0], '|' + ' --- |' * len(shown), *lines[1:]]) + '\n'


def text(path: pathlib.Path) -> str:
  """Returns the table of a results file for the terminal."""
  content = read(path)
  table = [list(HEADINGS), *rows(content, content['arms'])]
  return '\n'.join(terminal.grid(table, width=terminal.columns()))


def comma_separated(content: Mapping[str, Any]) -> str:
  """Returns one line per run: arm, seed and its numbers."""
  names = (
    'test_accuracy',
    'best_accuracy',
    'folded_test_accuracy',
    'spikes_compared',
    'spikes_differing',
    'seconds',
  )
  stream = io.StringIO()
  writer = csv.writer(stream, lineterminator='\n')
  writer.writerow(['arm', 'seed', *names, 'firing_rate', 'commit', 'failed'])
  for arm, runs in reported(content).items():
    for seed, run in sorted(runs.items()):
      failed = run.get('failed', '')
      rate = '' if failed else round(float(_rate(run)), 5)
      values = [run.get(name) for name in names]
      writer.writerow([arm, seed, *values, rate, run['commit'], failed])
  return stream.getvalue()


def write(path: pathlib.Path) -> None:
  """Writes the table beside a results file, as .md and .csv."""
  content = read(path)
  head = f'# {content["question"]}\n\n'
  if content['notes']:
    head += f'{content["notes"]}\n\n'
  parts = (head + markdown(content), epochs.markdown(content))
  text = '\n'.join(part for part in parts if part)
  files.write_whole(path.with_suffix('.md'), text)
  files.write_whole(path.with_suffix('.csv'), comma_separated(content))
