"""The command line: flags, keys, their values, the help."""

import ast
import difflib
import logging
import pathlib
import re
import runpy
import textwrap
import traceback
from collections.abc import Iterator
from typing import Any, NamedTuple

import ml_collections

from mpbn_jax import config as configs
from mpbn_jax.errors import InputError, unknown

_log = logging.getLogger('mpbn_jax')
_ROOT = pathlib.Path(__file__).resolve().parent.parent
_DEFAULTS = _ROOT / 'configs' / 'default.py'
DEFAULT_CONFIG = _ROOT / 'configs' / 'digits.py'
MODES = ('train', 'evaluate', 'fold', 'import', 'prepare')

# Name to (what it takes, what it means).
_FLAGS = {
  'mode': ('|'.join(MODES), 'what to do, see above; default: train'),
  'config': (
    'FILE',
    'a file of configs/, or FILE:NAME for a named row of one that has rows; '
    f'default: configs/{DEFAULT_CONFIG.name}',
  ),
  'workdir': (
    'DIR',
    'where the run lives: checkpoints, metrics, summary; default: '
    'runs/<name of the configuration>',
  ),
  'checkpoint': (
    'FILE',
    'the weights that --mode=import reads: .npz, .safetensors, or .pth, .pt, '
    '.tar with PyTorch installed; only for that mode',
  ),
}
_HELP = {'-h', '-help', '--help', '--helpfull'}


class Command(NamedTuple):
  """What to do.

  Attributes:
    mode: one of `MODES`.
    config: the whole configuration.
    workdir: where the run lives.
    checkpoint: the file to import; None in the other modes.
  """

  mode: str
  config: ml_collections.ConfigDict
  workdir: pathlib.Path
  checkpoint: pathlib.Path | None


def wants_help(argv: list[str]) -> bool:
  """Returns whether the arguments ask for the help."""
  return not _HELP.isdisjoint(argv)


def parse(argv: list[str]) -> Command:
  """Returns what the arguments after the program ask for.

  A pure function but for reading the configuration file, where absl's flags
  would be globals and the errors of ml_collections' flags are tracebacks.

  Raises:
    InputError: an unknown flag, key or file, a value of the wrong type.
  """
  given, overrides = _split(argv)
  mode = given.get('mode', 'train')
  if mode not in MODES:
    raise unknown('mode', mode, MODES)
  checkpoint = given.get('checkpoint')
  if mode == 'import' and checkpoint is None:
    raise InputError(
      '--mode=import needs the weights, got no --checkpoint: write '
      '--checkpoint=FILE, an .npz, .safetensors or .pth'
    )
  if mode != 'import' and checkpoint is not None:
    raise InputError(
      f'--checkpoint is only for --mode=import, got --mode={mode}: leave it '
      'out, the run is the one in --workdir'
    )
  source = given.get('config', str(DEFAULT_CONFIG))
  config = load(source)
  before = configs.flatten(config)
  optional = {
    k for k, v in configs.flatten(load(_DEFAULTS)).items() if v is None
  }
  for key, value in overrides:
    _set(config, key, value, optional=key in optional)
  _drop_paper(config, before)
  name = '_'.join([pathlib.Path(_file(source)[0]).stem, *_file(source)[1:]])
  return Command(
    mode,
    config,
    workdir=pathlib.Path(given.get('workdir', f'runs/{name}')),
    checkpoint=None if checkpoint is None else pathlib.Path(checkpoint),
  )


def _split(argv):
  """Returns ({flag: value}, [(key, value or None)]); the last one counts."""
  given, overrides = {}, []
  rest = list(argv)
  while rest:
    argument = rest.pop(0)
    name, assigned, value = argument.lstrip('-').partition('=')
    if not argument.startswith('-') or not name:
      raise InputError(
        f'expected only --flags, got {argument!r}: write --key=value '
        '(--help shows examples)'
      )
    if name.startswith('noconfig.'):
      overrides.append((name.removeprefix('noconfig.'), 'false'))
      continue
    is_key = name.startswith('config.')
    if not is_key and name not in _FLAGS:
      raise _unknown_flag(name)
    if not assigned:
      follows = rest and not rest[0].startswith('--')
      value = rest.pop(0) if follows else None
    if is_key:
      overrides.append((name.removeprefix('config.'), value))
      continue
    if not value:
      raise InputError(
        f'--{name} needs a value, got none: write --{name}={_FLAGS[name][0]}'
      )
    given[name] = value
  return given, overrides


def _unknown_flag(name):
  flags = [f'--{flag}' for flag in (*_FLAGS, 'config.KEY')]
  if difflib.get_close_matches(f'--{name}', flags, n=1):
    return unknown('flag', f'--{name}', flags)
  near = configs.nearest_keys(name, configs.flatten(load(_DEFAULTS)))
  if not near:
    return unknown('flag', f'--{name}', flags)
  hint = ' or '.join(f'--config.{key}' for key in near)
  return InputError(f'unknown flag --{name}: did you mean {hint}?')


# What the paper prints stays beside the result when these are changed.
_BESIDE_THE_PAPER = (
  'seed',
  'log.',
  'evaluation.',
  'paper.',
  'data.dir',
  'data.fake',  # which the summary says itself
  'data.on_bad_image',
  'data.prefetch',
  'data.workers',
  'model.remat',
  'model.unroll',
)


