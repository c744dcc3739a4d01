"""The help: every flag, every key with its comment in configs/default.py."""

import pathlib
import re
import textwrap
from collections.abc import Iterator

from mpbn_jax import command_line, config_files
from mpbn_jax import config as config_lib


def help_text(introduction: str, argv: list[str]) -> str:
  """Returns the introduction, the flags and every key with its comment.

  Args:
    introduction: what the program does, with examples.
    argv: its --config, if any, selects the file whose values are shown.
  """
  given = [a.partition('=')[2] for a in argv if a.startswith('--config=')]
  default = config_files.DEFAULT
  source = given[-1] if given else f'configs/{default.name}'
  config = config_files.load(source if given else default)
  values = config_lib.flatten(config)
  lines = [introduction.strip(), '', 'Flags:']
  for name, (takes, meaning) in command_line.FLAGS.items():
    lines += [_flag(name, takes), _indented(meaning)]
  lines += ['', f'Keys, with the values of {source}:']
  for key, comment in _comments(config_files.KEYS):
    if key is None:
      lines += ['', _indented(comment, by=2)]
    else:
      lines += [f'  --config.{key}={values[key]}', _indented(comment)]
  return '\n'.join(lines)


def _flag(name, takes):
  """Returns a flag with what it takes; alternatives may need two lines."""
  line = f'  --{name}={takes}'.replace('|', '| ')
  indent = ' ' * len(f'  --{name}=')
  return textwrap.fill(line, 80, subsequent_indent=indent).replace('| ', '|')


def _indented(text, *, by=6):
  indent = ' ' * by
  return textwrap.fill(
    text, 80, initial_indent=indent, subsequent_indent=indent
  )


def _comments(file: pathlib.Path) -> Iterator[tuple[str | None, str]]:
  """Yields (key, comment), and (None, heading) above a group of keys.

  A key's comment is on its line or, if longer, directly above it. A comment
  above a key that also has one on its line is the heading of a group of keys.
  """
  known = config_lib.flatten(config_files.load(file))
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
