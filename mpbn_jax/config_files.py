"""Configuration files: those in `configs/`, and those of runs."""

import inspect
import pathlib
import re
import runpy
import traceback

import ml_collections

import mpbn_jax.configs
from mpbn_jax import config as config_lib
from mpbn_jax.errors import InputError
from mpbn_jax.studies.study import Study

FOLDER = pathlib.Path(next(iter(mpbn_jax.configs.__path__)))
KEYS = FOLDER / 'default.py'  # defines every key
DEFAULT = FOLDER / 'digits.py'
DEFAULT_WORKDIR = 'runs/digits'
STORED = 'config.json'  # in a work directory


def load(source: pathlib.Path | str) -> ml_collections.ConfigDict:
  """Returns the locked configuration from a file.

  Args:
    source: the path of a file with a function get_config(), or 'path:name',
      which calls get_config('name'); or the path of a run's config.json. A path
      configs/... that does not exist is looked up in `mpbn_jax.configs`.

  Raises:
    InputError: the file does not exist (lists those in configs/), fails, or
      returns other keys than those of configs/default.py.
  """
  path, argument = _find(source)
  if path.suffix == '.json':
    return _stored(path)
  file = str(path)
  config, got = _returned(path, 'get_config', argument)
  if not isinstance(config, ml_collections.ConfigDict):
    raise InputError(
      f'expected a function get_config() in {file} that returns a ConfigDict, '
      f'got {got}: start from configs/digits.py'
    )
  if path.resolve() != KEYS:
    _check_keys(file, config)
  return config.lock()


def load_study(source: pathlib.Path | str) -> Study:
  """Returns the study of a file with a function get_study().

  Args:
    source: as in `load`: configs/studies/NAME.py, or configs/paper.py:NAME.

  Raises:
    InputError: the file does not exist, fails, or has no study.
  """
  path, argument = _find(source)
  study, got = _returned(path, 'get_study', argument)
  if not isinstance(study, Study):
    known = sorted(p.name for p in (FOLDER / 'studies').glob('[!_]*.py'))
    raise InputError(
      f'expected a function get_study() in {path} that returns a Study, got '
      f'{got}: configs/studies/ has {", ".join(known)}'
    )
  for config in study.arms.values():
    _check_keys(str(path), config)
  return study


def _find(source):
  """Returns (path, [name])."""
  file, *argument = split(source)
  path = pathlib.Path(file)
  if not path.is_file() and path.parts[:1] == ('configs',):
    path = FOLDER.joinpath(*path.parts[1:])
  if not path.is_file():
    known = sorted(p.name for p in FOLDER.glob('[!_]*.py'))
    raise InputError(
      f'expected a configuration file, got {file!r}, which is not an existing '
      f'file: configs/ has {", ".join(known)}'
    )
  return path, argument


def _returned(path, function, argument):
  """Returns (what a function of a file returns, what to call that)."""
  if path.suffix != '.py':
    return None, f'a {path.suffix or "plain"} file'
  try:
    called = runpy.run_path(str(path)).get(function)
    if callable(called) and argument:
      _check_takes_a_name(called, path, *argument)
    value = None if called is None else called(*argument)
  except InputError:
    raise
  except Exception as error:  # whatever a user's file may raise
    raise InputError(_failure(path, error)) from error
  return value, (
    'none' if called is None else f'one that returns {value!r:.40}'
  )


def _check_takes_a_name(function, path, name):
  try:
    inspect.signature(function).bind(name)
  except TypeError as error:
    raise InputError(
      f'expected a file with named rows, got {path}, which has none, with '
      f'{name!r}: write --config={path}'
    ) from error


def split(source: pathlib.Path | str) -> list[str]:
  """Returns [path] or [path, name]."""
  return re.split(r'(?<=\.py):', str(source), maxsplit=1)


def _failure(path, error):
  lines = [
    frame.lineno
    for frame in traceback.extract_tb(error.__traceback__)
    if frame.filename == str(path)
  ]
  line = getattr(error, 'lineno', None) or (lines[-1] if lines else None)
  where = f'{path}, line {line}' if line else str(path)
  text = ' '.join(str(error).split())
  return (
    f'expected a configuration that can be read, got {type(error).__name__} '
    f'in {where}: {text}: fix that file'
  )


def _check_keys(file, config):
  known = config_lib.flatten(load(KEYS))
  flat = config_lib.flatten(config)
  for key in flat:
    if key not in known and not _is_of_a_network(key):
      raise config_lib.unknown_key(key, known)
  missing = [key for key in known if key not in flat]
  if missing:
    raise InputError(
      f'expected every key of configs/default.py, got {file} without '
      f'{", ".join(missing[:3])}: start from default.get_config()'
    )


def _is_of_a_network(key):
  """Returns whether building the network checks a key."""
  return key.startswith('model.') and key not in config_lib.RENAMED


def _stored(path):
  """Returns a run's configuration with the types of the default one."""
  config = load(KEYS).copy_and_resolve_references()
  try:
    stored = config_lib.from_json(path.read_text())
  except (OSError, ValueError) as error:
    raise InputError(
      f'expected the configuration of a run in {path}, which cannot be read '
      f'({error}): restore it, or pass --config'
    ) from error
  flat = config_lib.flatten(stored)
  known = config_lib.flatten(config)
  others = set(flat.keys() ^ known.keys())
  of_network = {k for k in others if k in flat and _is_of_a_network(k)}
  for key in others - of_network:
    raise InputError(
      f'expected the keys of configs/default.py in {path}, got '
      f'{"no" if key in known else "the unknown key"} {key!r}: use the version '
      'of mpbn_jax that wrote it'
    )
  try:
    with config.unlocked():
      for key in of_network:
        config.model[key.removeprefix('model.')] = flat.pop(key)
    config.update_from_flattened_dict(flat)
  except (TypeError, ValueError) as error:
    raise InputError(
      f'expected the configuration of a run in {path}, got a value of another '
      f'type ({error}): restore it, or pass --config'
    ) from error
  return config.lock()
