"""The report of what happens inside a network: numbers, page and command."""

import html.parser
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

import main as program
from mpbn_jax import report
from mpbn_jax.analysis import inside_page, page, panels
from mpbn_jax.analysis.conventions import CONVENTIONS
from mpbn_jax.analysis.inside import look_inside
from mpbn_jax.experiment import build


class _Page(html.parser.HTMLParser):
  """The tags that a page has, checked to be closed."""

  def __init__(self, text):
    super().__init__()
    self.open, self.attributes = [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.attributes += [(tag, *pair) for pair in attrs]
    if tag not in ('meta', 'img'):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


@pytest.fixture(scope='module')
def analyzed(tmp_path_factory):
  """Returns (folder of the report, what the command printed)."""
  pytest.importorskip('matplotlib')
  workdir = tmp_path_factory.mktemp('analyzed') / 'run'
  shutil.copytree(runs.finished(), workdir)
  before = runs.snapshot(workdir)
  assert program.main(['--mode=analyze', f'--workdir={workdir}']) == 0
  after = runs.snapshot(workdir)
  assert {name: after[name] for name in before} == before
  assert {name for name in after if name not in before} == {
    f'analysis/{runs.LAST}/report.{kind}' for kind in ('html', 'json')
  }
  return workdir / 'analysis' / str(runs.LAST)


def test_the_numbers_are_those_of_the_run(analyzed):
  values = json.loads((analyzed / 'report.json').read_text())
  summary = report.read_summary(runs.finished())
  assert values['step'] == summary['step']
  assert values['accuracy'] == pytest.approx(summary['test_accuracy'])
  assert values['examples'] == summary['test_size'] == 359
  rates = {k: np.mean(v['firing_rate']) for k, v in values['layers'].items()}
  assert rates == pytest.approx(summary['firing_rate'])
  for name, layer in values['layers'].items():
    found = layer['thresholds']
    span = summary['thresholds'][name]
    assert found['negative_polarity'] == span['negative_polarity']
    assert found['never_fire'] + found['always_fire'] == span['constant']
    assert found['edges'][0] == pytest.approx(span['min'])
    assert found['edges'][-1] == pytest.approx(span['max'])
  assert np.sum(values['confusion']) == 359
  wrong = 359 - np.trace(values['confusion'])
  assert len(values['wrong']) == min(24, wrong) > 0
  assert set(values['energy']['conventions']) == set(CONVENTIONS)
  assert values['energy']['not_counted'] is None
  # JSON has no NaN and no infinity.
  assert not re.search('NaN|Infinity', (analyzed / 'report.json').read_text())


def test_the_page_is_whole_and_needs_nothing_else(analyzed):
  text = (analyzed / 'report.html').read_text()
  found = _Page(text)
  assert found.open == []
  links = [value for _, name, value in found.attributes if name == 'href']
  assert links == ['report.json']
  sources = [value for _, name, value in found.attributes if name == 'src']
  assert all(s.startswith('data:image/png;base64,iVBOR') for s in sources)
  # Firing rates, silence and quantiles; three panels of each of 4 layers; three
  # traces; the confusion matrix; examples; energies.
  wrong = len(json.loads((analyzed / 'report.json').read_text())['wrong'])
  assert len(sources) == 3 + 3 * 4 + 3 + 1 + wrong + 1
  words = [value for _, name, value in found.attributes if name == 'alt']
  assert len(words) == len(sources)
  assert all(words)
  assert 'width=device-width' in text
  assert 'Memory traffic is left out' in text
  for name in ('lif1', 'lif4', 'neurobench', 'syops'):
    assert name in text


def test_a_run_without_a_checkpoint_is_refused_in_a_line(tmp_path, capsys):
  assert program.main(['--mode=analyze', f'--workdir={tmp_path / "no"}']) == 2
  error = runs.the_error(capsys.readouterr())
  assert 'expected a trained network, got no checkpoint' in error
  assert not (tmp_path / 'no').exists()


def test_the_steps_flag_is_refused(tmp_path, capsys):
  arguments = ['--mode=analyze', '--steps=1', f'--workdir={tmp_path}']
  assert program.main(arguments) == 2
  assert 'only for --mode=steps' in runs.the_error(capsys.readouterr())


def _inside(*arguments):
  experiment = build(
    runs.config(
      '--config.data.fake=16', '--config.data.batch_size=8', *arguments
    )
  )
  x = jnp.zeros((1, *experiment.dataset.example_shape))
  variables = experiment.model.init(jax.random.key(0), x, train=False)
  return experiment, look_inside(experiment, variables)


def _html(experiment, found, *, pictures):
  return inside_page.html(
    found,
    title='a < b',
    about=[('data', '<none>')],
    spec=experiment.dataset.spec,
    pictures=pictures,
  )


def test_what_does_not_fold_is_said():
  experiment, found = _inside(
    '--config.model.membrane_norm=none', '--config.model.spike_norm=psp_ln'
  )
  assert found.energies == {}
  assert 'psp_ln' in found.no_energy
  assert found.not_folded == 'membrane_norm is none'
  assert all(layer.after is None for layer in found.activity.layers.values())
  text = _html(experiment, found, pictures=False)
  assert 'Not counted: ' in text
  assert 'No thresholds are folded: membrane_norm is none' in text
  assert 'pip install matplotlib' in text
  assert '<img' not in text
  assert 'a &lt; b' in text
  assert '&lt;none&gt;' in text
  json.dumps(found.to_json(), allow_nan=False)


def test_a_deep_network_on_recordings_is_shown(monkeypatch):
  """With more layers than are all shown, and without any norm."""
  experiment, found = _inside(
    '--config.model.name=preact_resnet',
    '--config.model.depth=10',
    '--config.data.name=event_digits',
    '--config.model.conv_norm=none',
    '--config.model.membrane_norm=none',
  )
  assert len(found.activity.layers) == 7
  assert 'stage1_blocks/lif1[0]' in found.activity.layers
  assert found.no_energy is None
  assert all(e.other_first_layer is None for e in found.energies.values())
  monkeypatch.setattr(inside_page, '_MANY', 5)
  monkeypatch.setattr(inside_page, '_SOME', 3)
  text = _html(experiment, found, pictures=False)
  assert '3 of 7 layers' in text
  assert _Page(text).open == []


def test_examples_are_pictures_whatever_their_channels():
  pytest.importorskip('matplotlib')
  for shape in ((8, 8, 1), (8, 8, 3), (2, 8, 8, 2), (300, 300, 4)):
    image = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    data = panels.example(image, max_value=255)
    assert data.startswith(b'\x89PNG')


def test_layers_are_chosen_evenly():
  names = [f'lif{i}' for i in range(103)]
  chosen = inside_page._chosen(names, 20, 12)
  assert len(chosen) == len(set(chosen)) == 12
  assert (chosen[0], chosen[-1]) == ('lif0', 'lif102')
  assert inside_page._chosen(names[:20], 20, 12) == names[:20]


def test_text_cannot_become_markup():
  assert page.paragraph('<b>&') == '<p>&lt;b&gt;&amp;</p>'
  assert '<script>' not in page.table([['<script>'], ['<script>']])
