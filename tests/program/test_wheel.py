"""The package as pip installs it, outside of the checkout."""

import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
from runs import ROOT, TINY


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  """Returns a wheel, built of a copy without what is ignored."""
  copy = tmp_path_factory.mktemp('source') / 'mpbn_jax'
  shutil.copytree(
    ROOT,
    copy,
    ignore=shutil.ignore_patterns('.*', '*.egg-info', 'build', 'runs', 'tests'),
  )
  out = tmp_path_factory.mktemp('wheel')
  subprocess.run(
    [sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--quiet']
    + ['--no-build-isolation', f'--wheel-dir={out}', str(copy)],
    check=True,
    timeout=300,
  )
  (path,) = out.glob('*.whl')
  return path


@pytest.fixture(scope='module')
def site(wheel, tmp_path_factory):
  """Returns a folder with what the wheel installs."""
  folder = tmp_path_factory.mktemp('site')
  with zipfile.ZipFile(wheel) as archive:
    archive.extractall(folder)
  return folder


def test_every_package_is_in_the_wheel_and_nothing_at_top_level(site):
  tops = {path.name for path in site.iterdir()}
  assert {name for name in tops if not name.endswith('.dist-info')} == {
    'mpbn_jax'
  }
  ours = {
    path.relative_to(ROOT) for path in (ROOT / 'mpbn_jax').rglob('*.py')
  } | {
    pathlib.Path('mpbn_jax', path.relative_to(ROOT))
    for path in (ROOT / 'configs').rglob('*.py')
  }
  theirs = {path.relative_to(site) for path in site.rglob('*.py')}
  assert theirs == ours


def test_console_command_is_the_program(site):
  scripts = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project'][
    'scripts'
  ]
  assert scripts == {'mpbn_jax': 'mpbn_jax.__main__:run'}
  (entry_points,) = site.glob('*.dist-info/entry_points.txt')
  assert 'mpbn_jax = mpbn_jax.__main__:run' in entry_points.read_text()


@pytest.mark.slow
def test_installed_package_trains_from_an_empty_folder(site, tmp_path):
  # The interpreter of the tests has the dependencies; -P keeps the folder that
  # it is started in off the path.
  run = subprocess.run(
    [sys.executable, '-P', '-m', 'mpbn_jax', *TINY]
    + ['--config=configs/digits.py', '--config.num_epochs=1'],
    cwd=tmp_path,
    env={
      'PYTHONPATH': str(site),
      'HOME': str(tmp_path),
      'JAX_DISABLE_MOST_OPTIMIZATIONS': 'true',
    },
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert run.returncode == 0, run.stderr
  assert re.search(r'spikes that differ +0 of [1-9]', run.stdout)
  assert (tmp_path / 'runs' / 'digits' / 'summary.json').is_file()
