"""The quickstart notebook: its cells run, and it is stored as it ran."""

import json
import pathlib

import matplotlib
import pytest
from matplotlib import pyplot

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / 'docs' / 'quickstart.ipynb'
SETTINGS = 'WIDTH, NUM_STEPS, EPOCHS, SEEDS = 16, 4, 16, 3'
TINY = 'WIDTH, NUM_STEPS, EPOCHS, SEEDS = 2, 2, 1, 1'


def _code_cells():
  cells = json.loads(NOTEBOOK.read_text())['cells']
  return [cell for cell in cells if cell['cell_type'] == 'code']


@pytest.mark.slow
def test_cells_run_in_order(monkeypatch, capsys):
  matplotlib.use('Agg')
  shown = []
  monkeypatch.setattr(pyplot, 'show', lambda: shown.append(pyplot.gcf()))
  sources = [''.join(cell['source']) for cell in _code_cells()]
  assert SETTINGS in sources[0]
  sources[0] = sources[0].replace(SETTINGS, TINY)
  names = {'__name__': '__main__'}
  for number, source in enumerate(sources):
    exec(compile(source, f'cell {number}', 'exec'), names)
  lines = capsys.readouterr().out.splitlines()
  assert any(line.startswith('spikes that differ: 0 of') for line in lines)
  assert lines[-1].startswith('| without MPBN |')
  (figure,) = shown
  assert len(figure.axes) == 2
  pyplot.close(figure)
  # Only the head is new where a network is fine-tuned.
  start, trained = names['start']['params'], names['variables']['params']
  assert {k for k in trained if start[k] is not trained[k]} == {'head'}


def test_notebook_is_stored_with_its_outputs():
  cells = _code_cells()
  assert NOTEBOOK.stat().st_size < 100_000
  assert [cell['execution_count'] for cell in cells] == [
    *range(1, len(cells) + 1)
  ]
  outputs = [output for cell in cells for output in cell['outputs']]
  kinds = {output['output_type'] for output in outputs}
  assert kinds == {'stream', 'display_data'}
  assert all(o.get('name', 'stdout') == 'stdout' for o in outputs)
