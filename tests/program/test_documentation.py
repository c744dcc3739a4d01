"""What the documentation shows: it runs and prints what it says."""

import doctest
import importlib
import os
import pathlib
import pkgutil
import re
import runpy
import shlex
import subprocess
import sys

import common
import jax
import jax.numpy as jnp
import matplotlib
import pytest
import runs
from matplotlib import pyplot
from two_layers import TwoLayers

import mpbn_jax
from mpbn_jax import MODELS

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODULES = [
  info.name for info in pkgutil.walk_packages(mpbn_jax.__path__, 'mpbn_jax.')
]


def _examples(name):
  return [
    test
    for test in doctest.DocTestFinder().find(importlib.import_module(name))
    if test.examples
  ]


@pytest.mark.usefixtures('registries')
@pytest.mark.parametrize('name', [n for n in MODULES if _examples(n)])
def test_examples_of_docstrings_print_what_they_show(name):
  model, variables = common.small()
  names = {
    'jax': jax,
    'jnp': jnp,
    'mpbn_jax': mpbn_jax,
    'model': model,
    'variables': variables,
    'x': common.images(),
    'workdir': runs.finished(),
  }
  for example in _examples(name):
    if name.endswith('interop.torch'):
      config = {'name': 'resnet20', 'width': 4, 'num_steps': 2}
      _, _, variables, *_ = common.golden('resnet20_t2')
      names |= {'config': config, 'variables': variables}
    example.globs.update(names)
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    result = runner.run(example)
    assert result.failed == 0, example.name


def test_the_names_that_users_call_have_examples():
  shown = {test.name for name in MODULES for test in _examples(name)}
  for name in (
    'surrogate.spike',
    'neuron.lif_scan',
    'folding.fold',
    'models.build_model',
    'ops.convolution.convolution',
  ):
    assert f'mpbn_jax.{name}' in shown


def _readme_commands():
  """Returns every command of the README that starts this program."""
  text = (ROOT / 'README.md').read_text()
  commands = re.findall(r'^ {4}python main\.py(.*)$', text, re.MULTILINE)
  return [shlex.split(command) for command in commands]


def test_readme_shows_the_commands():
  assert [] in _readme_commands()
  assert len(_readme_commands()) >= 6


@pytest.mark.slow
def test_readme_commands_run_in_the_order_shown(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setitem(MODELS, 'spiking_cnn', TwoLayers)
  short = ('--config.num_epochs=1', '--config.data.train_size=128')
  for command in _readme_commands():
    if '--mode=reproduce' in command:  # tests/studies runs one
      assert len(runs.command_line.parse(command).study.arms) > 5
      continue
    # What the command says comes last, so it holds.
    code = runs.program.main([*runs.TINY, *short, *command])
    streams = capsys.readouterr()
    assert code == 0, (command, streams.err)
    assert (
      'spikes that differ' in streams.out
      or 'Flags:' in streams.out
      or ('--config.model.membrane_norm=none' in command)
      or ('report.html' in streams.out and '--mode=analyze' in command)
    )
  assert (tmp_path / 'runs' / 'digits' / 'summary.json').exists()
  assert (tmp_path / 'runs' / 'digits' / 'folded').is_dir()


def test_every_test_that_conformance_names_exists():
  text = (ROOT / 'docs' / 'conformance.md').read_text()
  named = re.findall(r'`((?:\w+/)?test_\w+\.py)::(test_\w+)`', text)
  assert len(named) > 30
  for file, test in named:
    source = (ROOT / 'tests' / file).read_text()
    assert f'def {test}(' in source, f'{file}::{test}'


@pytest.mark.parametrize(
  'page',
  [
    'README.md',
    *(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob('docs/*.md'))),
  ],
)
def test_every_file_that_a_page_names_exists(page):
  text = (ROOT / page).read_text()
  for name in re.findall(r'`((?:[\w.]+/)*\w+\.(?:py|txt))[`:]', text):
    homes = (ROOT, ROOT / 'mpbn_jax', ROOT / 'tests')
    assert any((home / name).is_file() for home in homes), name


SCRIPTS = sorted((ROOT / 'benchmarks').glob('*.py'))
HELPERS = {'collectives.py', 'measure.py', 'networks.py', 'peers.py'}


@pytest.mark.parametrize(
  'file',
  [file for file in SCRIPTS if file.name != 'peers.py'],
  ids=lambda file: file.name,
)
def test_benchmark_is_listed_and_can_be_started(file, monkeypatch):
  monkeypatch.syspath_prepend(ROOT / 'benchmarks')
  names = runpy.run_path(str(file))
  if file.name not in HELPERS:
    table = (ROOT / 'benchmarks' / 'README.md').read_text()
    assert f'| `{file.name}` |' in table
    assert callable(names['main'])


@pytest.mark.slow
def test_quickstart_trains_folds_and_plots(tmp_path):
  file = 'docs/examples/quickstart.py'
  assert f'PYTHONPATH=. python {file}' in (ROOT / 'README.md').read_text()
  done = subprocess.run(
    [sys.executable, str(ROOT / file)],
    cwd=tmp_path,
    env={
      **os.environ,
      # It trains for longer than it compiles.
      'XLA_FLAGS': '',
      'JAX_DISABLE_MOST_OPTIMIZATIONS': 'false',
      'PYTHONPATH': str(ROOT),
      'MPLBACKEND': 'Agg',
    },
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stderr) == (0, '')
  accuracy, change = done.stdout.splitlines()
  assert float(accuracy.removeprefix('test accuracy: ').rstrip('%')) > 80
  assert change == 'largest change of a logit: 0.0e+00'
  assert (tmp_path / 'thresholds.png').stat().st_size > 5000


def test_pictures_of_folding_show_what_the_package_decides():
  matplotlib.use('Agg')
  names = runpy.run_path(str(ROOT / 'docs' / 'plot_folding.py'))
  panels = {'neuron': 2, 'signs': 3, 'rounding': 1}
  for name, count in panels.items():
    figure = names[name]()
    assert len(figure.axes) == count
    assert f'(folding_{name}.png)' in (ROOT / 'docs' / 'folding.md').read_text()
    assert (ROOT / 'docs' / f'folding_{name}.png').stat().st_size < 100_000
    pyplot.close(figure)
