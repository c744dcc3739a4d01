"""What did the user ask for on the command line? Flags, keys, messages."""

import pathlib
import re
import runpy

from absl import flags
from ml_collections import config_flags

from mpbn_jax import config as configs
from mpbn_jax.errors import InputError

_ROOT = pathlib.Path(__file__).resolve().parent.parent
DEFAULT_CONFIG = _ROOT / 'configs' / 'digits.py'
MODES = ('train', 'evaluate', 'fold')

_MODE = flags.DEFINE_enum(
  'mode', 'train', MODES, 'What to do; see above.', module_name='main'
)
_WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'Where the run lives: checkpoints, metrics, summary. '
  'Default: runs/<name of the configuration>.',
  module_name='main',
)
_CONFIG = config_flags.DEFINE_config_file(
  'config', str(DEFAULT_CONFIG), 'A file of configs/.', lock_config=True
)


def parse(argv: list[str]):
  """Returns (mode, config, workdir) of the arguments after the program.

  Raises:
    InputError: an unknown flag, key or file, a value of the wrong type.
  """
  file = _config_file(argv)
  _check_overrides(argv, load(file))
  try:
    rest = flags.FLAGS(['main.py', *argv])[1:]
  except flags.Error as error:
    raise InputError(f'{_one_line(error)} (--help shows all flags)') from error
  if rest:
    raise InputError(
      f'expected only --flags, got {rest[0]!r}: write --key=value '
      '(--help shows examples)'
    )
  workdir = _WORKDIR.value
  if workdir is None:
    workdir = f'runs/{file.stem}'
  return _MODE.value, _CONFIG.value, pathlib.Path(workdir)


def _one_line(error):
  return ' '.join(str(error).split())


def _config_file(argv):
  for i, argument in enumerate(argv):
    name, separator, value = argument.partition('=')
    if name in ('--config', '-config'):
      if not separator and i + 1 < len(argv):
        value = argv[i + 1]
      return pathlib.Path(value)
  return DEFAULT_CONFIG


def load(file: pathlib.Path):
  """Returns what the file's get_config() returns.

  Raises:
    InputError: no such file (lists those in configs/), or no get_config.
  """
  if not file.is_file():
    known = sorted(p.name for p in (_ROOT / 'configs').glob('[!_]*.py'))
    raise InputError(
      f'expected a configuration file, got {str(file)!r}, which is none: '
      f'configs/ has {", ".join(known)}'
    )
  get_config = runpy.run_path(str(file)).get('get_config')
  if get_config is None:
    raise InputError(
      f'expected a function get_config() in {file}, got none: start from '
      'configs/digits.py'
    )
  return get_config()


_KINDS = {int: 'an integer', float: 'a number', bool: 'true or false'}


def _check_overrides(argv, config):
  """Checks --config.key=value: that library's own errors are tracebacks."""
  flat = configs.flatten(config)
  for i, argument in enumerate(argv):
    match = re.match(r'--?(no)?config\.([^=]+)(=(.*))?$', argument, re.DOTALL)
    if match is None:
      continue
    negated, key, assigned, value = match.groups()
    if key not in flat:
      if any(name.startswith(f'{key}.') for name in flat):
        raise InputError(
          f'{key!r} is a group of keys, got --config.{key}: set one, as '
          f'--config.{next(n for n in flat if n.startswith(key + "."))}=...'
        )
      raise configs.unknown_key(key, flat)
    kind = config.get_type(key) if '.' not in key else _type_at(config, key)
    if negated or (not assigned and kind is bool):
      continue
    if not assigned:
      value = argv[i + 1] if i + 1 < len(argv) else ''
    if not _converts(value, kind):
      raise InputError(
        f'{key} must be {_KINDS[kind]}, got {value!r}: write '
        f'--config.{key}={flat[key]}'
      )


def _type_at(config, key):
  group, last = key.rsplit('.', 1)
  for part in group.split('.'):
    config = config[part]
  return config.get_type(last)


def _converts(value, kind):
  if kind is bool:
    return value.lower() in ('true', 'false', 't', 'f', '1', '0')
  if kind in (int, float):
    try:
      kind(value)
    except ValueError:
      return kind is float and value == 'None'
  return True


def help_text(introduction: str) -> str:
  """Returns the introduction, the flags and every key with its comment."""
  lines = [introduction.strip(), '', 'Flags:']
  for holder in (_MODE, _CONFIG, _WORKDIR):
    flag = flags.FLAGS[holder.name]
    default = {
      'mode': ' Default: train.',
      'config': f' Default: configs/{DEFAULT_CONFIG.name}.',
    }.get(flag.name, '')
    choices = '|'.join(getattr(flag.parser, 'enum_values', []) or ['...'])
    lines.append(f'  --{flag.name}={choices}')
    lines.append(f'      {flag.help}{default}')
  lines += ['', 'Keys, each as --config.KEY=VALUE (configs/default.py):']
  comments = _comments(_ROOT / 'configs' / 'default.py')
  for key, value in configs.flatten(load(DEFAULT_CONFIG)).items():
    lines.append(f'  {f"{key}={value}":<38} {comments.get(key, "")}'.rstrip())
  return '\n'.join(lines)


def _comments(file):
  """Returns {key: comment} of lines 'group.key = value  # comment'."""
  comments, above = {}, []
  for line in file.read_text().splitlines():
    line = line.strip()
    if line.startswith('#'):
      above.append(line[1:].strip())
      continue
    match = re.match(r'([a-z_.]+) = [^#]*(?:#\s*(.*))?$', line)
    if match:
      key = match[1].removeprefix('config.')
      comments[key] = ' '.join([*above, match[2] or '']).strip()
    above = []
  return comments
