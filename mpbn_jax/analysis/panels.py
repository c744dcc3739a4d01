"""Pictures of what happens inside a network, one panel each, as PNG."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpbn_jax.analysis.activity import LayerActivity
from mpbn_jax.analysis.energy import Energy, picojoules
from mpbn_jax.analysis.histograms import Histogram
from mpbn_jax.analysis.neurons import Thresholds, Traces

# Okabe and Ito's colours, which colour-blind people can tell apart.
BLUE, VERMILION, GREEN = '#0072B2', '#D55E00', '#009E73'
ORANGE, SKY, GREY = '#E69F00', '#56B4E9', '#666666'
_NAMED = 24  # layers whose names fit on an axis
_STEPS = 4  # lines that a legend names; more are coloured by a scale
_CELLS = 16  # classes whose counts fit into a matrix


def _figure(width=4.6, height=3.0):
  from matplotlib.figure import Figure

  whole = Figure(figsize=(width, height), layout='constrained', dpi=130)
  return whole, whole.subplots()


def png(figure) -> bytes:
  """Returns a matplotlib figure as PNG."""
  from PIL import Image

  drawn = io.BytesIO()
  figure.savefig(drawn, format='png')
  # A palette: a third of the size, and looks the same.
  stream = io.BytesIO()
  with Image.open(drawn) as image:
    palette = image.convert('RGB').quantize(128, dither=Image.Dither.NONE)
    palette.save(stream, format='png', optimize=True)
  return stream.getvalue()


def _colours(count):
  import matplotlib

  if count <= _STEPS:
    return [BLUE, VERMILION, GREEN, ORANGE][:count]
  return matplotlib.colormaps['cividis'](np.linspace(0, 0.92, count))


def _name_steps(axis, count):
  """Says which line is which step."""
  import matplotlib
  from matplotlib.colors import BoundaryNorm

  if count <= _STEPS:
    axis.legend(frameon=False, fontsize=8)
    return
  # The colours of the lines, as a scale beside them.
  scale = matplotlib.cm.ScalarMappable(
    BoundaryNorm(np.arange(count + 1) + 0.5, count),
    matplotlib.colors.ListedColormap(_colours(count)),
  )
  axis.figure.colorbar(
    scale, ax=axis, label='step t', ticks=np.arange(1, count + 1)
  )


def _layer_axis(axis, names):
  axis.set_xlim(-0.5, len(names) - 0.5)
  if len(names) <= _NAMED:
    turned = 90 if len(names) > 6 else 0
    axis.set_xticks(range(len(names)), names, rotation=turned, fontsize=8)
  else:
    axis.set_xlabel('neuron layer, in the order in which they run')
  axis.grid(alpha=0.3)


def firing_rates(layers: Mapping[str, LayerActivity]):
  """Returns a figure of the firing rate of each layer at each step."""
  whole, axis = _figure(6.4, 3.4)
  rates = np.stack([layer.firing_rate for layer in layers.values()], 1)
  colours = _colours(len(rates))
  for t, (rate, colour) in enumerate(zip(rates, colours, strict=True)):
    axis.plot(
      100 * rate, marker='o', ms=3, lw=1.2, color=colour, label=f't = {t + 1}'
    )
  axis.set_ylabel('firing rate, %')
  axis.set_ylim(bottom=0)
  _layer_axis(axis, list(layers))
  _name_steps(axis, len(rates))
  return whole


def silence(layers: Mapping[str, LayerActivity]):
  """Returns a figure of the neurons that never, and that always fire."""
  whole, axis = _figure(6.4, 3.2)
  for name, label, look in (
    ('silent', 'never fires', {'color': BLUE, 'marker': 'o'}),
    ('always_firing', 'always fires', {'color': VERMILION, 'marker': 's'}),
  ):
    share = [100 * getattr(x, name) / x.neurons for x in layers.values()]
    axis.plot(share, ms=3, lw=1.2, label=label, **look)
  axis.set_ylabel('share of neurons, %')
  axis.set_ylim(bottom=0)
  _layer_axis(axis, list(layers))
  axis.legend(frameon=False, fontsize=8)
  return whole


def potentials(found: Histogram, *, title: str, v_th: float | None):
  """Returns a figure of a layer's potentials, a line for each step.

  Args:
    found: the histogram.
    title: what the potentials are.
    v_th: where to draw the firing threshold; None draws none.
  """
  whole, axis = _figure()
  totals = np.maximum(
    found.counts.sum(1) + found.below + found.above + found.nan, 1
  )
  # A share per unit, which does not depend on the width of the bins.
  density = found.counts / totals[:, None] / found.bins.width
  filled = np.flatnonzero(found.counts.sum(0))
  start, end = (filled[0], filled[-1] + 1) if filled.size else (0, 1)
  edges = found.bins.edges[start : end + 1]
  colours = _colours(len(density))
  for t, (line, colour) in enumerate(zip(density, colours, strict=True)):
    axis.stairs(line[start:end], edges, color=colour, label=f't = {t + 1}')
  if v_th is not None:
    axis.axvline(v_th, color='black', ls=':', lw=1.2, label='v_th')
  axis.set_ylim(bottom=0)
  axis.set_xlabel('membrane potential')
  axis.set_ylabel('density')
  axis.set_title(title, fontsize=9)
  axis.grid(alpha=0.3)
  _name_steps(axis, len(density))
  return whole


def spread(layers: Mapping[str, LayerActivity]):
  """Returns a figure of quantiles of each layer's potentials, all steps."""
  whole, axis = _figure(6.4, 3.6)
  kinds = [('before', 'before the norm', BLUE, '-')]
  if any(layer.after is not None for layer in layers.values()):
    kinds.append(('after', 'after the norm', VERMILION, '--'))
  else:
    kinds = [('before', 'potential', BLUE, '-')]
  places = np.arange(len(layers))
  for kind, label, colour, style in kinds:
    found = [getattr(layer, kind) for layer in layers.values()]
    low, middle, high = (
      np.array([_quantile(each, share) for each in found])
      for share in (0.05, 0.5, 0.95)
    )
    axis.fill_between(places, low, high, color=colour, alpha=0.2, linewidth=0)
    axis.plot(places, middle, color=colour, ls=style, marker='.', label=label)
  axis.set_ylabel('membrane potential')
  axis.set_title('median, and from 5 to 95 % of the potentials', fontsize=9)
  _layer_axis(axis, list(layers))
  axis.legend(frameon=False, fontsize=8)
  return whole


