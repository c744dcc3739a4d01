"""The loss around a network: directions, values, flatness, and the command."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

import main as program
from mpbn_jax import InputError, evaluation, fold, report, strip
from mpbn_jax.analysis import landscape as analysis
from mpbn_jax.datasets.base import Subset

SMALL = dict(directions=3, radii=(0.5, 0.1), side=3, examples=100)


@pytest.fixture(scope='module')
def trained():
  return report.restore(runs.config(), workdir=runs.finished())


@pytest.fixture(scope='module')
def found(trained):
  experiment, state = trained
  return analysis.landscape(experiment, state.variables, **SMALL)


def test_every_filter_of_a_direction_has_the_norm_of_its_kernel():
  rng = np.random.default_rng(0)
  params = {
    'conv': {'kernel': rng.normal(size=(3, 3, 4, 5)), 'bias': np.ones(5)},
    'dense': {'kernel': rng.normal(size=(6, 2))},
    'blocks': {'kernel': rng.normal(size=(7, 3, 3, 4, 5))},  # stacked
    'norm': {'scale': np.ones(5)},
  }
  params = jax.tree.map(jnp.float32, params)
  direction = analysis.filter_normalized(jax.random.key(0), params)
  for name, axes in (
    ('conv', (0, 1, 2)),
    ('dense', (0,)),
    ('blocks', (1, 2, 3)),
  ):
    ours, theirs = (tree[name]['kernel'] for tree in (direction, params))
    np.testing.assert_allclose(
      np.square(ours).sum(axes), np.square(theirs).sum(axes), rtol=1e-5
    )
    assert abs(np.corrcoef(np.ravel(ours), np.ravel(theirs))[0, 1]) < 0.9
  assert not direction['conv']['bias'].any()
  assert not direction['norm']['scale'].any()


def test_losses_are_those_of_moved_networks(trained, found):
  experiment, state = trained
  train = experiment.dataset.splits['train']
  chosen = np.linspace(0, len(train) - 1, 100).astype(int)
  dataset = dataclasses.replace(
    experiment.dataset, splits={'some': Subset(train, chosen)}
  )
  experiment = dataclasses.replace(experiment, dataset=dataset)
  keys = jax.random.split(jax.random.key(0), 3)
  params = state.variables['params']
  first, second = (analysis.filter_normalized(k, params) for k in keys[:2])

  def loss(a, b):
    moved = jax.tree.map(
      lambda p, d, e: p + a * d + b * e, params, first, second
    )
    variables = {**state.variables, 'params': moved}
    return evaluation.evaluate(experiment, variables, split='some')['loss']

  np.testing.assert_array_equal(found.alphas, [-0.5, -0.1, 0, 0.1, 0.5])
  np.testing.assert_allclose(found.loss, loss(0, 0), rtol=1e-5)
  np.testing.assert_allclose(found.lines[:, 2], found.loss, rtol=1e-6)
  np.testing.assert_allclose(found.lines[0, 4], loss(0.5, 0), rtol=1e-4)
  np.testing.assert_allclose(found.lines[1, 1], loss(0, -0.1), rtol=1e-4)
  np.testing.assert_allclose(found.plane[0, 2], loss(-1, 1), rtol=1e-4)
  assert len({round(float(x), 5) for x in found.plane.ravel()}) == 9


def test_flatness_is_of_both_signs_and_all_directions():
  alphas = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
  lines = 2 + np.outer([1, 2, 3, 4], alphas**2 + alphas / 2)
  found = analysis.Landscape(
    loss=2.0,
    alphas=alphas,
    lines=lines,
    grid=alphas,
    plane=np.zeros((5, 5)),
    examples=1,
    seed=0,
  )
  near, far = found.flatness()
  assert (near['radius'], far['radius']) == (0.5, 1.0)
  np.testing.assert_allclose(near['mean'], 0.25 * 2.5)
  np.testing.assert_allclose(far['mean'], 2.5)
  np.testing.assert_allclose(far['largest'], 4 * 1.5)
  assert far['low'] < 2.5 < far['high']
  values = json.loads(json.dumps(found.to_json()))
  assert values['flatness'] == [near, far]
  assert analysis.Landscape.from_json(values).flatness() == [near, far]


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'radii': (0.1, 0.0)}, 'radii must be positive'),
    ({'radii': (0.1, 0.1)}, 'radii must be positive and different'),
    ({'directions': 2}, 'directions must be at least 3'),
    ({'examples': 0}, 'examples must be at least 1'),
    ({'side': 4}, 'side must be odd'),
  ],
)
def test_arguments_out_of_range_are_refused(trained, changes, message):
  experiment, state = trained
  with pytest.raises(InputError, match=message):
    analysis.landscape(experiment, state.variables, **{**SMALL, **changes})


def test_folded_variables_are_refused(trained):
  experiment, state = trained
  with pytest.raises(InputError, match='variables that are not folded'):
    analysis.landscape(experiment, strip(fold(state.variables)), **SMALL)


def test_the_command_prints_and_draws(tmp_path, capsys):
  workdir = tmp_path / 'run'
  shutil.copytree(runs.finished(), workdir)
  before = {path.name for path in workdir.iterdir()}
  assert program.main(['--mode=landscape', f'--workdir={workdir}']) == 0
  text = capsys.readouterr().out
  assert 'mean rise of the loss' in text
  written = {path.name for path in workdir.iterdir()} - before
  assert written == {'landscape.json', 'landscape.png'}
  values = json.loads((workdir / 'landscape.json').read_text())
  assert np.shape(values['lines']) == (20, 9)
  assert values['step'] == runs.LAST
