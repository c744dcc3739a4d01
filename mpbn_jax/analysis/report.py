"""What --mode=landscape and --mode=steps print and write."""

import io
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mpbn_jax import files, job, record, report, tables
from mpbn_jax.analysis import pictures
from mpbn_jax.analysis.landscape import Landscape
from mpbn_jax.analysis.landscape import landscape as measure
from mpbn_jax.analysis.steps import Curve, curve
from mpbn_jax.experiment import Experiment
from mpbn_jax.train_step import TrainState

LANDSCAPE = 'landscape.json'
STEPS = 'steps.json'


def landscape(
  experiment: Experiment, state: TrainState, *, workdir: pathlib.Path
) -> Landscape:
  """Measures the landscape of a run, prints its flatness, and writes it.

  Writes landscape.json and, if matplotlib is installed, landscape.png.
  """
  found = measure(experiment, state.variables)
  print(text(found))
  _write(
    workdir / LANDSCAPE,
    {'step': int(state.step), **found.to_json()},
    lambda: pictures.figure({experiment.config.model.name: found}),
  )
  return found


def steps(
  experiment: Experiment,
  state: TrainState,
  *,
  workdir: pathlib.Path,
  steps: Sequence[int] | None = None,
) -> Curve:
  """Evaluates a run with several T, prints a table, and writes it.

  Writes steps.json and, if matplotlib is installed, steps.png.

  Args:
    experiment: from `report.restore`.
    state: the trained state.
    workdir: where to write the files.
    steps: numbers of time steps; None takes those of `steps.default_steps`.
  """
  config = experiment.config
  why_not = report.why_not_folded(config)
  variables = state.variables
  folded = None if why_not else report.fold_network(experiment, variables)
  found = curve(experiment, variables, steps=steps, folded=folded)
  values = {
    'step': int(state.step),
    'not_folded': why_not,
    'fold': None if why_not else config.evaluation.fold,
    'fake': config.data.fake,
    **found.to_json(),
  }
  print(steps_text(found))
  if config.data.fake:
    print(f'FAKE: {config.data.fake} random images')
  if why_not:
    print(f'no folded network: {why_not}')
  _write(
    workdir / STEPS,
    values,
    lambda: pictures.steps_figure({config.model.name: found}),
  )
  return found


def _write(
  path: pathlib.Path, values: Mapping[str, Any], draw: Callable[[], Any]
) -> None:
  """Writes values as JSON and a figure beside them, and says where."""
  if not job.is_first():
    return
  record.write_json(path, values)
  print(f'written: {path}')
  try:
    drawn = draw()
  except ImportError:
    print('no picture: pip install matplotlib')
    return
  stream = io.BytesIO()
  drawn.savefig(stream, format='png', metadata={'Software': None})
  picture = path.with_suffix('.png')
  files.write_whole(picture, stream.getvalue())
  print(f'written: {picture}')


def text(found: Landscape) -> str:
  """Returns the flatness as a table for the terminal."""
  rows = [['radius', 'mean rise of the loss', '95 % interval', 'largest rise']]
  for row in found.flatness():
    rows.append(
      [
        f'{row["radius"]:g}',
        f'{row["mean"]:.4f}',
        f'{row["low"]:.4f} to {row["high"]:.4f}',
        f'{row["largest"]:.4f}',
      ]
    )
  head = (
    f'training loss {found.loss:.4f} on {found.examples:,} examples, '
    f'{len(found.lines)} directions'
  )
  return '\n'.join([head, *tables.grid(rows, width=tables.columns())])


def steps_text(found: Curve) -> str:
  """Returns a curve over T as a table for the terminal."""
  rows = [
    ['T', 'accuracy', 'loss', 'firing rate', 'folded', 'spikes that differ']
  ]
  for point in found.points:
    trained = ' (trained)' * (point.num_steps == found.trained)
    folded, differing = '', ''
    if point.folded_accuracy is not None:
      folded = f'{point.folded_accuracy:.2%}'
      differing = f'{point.spikes_differing:,} of {point.spikes_compared:,}'
    rows.append(
      [
        f'{point.num_steps}{trained}',
        f'{point.accuracy:.2%}',
        f'{point.loss:.4f}',
        f'{point.mean_firing_rate:.1%}',
        folded,
        differing,
      ]
    )
  head = f'{found.examples:,} test examples, trained with T = {found.trained}'
  return '\n'.join([head, *tables.grid(rows, width=tables.columns())])