def _quantile(found, share):
  """Returns a quantile, at the end of the bins if it lies outside."""
  if found is None:
    return np.nan
  edges = found.bins.edges
  return np.clip(found.quantile(share), edges[0], edges[-1])


def thresholds(found: Thresholds):
  """Returns a figure of a layer's thresholds."""
  whole, axis = _figure()
  if found.counts.size:
    axis.stairs(found.counts, found.edges, fill=True, color=SKY)
  axis.yaxis.get_major_locator().set_params(integer=True)
  axis.set_xlabel('folded threshold')
  axis.set_ylabel('number of thresholds')
  notes = [
    f'{count:,} {what}'
    for count, what in (
      (found.negative_polarity, 'of negative polarity'),
      (found.never_fire, 'never reached'),
      (found.always_fire, 'always exceeded'),
    )
    if count
  ]
  axis.set_title('thresholds' + ''.join(f', {n}' for n in notes), fontsize=9)
  axis.grid(alpha=0.3)
  return whole


def traces(found: Traces, *, title: str):
  """Returns a figure of a few neurons: potential, threshold and spikes."""
  from matplotlib.figure import Figure

  count, steps = found.potential.shape
  whole = Figure(
    figsize=(4.6, 0.6 + 0.9 * count), layout='constrained', dpi=130
  )
  axes = whole.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
  t = np.arange(1, steps + 1)
  for axis, neuron, u, level, polarity, spikes in zip(
    axes,
    found.index,
    found.potential,
    found.threshold,
    found.polarity,
    found.spikes,
    strict=True,
  ):
    axis.plot(t, u, color=BLUE, marker='.', lw=1.2, label='potential')
    if np.isfinite(level):
      axis.axhline(level, color='black', ls=':', lw=1.2, label='threshold')
    axis.plot(
      t[spikes], u[spikes], 'o', mfc='none', mec=VERMILION, ms=8, label='spike'
    )
    name = '(' + ', '.join(map(str, neuron)) + ')'
    below = ' fires below' * bool(polarity < 0)
    endless = ' never or always fires' * bool(not np.isfinite(level))
    axis.set_ylabel(
      f'{name}{below}{endless}', rotation=0, ha='right', fontsize=7
    )
    axis.margins(x=0.06, y=0.25)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.3)
  axes[-1].set_xlabel('step t')
  axes[-1].set_xticks(t if steps <= 12 else t[:: -(-steps // 12)])
  axes[0].set_title(title, fontsize=9)
  handles: dict[str, Any] = {}
  for axis in axes:
    lines, labels = axis.get_legend_handles_labels()
    handles |= dict(zip(labels, lines, strict=True))
  whole.legend(
    handles.values(),
    handles.keys(),
    loc='outside lower center',
    ncols=3,
    frameon=False,
    fontsize=8,
  )
  return whole


def confusion(matrix: np.ndarray, names: Sequence[str]):
  """Returns a figure of the confusion matrix, in shares of each class."""
  whole, axis = _figure(5.2, 4.4)
  share = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
  drawn = axis.imshow(share, cmap='cividis', vmin=0, vmax=100)
  if len(names) <= _CELLS:
    for (i, j), number in np.ndenumerate(matrix):
      if number:
        light = share[i, j] > 60
        axis.text(
          j,
          i,
          f'{number:,}',
          ha='center',
          va='center',
          fontsize=7,
          color='black' if light else 'white',
        )
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
  axis.set_xlabel('prediction')
  axis.set_ylabel('class')
  whole.colorbar(drawn, ax=axis, label='% of the class', shrink=0.7)
  return whole


def energies(found: Energy):
  """Returns a figure of the energy of each layer, against the ANN's."""
  whole, axis = _figure(6.4, 3.4)
  places = np.arange(len(found.layers))
  for offset, label, colour, values in (
    (-0.2, 'this network', BLUE, [x.picojoules for x in found.layers]),
    (
      0.2,
      'as an ANN',
      GREY,
      [picojoules(x.ann_macs, x.ann_acs) for x in found.layers],
    ),
  ):
    axis.bar(
      places + offset, 1e-6 * np.array(values), 0.4, color=colour, label=label
    )
  axis.set_ylabel('energy per example, µJ')
  _layer_axis(axis, [x.name for x in found.layers])
  if len(found.layers) > _NAMED:
    axis.set_xlabel('layer with weights, in the order in which they run')
  axis.legend(frameon=False, fontsize=8)
  return whole


def example(image: np.ndarray, *, max_value: int) -> bytes:
  """Returns an image, or the frames of a recording together, as PNG.

  Two channels are the polarities of events: orange on, blue off.

  Args:
    image: uint8 [H, W, C] or [T, H, W, C].
    max_value: the value of white.
  """
  from matplotlib.image import imsave

  if image.ndim == 4:
    image, max_value = image.sum(0, dtype=np.int64), 0
  x = np.asarray(image, np.float64)
  x = x / (max_value or max(x.max(), 1))
  channels = x.shape[-1]
  if channels == 2:
    colours = np.array([_rgb(ORANGE), _rgb(SKY)])
    x = x @ colours
  elif channels != 3:
    x = np.repeat(x.mean(-1, keepdims=True), 3, -1)
  times = max(1, -(-112 // max(x.shape[:2])))
  x = np.clip(x, 0, 1).repeat(times, 0).repeat(times, 1)
  stream = io.BytesIO()
  imsave(stream, x, format='png')
  return stream.getvalue()


def _rgb(colour):
  return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
