"""Docstrings of the public names, and their place in the API reference."""

import dataclasses
import importlib
import inspect
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Each has an `__all__`, and a page of the API reference.
PACKAGES = (
  'mpbn_jax',
  'mpbn_jax.datasets',
  'mpbn_jax.layers',
  'mpbn_jax.norm',
  'mpbn_jax.studies',
)
# {name: where else it is shown}
NO_EXAMPLE = {
  'Dataset': 'load_dataset returns one',
  'Norm': 'docs/examples/own_norm.py',
  'NormAfterConvolution': 'docs/examples/own_norm.py',
  'NormAfterFiring': 'docs/examples/own_norm.py',
  'NormBeforeFiring': 'docs/examples/own_norm.py',
  'Spikes': 'only SpikeNorm makes them',
  'Task': 'only studies make them',
  'train': 'the README: it takes longer than a docstring should',
}


def _public():
  """Returns {name of the definition: it}, of functions and classes."""
  found = {}
  for package in map(importlib.import_module, PACKAGES):
    for name in package.__all__:
      value = getattr(package, name)
      if inspect.isfunction(value) or inspect.isclass(value):
        found[f'{value.__module__}.{value.__qualname__}'] = value
  return found


PUBLIC = _public()
every_name = pytest.mark.parametrize('value', PUBLIC.values(), ids=PUBLIC)


@every_name
def test_first_line_is_a_sentence(value):
  first, *rest = inspect.getdoc(value).splitlines()
  assert first.endswith(('.', ':')), first
  assert not rest or not rest[0], 'expected an empty line after the first one'


@every_name
def test_docstring_has_an_example(value):
  name = value.__name__
  if name.startswith('check_'):  # returns nothing
    return
  assert ('>>>' in inspect.getdoc(value)) != (name in NO_EXAMPLE)


@every_name
def test_every_argument_is_explained(value):
  text = inspect.getdoc(value)
  if dataclasses.is_dataclass(value):  # Flax modules, too
    inherited = {f.name for base in value.__bases__ for f in _fields(base)}
    names = [f.name for f in _fields(value) if f.name not in inherited]
    section = 'Attributes:'
  elif inspect.isclass(value):
    return
  else:
    names, section = list(inspect.signature(value).parameters), 'Args:'
    if len(names) == 1 and section not in text or 'check_' in value.__name__:
      return  # its first line says it
  documented = text.partition(section)[2]
  for name in names:
    assert re.search(rf'^\s+{name}: ', documented, re.MULTILINE), name


def _fields(value):
  if not dataclasses.is_dataclass(value):
    return []
  of_flax = ('name', 'parent')
  return [f for f in dataclasses.fields(value) if f.name not in of_flax]


@every_name
def test_arrays_have_shapes(value):
  if not inspect.isfunction(value) or value.__name__.startswith('check_'):
    return
  arrays = [
    name
    for name, parameter in inspect.signature(value).parameters.items()
    if 'jax.Array' in str(parameter.annotation)
    and 'float' not in str(parameter.annotation)
    and 'Callable' not in str(parameter.annotation)
  ]
  shapes = re.findall(r'\[[A-Z.]', inspect.getdoc(value))
  assert shapes or not arrays, arrays


@every_name
def test_markdown_shows_the_whole_docstring(value):
  """Outside of code, Markdown takes <name> for HTML and drops it."""
  in_code = r'`[^`]*`|^\s*(>>>|\.\.\.).*$'
  prose = re.sub(in_code, '', inspect.getdoc(value), flags=re.MULTILINE)
  assert not re.findall(r'<[a-z][\w ]*>', prose)


def test_names_without_an_example_are_public():
  names = {value.__name__ for value in PUBLIC.values()}
  assert names >= NO_EXAMPLE.keys()


def test_every_public_name_is_in_the_api_reference():
  pages = [path.read_text() for path in (ROOT / 'docs' / 'api').glob('*.md')]
  text = '\n'.join(pages)
  for package in PACKAGES:
    names = importlib.import_module(package).__all__
    listed = re.search(
      rf'^::: {package}\n(?:    .*\n)*?      members: \[([\w, ]+)\]',
      text,
      re.MULTILINE,
    )
    shown = listed[1].split(', ') if listed else names  # chosen by hand, or all
    assert re.search(rf'^::: {package}$', text, re.MULTILINE), package
    assert set(shown) <= set(names)
    for name in names:
      if isinstance(getattr(importlib.import_module(package), name), dict):
        assert f'`{name}`' in text, f'{package}.{name}'
