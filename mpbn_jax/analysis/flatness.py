"""Loss landscapes of the trained networks of a study, side by side.

    python -m mpbn_jax.analysis.flatness configs/studies/mpbn.py \
      --arms 'baseline, T = 2' 'mpbn_channel, T = 2' --seeds 3

measures the networks in the work directories that --mode=reproduce left, and
writes docs/results/landscapes/<study>.json, .md and, with matplotlib, .png.
"""

import argparse
import io
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from mpbn_jax import config_files, files, process, record, report
from mpbn_jax.analysis import pictures
from mpbn_jax.analysis.landscape import Landscape, landscape
from mpbn_jax.analysis.report import LANDSCAPE
from mpbn_jax.command_line import RESULTS
from mpbn_jax.errors import InputError, unknown
from mpbn_jax.studies import intervals, tables
from mpbn_jax.studies.results import Results
from mpbn_jax.studies.study import Study, Task, reported_tasks

FOLDER = RESULTS / 'landscapes'


def tasks_of(
  study: Study, results: Results, *, arms: Sequence[str], seeds: int
) -> dict[str, list[Task]]:
  """Returns {arm: its first reported trainings that did not diverge}.

  Args:
    study: the study.
    results: its results.
    arms: names of arms.
    seeds: how many trainings of each; the same seeds for all arms.

  Raises:
    InputError: an arm is unknown, or too few seeds of all arms are trained.
  """
  for arm in arms:
    if arm not in study.arms:
      raise unknown(f'arm of study {study.name!r}', arm, study.arms)
  done: dict[str, dict[int, Task]] = {arm: {} for arm in arms}
  for task in reported_tasks(study, results.chosen()):
    run = results.find(task) if task.arm in done else None
    if run is not None and 'failed' not in run:
      done[task.arm][task.seed] = task
  common = [
    seed for seed in study.seeds if all(seed in of for of in done.values())
  ]
  if len(common) < seeds:
    raise InputError(
      f'expected {seeds} seeds that are trained in all of {", ".join(arms)}, '
      f'got {len(common)}: run --mode=reproduce first, or ask for fewer seeds'
    )
  return {arm: [done[arm][seed] for seed in common[:seeds]] for arm in arms}


def measured(task: Task, directory: pathlib.Path) -> Landscape:
  """Returns the landscape of a training, from its file if it has one.

  Raises:
    InputError: the work directory has no checkpoint of this training.
  """
  experiment, state = report.restore(task.config, workdir=directory)
  path, step = directory / LANDSCAPE, int(state.step)
  if path.exists():
    stored = json.loads(path.read_text())
    if stored['step'] == step:
      return Landscape.from_json(stored)
  found = landscape(experiment, state.variables)
  record.write_json(path, {'step': step, **found.to_json()})
  return found


def markdown(found: Mapping[str, Mapping[int, Landscape]]) -> str:
  """Returns a table of how far the loss rises around the networks of arms.

  Rises are means over directions and then over seeds, ± the sample standard
  deviation over seeds. The difference to the first arm is paired by seed and
  has its 95 % interval; the largest rise is that of all directions and seeds.

  Args:
    found: {arm: {seed: landscape}}.
  """
  first = next(iter(found))
  lines = [
    '| radius | arm | mean rise of the loss | difference | largest rise |',
    '|' + ' --- |' * 5,
  ]
  rises: dict[tuple[float, str], dict[int, float]] = {}
  largest: dict[tuple[float, str], float] = {}
  for arm, of_seed in found.items():
    for seed, one in of_seed.items():
      for row in one.flatness():
        key = row['radius'], arm
        rises.setdefault(key, {})[seed] = row['mean']
        largest[key] = max(largest.get(key, row['largest']), row['largest'])
  for key in sorted(rises, key=lambda k: (k[0], list(found).index(k[1]))):
    radius, arm = key
    mean, deviation = intervals.mean_and_deviation([*rises[key].values()])
    text = f'{mean:.3f}' + ('' if deviation is None else f' ± {deviation:.3f}')
    difference = tables.NOT_MEASURED
    if arm != first:
      pair = intervals.paired_difference(rises[key], rises[radius, first])
      if pair is not None:
        difference = f'{pair[0]:+.3f} [{pair[1]:+.3f}, {pair[2]:+.3f}]'
    lines.append(
      f'| {radius:g} | {arm} | {text} | {difference} | {largest[key]:.3f} |'
    )
  return '\n'.join(lines) + '\n'


def write(
  path: pathlib.Path,
  study: Study,
  found: Mapping[str, Mapping[int, Landscape]],
) -> None:
  """Writes the landscapes of a study as .json, .md and .png."""
  path.parent.mkdir(parents=True, exist_ok=True)
  content: dict[str, Any] = {
    'study': study.name,
    'landscapes': [
      {'arm': arm, 'seed': seed, **one.to_json()}
      for arm, of_seed in found.items()
      for seed, one in of_seed.items()
    ],
  }
  record.write_json(path, content)
  some = next(iter(next(iter(found.values())).values()))
  count = len(next(iter(found.values())))
  head = (
    f'# Loss landscapes of {study.name}\n\n'
    f'{study.question} Training loss on {some.examples} examples around '
    f'{count} network{"s" * (count > 1)} of each arm, along '
    f'{len(some.lines)} filter-normalized random directions, statistics '
    'fixed.\n\n'
  )
  files.write_whole(path.with_suffix('.md'), head + markdown(found))
  try:
    drawn = pictures.figure(
      {arm: next(iter(of_seed.values())) for arm, of_seed in found.items()}
    )
  except ImportError:
    return
  stream = io.BytesIO()
  drawn.savefig(stream, format='png', metadata={'Software': None})
  files.write_whole(path.with_suffix('.png'), stream.getvalue())


def main(argv: list[str] | None = None) -> int:
  """Measures and writes; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog='python -m mpbn_jax.analysis.flatness',
    description=__doc__.splitlines()[0],
  )
  parser.add_argument('study', help='configs/studies/NAME.py')
  parser.add_argument('--arms', nargs='+', required=True)
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--workdir', type=pathlib.Path)
  parser.add_argument('--results', type=pathlib.Path)
  options = parser.parse_args(argv)
  try:
    study = config_files.load_study(options.study)
    workdir = options.workdir or pathlib.Path('runs') / study.name
    path = options.results or RESULTS / f'{study.name}.json'
    tasks = tasks_of(
      study, Results(path, study), arms=options.arms, seeds=options.seeds
    )
    process.prepare(next(iter(study.arms.values())))
    found: dict[str, dict[int, Landscape]] = {}
    for arm, of_arm in tasks.items():
      for task in of_arm:
        print(f'{arm}, seed {task.seed}', flush=True)
        one = measured(task, workdir / task.directory)
        found.setdefault(arm, {})[task.seed] = one
    target = path.parent / FOLDER.name / path.name
    write(target, study, found)
  except InputError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  print(markdown(found), end='')
  print(f'written: {target}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
