"""The golden texts of configs/paper.py, written.

python tests/golden/write_paper.py

Read the difference before committing it: every line is a choice of the paper.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from mpbn_jax.config import flatten
from mpbn_jax.configs import paper

DIRECTORY = pathlib.Path(__file__).resolve().parent / 'paper'


def file_of(row: paper.Row, preset: str) -> pathlib.Path:
  """Returns the golden file of a row."""
  return DIRECTORY / f'{row.names[0].replace("/", "_")}_{preset}.txt'


def text_of(row: paper.Row, preset: str) -> str:
  """Returns 'key = value' lines of the row's configuration."""
  config = paper.get_config(f'{row.names[0]}@{preset}')
  flat = flatten(config)
  return ''.join(f'{key} = {flat[key]!r}\n' for key in sorted(flat))


if __name__ == '__main__':
  DIRECTORY.mkdir(exist_ok=True)
  for row in paper.ROWS:
    for preset in paper.PRESETS:
      file_of(row, preset).write_text(text_of(row, preset))
