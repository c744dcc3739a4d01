"""What --mode=landscape prints and writes."""

import io
import pathlib

from mpbn_jax import files, record, tables
from mpbn_jax.analysis import pictures
from mpbn_jax.analysis.landscape import Landscape
from mpbn_jax.analysis.landscape import landscape as measure
from mpbn_jax.experiment import Experiment
from mpbn_jax.train_step import TrainState

FILE = 'landscape.json'


def landscape(
  experiment: Experiment, state: TrainState, *, workdir: pathlib.Path
) -> Landscape:
  """Measures the landscape of a run, prints its flatness, and writes it.

  Writes landscape.json and, if matplotlib is installed, landscape.png.
  """
  found = measure(experiment, state.variables)
  values = {'step': int(state.step), **found.to_json()}
  record.write_json(workdir / FILE, values)
  print(text(found))
  print(f'written: {workdir / FILE}')
  try:
    drawn = pictures.figure({experiment.config.model.name: found})
  except ImportError:
    print('no picture: pip install matplotlib')
    return found
  stream = io.BytesIO()
  drawn.savefig(stream, format='png', metadata={'Software': None})
  picture = (workdir / FILE).with_suffix('.png')
  files.write_whole(picture, stream.getvalue())
  print(f'written: {picture}')
  return found


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
