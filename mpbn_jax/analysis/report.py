"""What --mode=landscape, --mode=steps and --mode=analyze print and write."""

import datetime
import importlib.util
import io
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

import mpbn_jax
from mpbn_jax import files, job, record, report, tables
from mpbn_jax.analysis import inside_page, pictures
from mpbn_jax.analysis.inside import Inside, look_inside
from mpbn_jax.analysis.landscape import Landscape
from mpbn_jax.analysis.landscape import landscape as measure
from mpbn_jax.analysis.steps import Curve, curve
from mpbn_jax.experiment import Experiment
from mpbn_jax.train_step import TrainState

LANDSCAPE = 'landscape.json'
STEPS = 'steps.json'
ANALYSIS = 'analysis'


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


def inside(
  experiment: Experiment, state: TrainState, *, workdir: pathlib.Path
) -> Inside:
  """Looks inside a run's network, prints a table, and writes the report.

  Writes analysis/<step>/report.html, which holds its pictures if matplotlib is
  installed, and report.json, which has all numbers.

  Args:
    experiment: from `report.restore`.
    state: the trained state.
    workdir: where to write the files.
  """
  config, step = experiment.config, int(state.step)
  found = look_inside(experiment, state.variables)
  model, data = config.model, config.data
  norms = (model.conv_norm, model.membrane_norm, model.spike_norm)
  split = f'{found.activity.examples:,} test examples of {data.name}'
  about = {
    'network': f'{model.name}, width {model.width}, T = {model.num_steps}',
    'norms': ', '.join(name for name in norms if name != 'none') or 'none',
    'data': f'FAKE: {split}, random' if data.fake else split,
    'test accuracy': f'{found.activity.accuracy:.2%}',
    'checkpoint': f'step {step} of {workdir}',
    'made with': f'mpbn_jax {mpbn_jax.__version__}, jax {jax.__version__}',
    'device': f'{len(jax.devices())} x {jax.devices()[0].device_kind}',
    'date': datetime.datetime.now(datetime.UTC).isoformat('T', 'seconds'),
  }
  print(inside_text(found))
  if not job.is_first():
    return found
  folder = workdir / ANALYSIS / str(step)
  with files.writing(folder):
    folder.mkdir(parents=True, exist_ok=True)
  values = {'step': step, 'fake': data.fake, **about, **found.to_json()}
  record.write_json(folder / inside_page.JSON, values)
  pictured = importlib.util.find_spec('matplotlib') is not None
  if not pictured:
    print('no pictures: pip install matplotlib')
  html = inside_page.html(
    found,
    title=f'Inside {model.name} on {data.name}',
    about=list(about.items()),
    spec=experiment.dataset.spec,
    pictures=pictured,
  )
  path = folder / 'report.html'
  files.write_whole(path, html)
  print(f'written: {folder / inside_page.JSON}')
  print(f'written: {path}')
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


def inside_text(found: Inside) -> str:
  """Returns what happens inside a network as tables for the terminal."""
  seen = found.activity
  rows = [['layer', 'neurons', 'firing rate', 'never fire', 'always fire']]
  for name, layer in seen.layers.items():
    rows.append(
      [
        name,
        f'{layer.neurons:,}',
        f'{layer.firing_rate.mean():.1%}',
        f'{layer.silent:,}',
        f'{layer.always_firing:,}',
      ]
    )
  width = tables.columns()
  lines = [
    f'{seen.examples:,} test examples, accuracy {seen.accuracy:.2%}',
    '',
    *tables.grid(rows, width=width),
    '',
  ]
  if found.no_energy:
    return '\n'.join([*lines, f'operations not counted: {found.no_energy}'])
  rows = [['an example', 'MACs', 'ACs', 'energy, uJ', 'as an ANN, uJ']]
  for name, energy in found.energies.items():
    rows.append(
      [
        name,
        f'{float(energy.macs):,.0f}',
        f'{float(energy.acs):,.0f}',
        f'{1e-6 * energy.picojoules:.4g}',
        f'{1e-6 * energy.ann_picojoules:.4g}',
      ]
    )
  lines += tables.grid(rows, width=width)
  return '\n'.join([*lines, 'memory traffic is left out'])
