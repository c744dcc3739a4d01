"""Norms, surrogates, networks and data sets from outside of the package."""

import json
import runpy

import jax
import jax.numpy as jnp
import pytest
import runs
from two_layers import TwoLayers

from mpbn_jax import MODELS, InputError, build_model, load_run

EXAMPLES = sorted((runs.ROOT / 'docs' / 'examples').glob('own_*.py'))


pytestmark = pytest.mark.usefixtures('registries')


@pytest.mark.slow
@pytest.mark.parametrize('file', EXAMPLES, ids=[file.stem for file in EXAMPLES])
def test_example_trains_folds_and_reports(file, tmp_path, capsys, monkeypatch):
  monkeypatch.setitem(MODELS, 'spiking_cnn', TwoLayers)
  workdir = tmp_path / 'run'
  shown = f'--config=docs/examples/{file.name}'
  assert f'python main.py {shown}' in runpy.run_path(str(file))['__doc__']
  arguments = [
    f'--config={file}',
    '--config.num_epochs=1',
    '--config.model.width=4',
    '--config.model.num_steps=2',
  ]
  assert runs.run(workdir, *arguments) == 0
  out = capsys.readouterr().out
  summary = json.loads((workdir / 'summary.json').read_text())
  assert summary['spikes_compared'] > 1000
  # Folded kernels round otherwise; all other folds are exact.
  inexact = summary['fold'] == 'all' and summary['conv_norm'] != 'none'
  share = summary['spikes_differing'] / summary['spikes_compared']
  assert share <= (1e-5 if inexact else 0)
  assert 'spikes that differ' in out
  # The run is whole by its own configuration, as long as the file was read.
  run = load_run(workdir)
  x = jnp.zeros((2, *run.spec.image_shape))
  assert run.model.apply(run.variables, x, train=False).shape == (2, 10)


def test_fine_tuning_keeps_all_but_the_head(tmp_path, capsys):
  file = runs.ROOT / 'docs' / 'examples' / 'fine_tuning.py'
  workdir, other = tmp_path / 'run', runs.finished()
  arguments = [f'--config={file}', f'--init_from={other}']
  slow = '--config.optimizer.learning_rate=1e-30'
  assert runs.run(workdir, *arguments, slow, '--config.num_epochs=1') == 0
  out = capsys.readouterr().out
  assert f'initial weights from {other}; new: params/head/' in out
  before, after = (load_run(d).variables['params'] for d in (other, workdir))
  same = [
    name
    for name in before
    if jnp.array_equal(*(_leaves(tree[name]) for tree in (before, after)))
  ]
  assert set(same) == before.keys() - {'head'}


def _leaves(tree):
  return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])


def test_settings_of_a_network_are_checked_by_its_own_class(tmp_path, capsys):
  file = runs.ROOT / 'docs' / 'examples' / 'own_mlp.py'
  arguments = [f'--config={file}', '--config.model.layer=2']
  assert runs.run(tmp_path / 'run', *arguments) == 2
  assert "did you mean 'model.layers'" in capsys.readouterr().err
  with pytest.raises(
    InputError, match=r"'spiking_cnn' has no setting layers, .*\(mlp\)"
  ):
    build_model({'name': 'spiking_cnn', 'layers': 2})


def test_page_names_every_example_with_its_lines():
  page = (runs.ROOT / 'docs' / 'extending.md').read_text()
  for file in EXAMPLES:
    lines = len(file.read_text().splitlines())
    assert f'`docs/examples/{file.name}` | {lines} |' in page
