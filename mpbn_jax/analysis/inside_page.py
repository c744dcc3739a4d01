"""The report of what happens inside a network, as an HTML page."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mpbn_jax.analysis import page
from mpbn_jax.analysis.energy import AC_PJ, MAC_PJ
from mpbn_jax.analysis.inside import EXAMPLE, Inside
from mpbn_jax.datasets.base import Spec

JSON = 'report.json'
_MANY = 20  # layers that are all shown
_SOME = 12  # layers that are shown of more
_TRACED = 3


def html(
  found: Inside,
  *,
  title: str,
  about: Sequence[tuple[str, str]],
  spec: Spec,
  pictures: bool,
) -> str:
  """Returns the page.

  Args:
    found: what happens inside.
    title: title of the page.
    about: rows (what, value) about the run.
    spec: specification of the data set.
    pictures: whether to draw; needs matplotlib.
  """
  draw = _Drawing(pictures)
  parts = [
    page.table([('', ''), *about], text=(1,)),
    f'<p>All numbers: <a href="{JSON}">{JSON}</a>.</p>',
  ]
  if not pictures:
    parts.append(
      page.paragraph('There are no pictures: pip install matplotlib')
    )
  parts += _firing(found, draw)
  parts += _layers(found, draw)
  parts += _traces(found, draw)
  parts += _predictions(found, draw, spec)
  parts += _energy(found, draw)
  return page.page(title, parts)


class _Drawing:
  """Draws pictures, or leaves them out."""

  def __init__(self, pictures: bool):
    self._on = pictures

  def __call__(
    self, name: str, *args: Any, words: str, kind: str = 'panel', **kwargs: Any
  ) -> str:
    """Returns a picture that a function of `panels` draws."""
    if not self._on:
      return ''
    from mpbn_jax.analysis import panels

    caption = kwargs.pop('caption', '')
    drawn = getattr(panels, name)(*args, **kwargs)
    data = drawn if isinstance(drawn, bytes) else panels.png(drawn)
    return page.figure(data, words=words, kind=kind, caption=caption)


def _chosen(names, most, some):
  """Returns all names, or evenly spaced ones if there are too many."""
  if len(names) <= most:
    return list(names)
  places = np.linspace(0, len(names) - 1, some).round().astype(int)
  return [list(names)[place] for place in places]


def _firing(found, draw):
  layers = found.activity.layers
  rows = [('layer', 'neurons', 'firing rate', 'first step', 'last step')]
  rows[0] += ('never fire', 'always fire')
  for name, layer in layers.items():
    rates = layer.firing_rate
    rows.append(
      (
        name,
        f'{layer.neurons:,}',
        *(f'{rate:.1%}' for rate in (rates.mean(), rates[0], rates[-1])),
        f'{layer.silent:,} ({layer.silent / layer.neurons:.1%})',
        f'{layer.always_firing:,} ({layer.always_firing / layer.neurons:.1%})',
      )
    )
  return [
    page.heading('Firing'),
    page.paragraph(
      f'Spikes per neuron and step on {found.activity.examples:,} test '
      'examples. A neuron never fires if it is silent at every step of every '
      'example, and always fires if it fires at every step of every example.'
    ),
    page.row(
      [
        draw(
          'firing_rates',
          layers,
          words='firing rate of each layer at each step',
          kind='broad',
        ),
        draw(
          'silence',
          layers,
          words='share of neurons that never or always fire, by layer',
          kind='broad',
        ),
      ]
    ),
    page.table(rows),
  ]


def _layers(found, draw):
  layers = found.activity.layers
  normed = any(layer.after is not None for layer in layers.values())
  words = 'The distribution of the membrane potential after charging, '
  if normed:
    words += 'before its norm and after it, at each step. '
    fires = 'A neuron fires where the potential after the norm exceeds v_th. '
  else:
    words += 'at each step. '
    fires = 'A neuron fires where it exceeds v_th. '
  words += fires
  if found.not_folded:
    words += f'No thresholds are folded: {found.not_folded}. '
  else:
    words += 'The thresholds are those that the norm folds into. '
  shown = _chosen(layers, _MANY, _SOME)
  if len(shown) < len(layers):
    words += f'{len(shown)} of {len(layers)} layers; {JSON} has all of them.'
  parts = [
    page.heading('Membrane potentials and thresholds'),
    page.paragraph(words),
    draw(
      'spread',
      layers,
      words='quantiles of the membrane potential of each layer',
      kind='broad',
    ),
  ]
  single = []
  for name in shown:
    layer, (traces, thresholds) = layers[name], found.neurons[name]
    about = _about(layer, thresholds, found)
    pictures = _panels(draw, name, layer, traces.v_th)
    if not found.not_folded:
      pictures.append(
        draw('thresholds', thresholds, words=f'thresholds of {name}')
      )
    if len(pictures) == 1:
      single.append((f'{name}: {about}', pictures[0]))
      continue
    parts.append(page.heading(name, level=3))
    parts.append(page.paragraph(about))
    parts.append(page.row(pictures))
  parts.append(
    page.row(page.described(picture, text) for text, picture in single)
  )
  return parts


def _panels(draw, name, layer, v_th):
  """Returns pictures of the potentials before a norm and after it."""
  words = f'membrane potential of {name}'
  if layer.after is None:
    return [
      draw(
        'potentials', layer.before, title='potential', v_th=v_th, words=words
      )
    ]
  return [
    draw(
      'potentials',
      layer.before,
      title='before the norm',
      v_th=None,
      words=f'{words} before its norm',
    ),
    draw(
      'potentials',
      layer.after,
      title='after the norm',
      v_th=v_th,
      words=f'{words} after its norm',
    ),
  ]


def _about(layer, thresholds, found):
  words = [
    f'{layer.neurons:,} neurons',
    f'firing rate {layer.firing_rate.mean():.1%}',
  ]
  if not found.not_folded:
    words += [
      f'thresholds: {thresholds.size:,}, {thresholds.negative_polarity:,} of '
      f'negative polarity, {thresholds.never_fire:,} that no potential '
      f'reaches, {thresholds.always_fire:,} that every potential exceeds'
    ]
  for name, histogram in (('', layer.before), (' after', layer.after)):
    if histogram is not None:
      outside = int(histogram.below.sum() + histogram.above.sum())
      nan = int(histogram.nan.sum())
      where = ' before' if not name and layer.after is not None else name
      norm = f'{where} the norm' if where else ''
      if outside:
        words.append(f'potentials{norm} outside of the picture: {outside:,}')
      if nan:
        words.append(f'potentials{norm} that are not a number: {nan:,}')
  return '; '.join(words) + '.'


def _traces(found, draw):
  pictures = [
    draw(
      'traces',
      found.neurons[name][0],
      title=name,
      words=f'potential, threshold and spikes of neurons of {name}',
    )
    for name in _chosen(found.neurons, _TRACED, _TRACED)
  ]
  level = 'threshold' if not found.not_folded else 'v_th'
  return [
    page.heading('A few neurons'),
    page.paragraph(
      f'Membrane potential, {level} and spikes on test example {EXAMPLE}. A '
      'neuron is named by its place (row, column, channel). After a spike, the '
      'potential is reset.'
    ),
    page.row(pictures),
  ]


def _predictions(found, draw, spec):
  seen, names = found.activity, spec.class_names
  wrong = seen.examples - int(np.trace(seen.confusion))
  parts = [
    page.heading('Predictions'),
    page.paragraph(
      f'{seen.examples - wrong:,} of {seen.examples:,} test examples are '
      f'predicted correctly: {seen.accuracy:.2%}.'
    ),
    draw('confusion', seen.confusion, names, words='confusion matrix'),
  ]
  if not wrong:
    return parts
  events = ' (orange: on, blue: off, all steps together)'
  shown = events if spec.frames and spec.image_shape[-1] == 2 else ''
  parts.append(
    page.paragraph(
      f'Wrong predictions with the largest probability, {len(seen.wrong)} of '
      f'{wrong:,}{shown}:'
    )
  )
  captions = [
    f'{names[each.label]} taken for {names[each.prediction]} '
    f'({each.probability:.0%}), example {each.index}'
    for each in seen.wrong
  ]
  parts.append(
    page.row(
      draw(
        'example',
        each.image,
        max_value=spec.max_value,
        words=caption,
        kind='small',
        caption=caption,
      )
      or page.paragraph(caption)
      for each, caption in zip(seen.wrong, captions, strict=True)
    )
  )
  return parts


def _energy(found, draw):
  parts = [page.heading('Synaptic operations and energy')]
  if found.no_energy:
    return [*parts, page.paragraph(f'Not counted: {found.no_energy}')]
  parts.append(
    page.paragraph(
      'Operations of one example, all steps, with every norm folded. '
      f'{MAC_PJ} pJ per multiply-accumulate (MAC) and {AC_PJ} pJ per '
      'accumulate (AC): 45 nm, 32 bits. Memory traffic is left out, which on '
      'most hardware takes more energy than these operations. The ANN is the '
      'same network run once, with real numbers in place of spikes.'
    )
  )
  rows = [('convention', 'MACs', 'ACs', 'energy', 'ANN', 'ratio')]
  other = any(each.other_first_layer for each in found.energies.values())
  if other:
    rows[0] += ('energy, image read once',)
  for name, each in found.energies.items():
    cells = [
      name,
      f'{float(each.macs):,.0f}',
      f'{float(each.acs):,.0f}',
      _joules(each.picojoules),
      _joules(each.ann_picojoules),
      f'{each.picojoules / each.ann_picojoules:.2f}',
    ]
    if other:
      cells.append(_joules(each.once_picojoules))
    rows.append(tuple(cells))
  parts.append(page.table(rows))
  parts.append(page.heading('What the conventions count', level=3))
  parts.append(page.table(_fields(found.energies), text=(1, 2, 3, 4)))
  name, first = next(iter(found.energies.items()))
  parts.append(page.heading(f'Layer by layer ({name})', level=3))
  parts.append(
    draw('energies', first, words='energy of each layer', kind='broad')
  )
  rows = [('layer', 'input not 0', 'MACs', 'ACs', 'energy', 'ANN MACs')]
  rows += [
    (
      each.name,
      f'{each.nonzero:.1%}',
      f'{float(each.macs):,.0f}',
      f'{float(each.acs):,.0f}',
      _joules(each.picojoules),
      f'{each.ann_macs:,}',
    )
    for each in first.layers
  ]
  parts.append(page.table(rows))
  return parts


def _fields(energies):
  """Returns what each convention says in each field."""
  rows = [('', *energies)]
  for field in dataclasses.fields(next(iter(energies.values())).convention):
    values = [getattr(e.convention, field.name) for e in energies.values()]
    words = [{True: 'yes', False: 'no'}.get(v, v) for v in values]
    rows.append((field.name.replace('_', ' '), *words))
  return rows


def _joules(picojoules):
  for unit, size in (('mJ', 1e9), ('µJ', 1e6), ('nJ', 1e3)):
    if picojoules >= size:
      return f'{picojoules / size:.3g} {unit}'
  return f'{picojoules:.3g} pJ'
