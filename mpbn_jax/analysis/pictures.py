"""Pictures of loss landscapes."""

from collections.abc import Mapping

import numpy as np

from mpbn_jax.analysis.landscape import Landscape


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
  colours = ('#0072B2', '#D55E00', '#009E73', '#CC79A7')
  for index, (name, found) in enumerate(landscapes.items()):
    colour = colours[index % len(colours)]
    lines.plot(
      found.alphas,
      found.lines.mean(0),
      color=colour,
      linestyle=('-', '--', '-.', ':')[index % 4],
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
