"""--mode=export: the folder that it writes, and what it does without."""

import contextlib
import functools
import importlib.util
import io
import json
import pathlib
import re
import runpy
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import runs

import mpbn_jax
from mpbn_jax import report
from mpbn_jax.deployment import FORMATS
from mpbn_jax.deployment.network import deployed
from mpbn_jax.deployment.report import compared, readme

pytest.importorskip('flatbuffers', reason='jax.export writes files with it')


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
  """Returns (folder, work directory, output) without any optional package."""
  workdir = tmp_path_factory.mktemp('runs') / 'run'
  shutil.copytree(runs.finished(), workdir)
  with pytest.MonkeyPatch.context() as patch:
    for package in ('jax2onnx', 'nir'):
      patch.setitem(sys.modules, package, None)
    out, code = _captured(workdir, '--mode=export')
  assert code == 0, out
  return workdir / 'export' / str(runs.LAST), workdir, out


def _captured(workdir, *arguments):
  text = io.StringIO()
  with contextlib.redirect_stdout(text):
    code = runs.run(workdir, *arguments)
  return text.getvalue(), code


def _manifest(folder):
  return json.loads((folder / 'export.json').read_text())


def test_folder_has_the_files_that_its_manifest_lists(exported):
  folder, *_ = exported
  formats = _manifest(folder)['formats']
  assert formats.keys() == FORMATS.keys()
  files = {'README.md', 'MODEL_CARD.md', 'export.json'}
  for name, result in formats.items():
    if 'files' in result:
      files |= result['files'].keys()
      if name != 'int8':
        assert result['differences']['predictions'] == 0, name
        assert result['differences']['beyond_rounding'] == 0, name
  found = (path for path in folder.rglob('*') if path.is_file())
  assert {str(path.relative_to(folder)) for path in found} == files
  assert {'network.jax', 'start.jax', 'step.jax', 'load_example.py'} <= files


def test_missing_package_is_named_in_one_line_and_stops_no_other(exported):
  folder, _, out = exported
  (line,) = (row for row in out.splitlines() if 'not written: onnx' in row)
  assert 'expected the package jax2onnx' in line
  assert line.partition('onnx: ')[2] in (folder / 'README.md').read_text()


def test_differences_are_printed_and_in_the_readme(exported):
  folder, _, out = exported
  for name in ('jax', 'jax_step'):
    result = _manifest(folder)['formats'][name]
    text = compared(result['differences'])
    assert f'{", ".join(result["files"])}: {text}' in out
    assert text in ' '.join((folder / 'README.md').read_text().split())
  assert '0 of 256 predictions differ, logits by at most ' in out


def test_readme_says_where_it_was_folded_and_until_when_it_can_be_read(
  exported,
):
  folder, *_ = exported
  manifest, text = _manifest(folder), (folder / 'README.md').read_text()
  assert f'folded on {jax.default_backend()}' in text
  assert manifest['date'] < manifest['jax_readable_until']
  for name in ('date', 'jax_readable_until', 'jax', 'mpbn_jax'):
    assert manifest[name] in text
  assert str(pathlib.Path.home()) not in text


def test_model_card_has_the_accuracy_of_the_run(exported):
  folder, workdir, _ = exported
  text = (folder / 'MODEL_CARD.md').read_text()
  accuracy = report.read_summary(workdir)['test_accuracy']
  assert f'| test accuracy | {accuracy:.2%} |' in text
  assert 'README.md' in text


def test_loading_example_classifies_without_this_package(exported, tmp_path):
  folder, workdir, _ = exported
  images = np.random.default_rng(0).integers(0, 17, (5, 8, 8, 1), np.uint8)
  np.save(tmp_path / 'images.npy', images)
  code = (
    "import runpy, sys; sys.modules['mpbn_jax'] = None; "
    f'sys.argv[1:] = [{str(tmp_path / "images.npy")!r}]; '
    f"runpy.run_path({str(folder / 'load_example.py')!r}, run_name='__main__')"
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=True,
  )
  run = mpbn_jax.load_run(workdir)
  logits = run.model.apply(
    run.variables, run.spec.normalize(images), train=False
  )
  assert done.stdout.split() == [str(k) for k in logits.argmax(-1)]


def test_loading_example_refuses_garbage_in_one_line(exported, tmp_path):
  path = tmp_path / 'load_example.py'
  shutil.copyfile(exported[0] / path.name, path)
  (tmp_path / 'network.jax').write_bytes(b'garbage' * 99)
  main = runpy.run_path(str(path))['main']
  with pytest.raises(SystemExit) as stop:
    main(np.zeros((1, 8, 8, 1), np.uint8))
  assert str(stop.value).startswith('error: expected a program of jax.export')
  assert '\n' not in str(stop.value)


def test_code_of_the_page_runs(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  pathlib.Path('runs').mkdir()
  pathlib.Path('runs/digits').symlink_to(runs.finished())
  page = (runs.ROOT / 'docs' / 'deployment.md').read_text()
  blocks = re.findall(r'^```python\n(.*?)^```$', page, re.M | re.S)
  names = {
    **dict(mpbn_jax=mpbn_jax, jax=jax, functools=functools, pathlib=pathlib),
    'images': np.zeros((2, 8, 8, 1), np.uint8),
    'frames': np.zeros((2, 3, 8, 8, 1), np.float32),
  }
  needs = {'write_nir': ('nir', 'jax2onnx', 'onnxruntime')}
  ran = 0
  for block in blocks:
    packages = [p for key, ps in needs.items() if key in block for p in ps]
    if all(importlib.util.find_spec(package) for package in packages):
      exec(block, names)
      ran += 1
  assert ran >= len(blocks) - 1 == 3


def test_second_export_replaces_the_first(exported, tmp_path):
  _, workdir, _ = exported
  copy = tmp_path / 'run'
  shutil.copytree(workdir, copy)
  folder = copy / 'export' / str(runs.LAST)
  (folder / 'old').touch()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr('mpbn_jax.deployment.report.FORMATS', {})
    assert runs.run(copy, '--mode=export') == 0
  assert not (folder / 'old').exists()
  assert _manifest(folder)['formats'] == {}
  assert {path.name for path in folder.parent.iterdir()} == {
    '.lock',
    str(runs.LAST),
  }


def test_program_is_compared_on_the_other_platforms_of_the_machine(
  exported, tmp_path, monkeypatch
):
  folder, workdir, _ = exported
  config = runs.config()
  experiment, state = report.restore(config, workdir=workdir)
  network = deployed(experiment, state.variables)
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  found = FORMATS['jax'].write(network, tmp_path)['elsewhere']
  assert found.keys() == {'cpu'}
  manifest = _manifest(folder)
  manifest['formats']['jax']['differences']['elsewhere'] = found
  assert f'On cpu: {compared(found["cpu"])}' in ' '.join(
    readme(manifest).split()
  )


def test_readme_of_a_network_that_does_not_fold_says_so(exported):
  manifest = _manifest(exported[0])
  manifest |= {'fold': None, 'not_folded': 'membrane_norm is none'}
  text = ' '.join(readme(manifest).split())
  assert 'not folded (membrane_norm is none)' in text
