"""Pictures of loss landscapes, and of accuracies with other T."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mpbn_jax.analysis.landscape import Landscape
from mpbn_jax.analysis.steps import Curve

# Okabe and Ito's colours, which colour-blind people can tell apart, and line
# styles for print.
_COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7')
_STYLES = ('-', '--', '-.', ':')


def figure(landscapes: Mapping[str, Landscape]):
  """Returns a matplotlib figure of the landscapes of one or more networks.

  The first panel shows the loss along the random directions: the mean, and a
  band from the lowest to the highest. The others show the plane of the first
  two directions, with the same colours and contours for all networks.

  Args:
    landscapes: {name of the network: its landscape}.
  """
  from matplotlib.figure import Figure

  count = len(landscapes)
  whole = Figure(
    figsize=(3.6 + 3.3 * count, 3.4), layout='constrained', dpi=120
  )
  axes = whole.subplots(1, 1 + count)
  lines, planes = axes[0], axes[1:]
  for index, (name, found) in enumerate(landscapes.items()):
    colour = _COLOURS[index % len(_COLOURS)]
    lines.plot(
      found.alphas,
      found.lines.mean(0),
      color=colour,
      linestyle=_STYLES[index % len(_STYLES)],
      label=name,
    )
    lines.fill_between(
      found.alphas,
      found.lines.min(0),
      found.lines.max(0),
      color=colour,
      alpha=0.15,
      linewidth=0,
    )
  lines.set_xlabel('distance along a direction')
  lines.set_ylabel('training loss')
  lines.set_title(f'{len(found.lines)} directions', fontsize=10)
  lines.grid(alpha=0.3)
  lines.legend(frameon=False)
  highest = max(found.plane.max() for found in landscapes.values())
  lowest = min(found.plane.min() for found in landscapes.values())
  levels = np.linspace(lowest, highest, 15)
  for axis, (name, found) in zip(planes, landscapes.items(), strict=True):
    drawn = axis.contourf(
      found.grid, found.grid, found.plane.T, levels=levels, cmap='cividis'
    )
    axis.plot(0, 0, '+', color='white')
    axis.set_title(name, fontsize=10)
    axis.set_xlabel('first direction')
    axis.set_ylabel('second direction')
    axis.set_aspect('equal')
  whole.colorbar(drawn, ax=list(planes), label='training loss')
  return whole


def steps_figure(curves: Mapping[str, Curve]):
  """Returns a matplotlib figure of networks evaluated with several T.

  The panels show accuracy, loss and mean firing rate over T. A dotted line is
  at the T of training, and crosses are the accuracies of the folded network.

  Args:
    curves: {name of the network: its curve}.
  """
  from matplotlib.figure import Figure
  from matplotlib.lines import Line2D

  whole = Figure(figsize=(9.6, 3.6), layout='constrained', dpi=120)
  axes = whole.subplots(1, 3)
  labels = ('test accuracy, %', 'test loss, nats', 'mean firing rate, %')
  handles = []
  for index, (name, found) in enumerate(curves.items()):
    look: dict[str, Any] = {
      'color': _COLOURS[index % len(_COLOURS)],
      'linestyle': _STYLES[index % len(_STYLES)],
      'marker': 'o',
    }
    steps = [point.num_steps for point in found.points]
    values = (
      [100 * point.accuracy for point in found.points],
      [point.loss for point in found.points],
      [100 * point.mean_firing_rate for point in found.points],
    )
    for axis, of_panel in zip(axes, values, strict=True):
      axis.plot(steps, of_panel, **look)
      axis.axvline(found.trained, color=look['color'], linestyle=':')
    label = f'{name}, trained with T = {found.trained}'
    handles.append(Line2D([], [], label=label, **look))
    folded = [
      (point.num_steps, 100 * point.folded_accuracy)
      for point in found.points
      if point.folded_accuracy is not None
    ]
    if folded:
      axes[0].plot(*zip(*folded, strict=True), 'x', color='black', zorder=3)
  handles.append(Line2D([], [], linestyle=':', color='grey', label='trained T'))
  if any(line.get_marker() == 'x' for line in axes[0].lines):
    handles.append(
      Line2D(
        [], [], linestyle='', marker='x', color='black', label='folded network'
      )
    )
  ticks = sorted(
    {p.num_steps for found in curves.values() for p in found.points}
    | {found.trained for found in curves.values()}
  )
  for axis, label in zip(axes, labels, strict=True):
    axis.set_xscale('log', base=2)
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel('time steps T')
    axis.set_ylabel(label)
    axis.grid(alpha=0.3)
  whole.legend(
    handles=handles, loc='outside lower center', ncols=3, frameon=False
  )
  return whole
