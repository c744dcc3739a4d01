"""Layers of the package, and what importing it loads."""

import ast
import inspect
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = ROOT / 'mpbn_jax'

# A module imports only from its own row and the rows above it. Row 0 knows no
# Flax. Longest prefix wins.
ROWS = {
  'errors': 0,
  'files': 0,
  'lock': 0,
  'memory': 0,
  'surrogate': 0,
  'neuron': 0,
  'start': 0,
  'norm': 0,
  'ops': 0,
  'programs': 0,
  'datasets.augment': 0,
  'datasets.events.frames': 0,
  'initializers': 1,
  'spike_init': 1,
  'layers': 1,
  'folding': 1,
  'tree': 0,
  'wiring': 1,
  'graph': 2,
  'models': 2,
  'streaming': 2,
  'losses': 3,
  'optim': 3,
  'averages': 3,
  'sharding': 3,
  'job': 3,
  'watchdog': 3,
  'launch': 3,
  'arrays': 3,
  'checkpoint': 3,
  'tensorboard_events': 3,
  'record': 3,
  'tables': 3,
  'config': 3,
  'config_files': 4,
  'configs': 0,
  'help': 4,
  'process': 4,
  'studies': 4,
  'analysis': 4,
  '__main__': 4,
  'interrupt': 3,
  'datasets': 3,
  'training': 4,
  'experiment': 4,
  'train_step': 4,
  'layer_metrics': 4,
  'evaluation': 4,
  'folded': 4,
  'model_card': 4,
  'deployment': 4,
  'report': 4,
  'runs': 4,
  'interop': 4,  # reads the leaves off the model: their wiring stands once
  'command_line': 4,
}
ROW_0_LIBRARIES = {'jax', 'numpy'}
HEAVY = {
  'orbax',
  'sklearn',
  'tensorboardX',
  'matplotlib',
  'tensorflow_datasets',
  'tonic',
  'clu',
  'torch',
  'PIL',
}


def _modules():
  for path in sorted(PACKAGE.rglob('*.py')):
    name = '.'.join(path.relative_to(PACKAGE).with_suffix('').parts)
    yield name.removesuffix('.__init__'), path


def _row(module):
  parts = module.split('.')
  while parts:
    if '.'.join(parts) in ROWS:
      return ROWS['.'.join(parts)]
    parts.pop()
  return None


def _imports(path):
  """Yields every imported module, inside functions too."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      if node.module == 'mpbn_jax':
        yield from (f'mpbn_jax.{alias.name}' for alias in node.names)
      else:
        yield node.module


MODULES = [(n, p) for n, p in _modules() if n not in ('__init__', '')]


@pytest.mark.parametrize(('name', 'path'), MODULES, ids=[n for n, _ in MODULES])
def test_module_imports_only_from_rows_above(name, path):
  row = _row(name)
  assert row is not None, f'{name} has no row: add it to the table'
  for imported in _imports(path):
    if not imported.startswith('mpbn_jax.'):
      continue
    other = _row(imported.removeprefix('mpbn_jax.'))
    assert other is not None, imported
    assert other <= row, f'{name} (row {row}) imports {imported} ({other})'
    if row == 3:
      assert other != 2, f'{name} works on pytrees, not on models'


@pytest.mark.parametrize('name', [n for n, _ in MODULES if _row(n) == 0])
def test_mathematics_needs_jax_and_numpy_only(name):
  path = dict(MODULES)[name]
  others = {
    imported.split('.')[0]
    for imported in _imports(path)
    if not imported.startswith('mpbn_jax')
  }
  assert others - ROW_0_LIBRARIES <= set(sys.stdlib_module_names)


def test_folding_knows_norms_and_neither_layers_nor_models():
  imported = set(_imports(PACKAGE / 'folding.py'))
  assert 'mpbn_jax.norm' in imported
  assert not {'mpbn_jax.layers', 'mpbn_jax.models'} & imported


@pytest.mark.parametrize(
  ('names', 'loaded'),
  [
    ('', set()),
    # What networks need, and no more.
    ('LIF, build_model, fold', {'jax', 'flax', 'numpy'}),
  ],
)
def test_importing_the_package_loads_no_more_than_is_asked_for(names, loaded):
  lines = ['import sys, mpbn_jax']
  if names:
    lines.append(f'from mpbn_jax import {names}')
  lines.append('print(*{name.split(".")[0] for name in sys.modules})')
  code = '\n'.join(lines)
  out = subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  ).stdout
  heavy = {'jax', 'flax', 'numpy', *HEAVY}
  assert heavy & set(out.split()) == loaded


def test_public_names_are_there():
  import mpbn_jax

  for name in mpbn_jax.__all__:
    assert getattr(mpbn_jax, name) is not None
  # Functions, not the modules that they are in.
  for name in ('train', 'evaluate', 'load_folded'):
    assert inspect.isfunction(getattr(mpbn_jax, name))
  with pytest.raises(AttributeError, match='no attribute .trian.'):
    mpbn_jax.trian  # noqa: B018


@pytest.mark.parametrize(('name', 'path'), MODULES, ids=[n for n, _ in MODULES])
def test_first_line_says_what_the_file_holds(name, path):
  first = ast.get_docstring(ast.parse(path.read_text())).splitlines()[0]
  assert first.endswith('.'), first
  assert len(path.read_text().splitlines()) <= 400, 'probably two files'
