"""Text for the terminal: tables of summary and parameters, lines of metrics."""

import math
import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

LEAST = 80  # columns of the narrowest terminal


def columns() -> int:
  """Returns the maximum table width: the terminal's columns, at least 80."""
  return max(LEAST, shutil.get_terminal_size().columns)


def pairs(rows: Sequence[tuple[str, str]], *, width: int) -> list[str]:
  """Returns lines 'name  value' with aligned values.

  A value that does not fit continues on the next line; nothing is cut off.
  """
  indent = 2 + max(len(name) for name, _ in rows)
  lines = []
  for name, value in rows:
    lines += textwrap.wrap(
      value,
      width,
      initial_indent=f'{name:<{indent}}',
      subsequent_indent=' ' * indent,
      break_on_hyphens=False,
    ) or [name]
  return lines


def grid(
  rows: Sequence[Sequence[str]], *, width: int, left: int = 1
) -> list[str]:
  """Returns the lines of a table with aligned columns, omitting empty ones.

  Args:
    rows: rows of cells; the first row has the headings.
    width: maximum length of a line; longer rows continue on the next line.
    left: number of left-aligned columns; the others are right-aligned.
  """
  by_column = [cells for cells in zip(*rows, strict=True) if any(cells[1:])]
  shown = []
  for number, cells in enumerate(by_column):
    wide = max(map(len, cells))
    align = str.ljust if number < left else str.rjust
    shown.append([align(cell, wide) for cell in cells])
  lines = []
  for cells in zip(*shown, strict=True):
    line = '  '.join(cells).rstrip()
    if len(line) > width:
      words = [cell.strip() for cell in cells if cell.strip()]
      line = '\n'.join(
        textwrap.wrap('  '.join(words), width, subsequent_indent=' ' * 4)
      )
    lines += line.splitlines()
  return lines


# ---- the result of a run


def summary(values: Mapping[str, Any], *, width: int | None = None) -> str:
  """Returns the summary of a run as a table.

  Args:
    values: as in summary.json.
    width: number of columns; None uses the terminal's.
  """
  width = columns() if width is None else width
  lines = pairs(_results(values), width=width)
  lines += ['', *grid(_layers(values), width=width), '']
  last = [
    ('seed, device', f'{values["seed"]}, {values["device"]}'),
    ('seconds of this command', f'{values["seconds"]:.1f}'),
  ]
  lines += pairs(last, width=width)
  rule = '-' * max(map(len, lines))
  return '\n'.join([rule, *lines, rule])


def _results(values):
  norms = [values[f'{place}_norm'] for place in ('conv', 'membrane')]
  if values['spike_norm'] != 'none':
    norms.append(values['spike_norm'])
  data = values['dataset']
  if values['fake']:
    data += f' (FAKE: {values["fake"]} random images)'
  rows = [
    ('network, data', f'{values["model"]}, {data}'),
    (
      'settings',
      f'T = {values["num_steps"]}, width {values["width"]}, '
      f'norms {", ".join(norms)}',
    ),
    ('trained', f'{values["step"]:,} steps, epochs: {values["epochs"]:.4g}'),
    (
      'training examples',
      f'{values["train_size"]:,} in batches of {values["batch_size"]}',
    ),
    ('test examples', f'{values["test_size"]:,}'),
    ('test accuracy', f'{values["test_accuracy"]:.2%}'),
  ]
  if values['paper_accuracy'] is not None:
    rows.append(('the paper prints', f'{values["paper_accuracy"]:.2f}%'))
  if values['not_folded']:
    rows.append(('folded', f'no thresholds: {values["not_folded"]}'))
  else:
    rows += _comparison(values)
  if values['unreadable_images']:
    rows.append(('images not decoded', f'{values["unreadable_images"]:,}'))
  return rows


