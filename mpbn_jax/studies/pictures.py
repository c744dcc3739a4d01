"""Pictures of a study: learning curves of its arms, and accuracies."""

import io
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mpbn_jax import files
from mpbn_jax.studies.results import read, reported

# Okabe and Ito's colours, which colour-blind people can tell apart, and line
# styles for print.
_COLOURS = ('#000000', '#E69F00', '#56B4E9', '#009E73', '#D55E00', '#CC79A7')
_STYLES = ('-', '--', '-.', ':')
_FEW = 6  # arms that a narrow legend has room for
_PANELS = 4  # that one row has room for; more of them are in rows of three
_METRIC = 'validation_accuracy'
_SETTING = ', '  # between an arm's name and its setting


def write(path: pathlib.Path) -> pathlib.Path | None:
  """Draws the learning curves beside a results file, as .png.

  Returns:
    The picture; None without matplotlib (requirements-dev.txt), or if no run
    has a curve yet.
  """
  try:
    import matplotlib.figure  # noqa: F401
  except ImportError:
    return None
  content = read(path)
  curves = learning_curves(content)
  if not curves:
    return None
  picture = path.with_suffix('.png')
  stream = io.BytesIO()
  figure(curves).savefig(stream, format='png', metadata={'Software': None})
  files.write_whole(picture, stream.getvalue())
  return picture


def learning_curves(
  content: Mapping[str, Any],
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Returns {arm: (steps [N], validation accuracies [seeds, N])}.

  Arms without validation are left out, and runs that diverged.
  """
  curves = {}
  for arm, runs in reported(content).items():
    points = [
      np.array(run['curve'][_METRIC])
      for run in runs.values()
      if run.get('curve', {}).get(_METRIC)
    ]
    if points:
      curves[arm] = points[0][:, 0], np.stack([p[:, 1] for p in points])
  return {arm: curves[arm] for arm in content['arms'] if arm in curves}


def figure(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]):
  """Returns a matplotlib figure: one panel per setting, one line per arm.

  Arms are named 'arm, setting'; unless all are, they share one panel, under
  their whole names. Lines are means over seeds, and bands reach from the worst
  to the best of them.
  """
  from matplotlib.figure import Figure

  panels: dict[str, dict] = {}
  several = all(_SETTING in arm for arm in curves)
  for arm, curve in curves.items():
    name, _, setting = arm.partition(_SETTING) if several else (arm, '', '')
    panels.setdefault(setting, {})[name] = curve
  panels = dict(sorted(panels.items(), key=lambda panel: _order(panel[0])))
  names = list(dict.fromkeys(n for lines in panels.values() for n in lines))
  across = len(panels) if len(panels) <= _PANELS else 3
  rows = -(-len(panels) // across)
  width = max(1 + 3.2 * across, 6.4 * (len(names) > _FEW))
  columns = min(len(names), max(2, int(width / 1.6)), 5)
  height = 0.6 + 2.8 * rows + 0.2 * max(0, -(-len(names) // columns) - 3)
  whole = Figure(figsize=(width, height), layout='constrained', dpi=120)
  axes = whole.subplots(rows, across, sharey=True, squeeze=False)
  for axis in axes.flat[len(panels) :]:
    axis.set_axis_off()
  handles = {}
  for axis, (setting, lines) in zip(axes.flat, panels.items(), strict=False):
    for name, (steps, accuracies) in lines.items():
      index = names.index(name)
      look = {'color': _COLOURS[index % len(_COLOURS)]}
      # Once all pairs are used, every colour has its next style.
      style = index + index // math.lcm(len(_COLOURS), len(_STYLES))
      percent = 100 * accuracies
      (handles[name],) = axis.plot(
        steps,
        percent.mean(0),
        linestyle=_STYLES[style % len(_STYLES)],
        linewidth=1.8,
        **look,
      )
      axis.fill_between(
        steps, percent.min(0), percent.max(0), alpha=0.15, linewidth=0, **look
      )
    seeds = {len(accuracies) for _, accuracies in lines.values()}
    count = '-'.join(map(str, sorted({min(seeds), max(seeds)})))
    title = f'{count} seeds'
    axis.set_title(f'{setting} ({title})' if setting else title, fontsize=10)
    axis.set_xlabel('training step')
    axis.grid(alpha=0.3)
  for row in axes:
    row[0].set_ylabel('validation accuracy, %')
  whole.legend(
    [handles[name] for name in names],
    names,
    loc='outside lower center',
    ncols=columns,
    frameon=False,
  )
  return whole


def _order(setting):
  """Returns the key that sorts settings, with numbers in them as numbers."""
  # Every second part is a number.
  parts = re.split(r'(\d+)', setting)
  return [int(p) if i % 2 else p for i, p in enumerate(parts)]