def _drop_paper(config, before):
  """Leaves out what the paper prints once the experiment is another one."""
  changed = [
    key
    for key, value in configs.flatten(config).items()
    if value != before[key] and not key.startswith(_BESIDE_THE_PAPER)
  ]
  if changed and before['paper.accuracy'] is not None:
    _log.warning(
      "the paper's %.2f%% is of other settings (%s): not shown beside the "
      'result',
      before['paper.accuracy'],
      ', '.join(changed),
    )
    config.paper.accuracy = config.paper.deviation = None


# ---- the configuration file


def load(source: pathlib.Path | str) -> ml_collections.ConfigDict:
  """Returns what get_config() of a file returns, locked.

  Args:
    source: a path, or 'path:name', which calls get_config('name').

  Raises:
    InputError: no such file (lists those in configs/); it fails, or returns
      something else than the keys of configs/default.py.
  """
  file, *argument = _file(source)
  path = pathlib.Path(file)
  if not path.is_file():
    known = sorted(p.name for p in (_ROOT / 'configs').glob('[!_]*.py'))
    raise InputError(
      f'expected a configuration file, got {file!r}, which is none: '
      f'configs/ has {", ".join(known)}'
    )
  try:
    get_config = runpy.run_path(file).get('get_config')
    config = None if get_config is None else get_config(*argument)
  except InputError:
    raise
  except Exception as error:  # whatever a user's file may raise
    raise InputError(_failure(path, error)) from error
  if not isinstance(config, ml_collections.ConfigDict):
    got = 'none' if get_config is None else f'one with {config!r:.40}'
    raise InputError(
      f'expected a function get_config() in {file} that returns a ConfigDict, '
      f'got {got}: start from configs/digits.py'
    )
  if path.resolve() != _DEFAULTS:
    _check_keys(file, config)
  return config.lock()


def _file(source):
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
    f'in {where}: {text}: mend that file'
  )


def _check_keys(file, config):
  known = configs.flatten(load(_DEFAULTS))
  flat = configs.flatten(config)
  for key in flat:
    if key not in known:
      raise configs.unknown_key(key, known)
  missing = [key for key in known if key not in flat]
  if missing:
    raise InputError(
      f'expected every key of configs/default.py, got {file} without '
      f'{", ".join(missing[:3])}: start from default.get_config()'
    )


# ---- --config.key=value

_KINDS = {int: 'an integer', float: 'a number', bool: 'true or false'}
_BOOLS = {'true': True, 't': True, '1': True}
_BOOLS |= {'false': False, 'f': False, '0': False}


def _set(config, key, value, *, optional):
  """Sets one key of the configuration from text; None: no text came."""
  flat = configs.flatten(config)
  if key not in flat:
    inside = [name for name in flat if name.startswith(f'{key}.')]
    if inside:
      raise InputError(
        f'{key!r} is a group of keys, got --config.{key}: set one, as '
        f'--config.{inside[0]}={flat[inside[0]]}'
      )
    raise configs.unknown_key(key, flat)
  *groups, last = key.split('.')
  for group in groups:
    config = config[group]
  kind = config.get_type(last)
  try:
    if optional and value == 'None':
      config[last] = None
    else:
      config[last] = _convert(value, kind)
  except (ValueError, TypeError, SyntaxError, KeyError) as error:
    got = 'no value' if value is None else repr(value)
    expected = _KINDS.get(kind, f'a {kind.__name__}')
    raise InputError(
      f'{key} must be {expected}{" or None" if optional else ""}, got {got}: '
      f'write --config.{key}={flat[key]}, for example'
    ) from error


def _convert(text: str | None, kind: type) -> Any:
  if kind is bool:
    return True if text is None else _BOOLS[text.lower()]
  if text is None:
    raise ValueError('no value')
  if kind in (int, float, str):
    return kind(text)
  return ast.literal_eval(text)


# ---- help


def help_text(introduction: str, argv: list[str]) -> str:
  """Returns the introduction, the flags and every key with its comment.

  Args:
    introduction: what the program does, with examples.
    argv: a --config in it says whose values are shown.
  """
  given = [a.partition('=')[2] for a in argv if a.startswith('--config=')]
  source = given[-1] if given else f'configs/{DEFAULT_CONFIG.name}'
  values = configs.flatten(load(source if given else DEFAULT_CONFIG))
  lines = [introduction.strip(), '', 'Flags:']
  for name, (takes, meaning) in _FLAGS.items():
    lines += [f'  --{name}={takes}', _indented(meaning)]
  lines += ['', f'Keys, with the values of {source}:']
  for key, comment in _comments(_DEFAULTS):
    if key is None:
      lines += ['', _indented(comment, by=2)]
    else:
      lines += [f'  --config.{key}={values[key]}', _indented(comment)]
  return '\n'.join(lines)


def _indented(text, *, by=6):
  indent = ' ' * by
  return textwrap.fill(
    text, 80, initial_indent=indent, subsequent_indent=indent
  )


def _comments(file: pathlib.Path) -> Iterator[tuple[str | None, str]]:
  """Yields (key, comment), and (None, heading) above a group of keys.

  A comment stands behind its key, or above it where it is longer. What stands
  above a key that has its comment behind it is the heading of several keys.
  """
  known = configs.flatten(load(file))
  above = []
  for line in file.read_text().splitlines():
    line = line.strip()
    if line.startswith('#'):
      above.append(line[1:].strip())
      continue
    match = re.match(r'([a-z0-9_.]+) = [^#]*(?:#\s*(.*))?$', line)
    if match and match[1].removeprefix('config.') in known:
      key = match[1].removeprefix('config.')
      if above and match[2]:
        yield None, ' '.join(above)
      yield key, match[2] or ' '.join(above)
    above = []