def _comparison(values):
  folded = ' and '.join(
    ['thresholds'] * bool(values['thresholds'])
    + ['kernels'] * (values['fold'] == 'all')
  )
  return [
    (
      f'test accuracy, {folded} folded',
      f'{values["folded_test_accuracy"]:.2%}',
    ),
    (
      'spikes that differ',
      f'{values["spikes_differing"]:,} of {values["spikes_compared"]:,}',
    ),
    ('largest difference of a logit', f'{values["max_logit_difference"]:.3g}'),
  ]


def _layers(values):
  """Returns rows of cells, with one row for blocks that are scanned over."""
  rates: dict[str, list[float]] = {}
  for name, rate in values['firing_rate'].items():
    rates.setdefault(name.split('[')[0], []).append(rate)
  rows = [('layer', 'firing rate', 'thresholds', 'turned', 'constant')]
  for name, of_blocks in rates.items():
    span = (values['thresholds'] or {}).get(name, {})
    if len(of_blocks) > 1:
      low, high = min(of_blocks), max(of_blocks)
      rate = f'{len(of_blocks)} x {low:.1%} to {high:.1%}'
    else:
      rate = f'{of_blocks[0]:.1%}'
    lowest = span.get('min')
    between = '' if lowest is None else f'{lowest:.4g} to {span["max"]:.4g}'
    counts = (span.get(key, 0) for key in ('negative_polarity', 'constant'))
    rows.append((name, rate, between, *(f'{n:,}' if n else '' for n in counts)))
  return rows


# ---- while training


def parameters(params: Mapping, *, width: int | None = None) -> str:
  """Returns names, shapes and sizes of parameters as a table.

  Args:
    params: nested mapping of arrays.
    width: number of columns; None uses the terminal's.
  """
  width = columns() if width is None else width
  rows = [('parameter', 'shape', 'size')]
  total = 0
  for name, leaf in sorted(_leaves(params), key=_natural):
    size = math.prod(leaf.shape)
    total += size
    shape = ' x '.join(map(str, leaf.shape)) or 'scalar'
    rows.append((name, shape, f'{size:,}'))
  rows.append(('all', '', f'{total:,}'))
  return '\n'.join(grid(rows, width=width, left=2))


def _leaves(tree, path=''):
  for key, child in tree.items():
    if isinstance(child, Mapping):
      yield from _leaves(child, f'{path}{key}/')
    else:
      yield f'{path}{key}', child


def _natural(item):
  """Returns a key that sorts conv10 after conv9."""
  return [int(p) if p.isdigit() else p for p in re.split(r'(\d+)', item[0])]


# {name in metrics.jsonl: its format in a log line}
_METRICS = {
  'loss': 'loss {:.4g}',
  'accuracy': 'acc {:.2%}',
  'learning_rate': 'rate {:.2g}',
  'steps_per_second': '{:.3g}/s',
  'data_wait': 'wait {:.0%}',
  'validation_loss': 'validation: loss {:.4g}',
  'validation_accuracy': 'acc {:.2%}',
}


def metrics(values: Mapping[str, float]) -> str:
  """Returns metrics as a short line; metrics.jsonl has their full names.

  The rate is the learning rate; it is followed by steps per second and the
  fraction of time spent waiting for data.
  """
  return '  '.join(
    _METRICS.get(name, name + ' {:.4g}').format(value)
    for name, value in values.items()
  )


def span(threshold: np.ndarray, polarity: np.ndarray) -> dict[str, Any]:
  """Returns the range of a layer's thresholds and the number of special ones.

  Thresholds that no finite membrane potential exceeds, or that all exceed,
  count as 'constant' and are excluded from the range.
  """
  largest = np.finfo(np.float32).max
  ordinary = threshold[np.abs(threshold) < largest]
  return {
    'min': float(ordinary.min()) if ordinary.size else None,
    'max': float(ordinary.max()) if ordinary.size else None,
    'negative_polarity': int((polarity < 0).sum()),
    'constant': int(threshold.size - ordinary.size),
  }
