"""The command line: flags and configuration keys."""

import ast
import dataclasses
import difflib
import logging
import pathlib
from typing import Any, NamedTuple

import ml_collections

from mpbn_jax import config as config_lib
from mpbn_jax import config_files, launch
from mpbn_jax.errors import InputError, unknown
from mpbn_jax.studies.study import Study

_log = logging.getLogger('mpbn_jax')
MODES = (
  'train',
  'evaluate',
  'fold',
  'export',
  'landscape',
  'steps',
  'analyze',
  'import',
  'prepare',
  'reproduce',
)
RESULTS = pathlib.Path('docs/results')  # of a study

# {name: (its values, its meaning)}
FLAGS = {
  'mode': ('|'.join(MODES), 'what to do, see above; default: train'),
  'config': (
    'FILE',
    'a file of configs/, FILE:NAME for a named row of one that has rows, or '
    'the config.json of a run; default: that of the run in --workdir, '
    f'configs/{config_files.DEFAULT.name} in a new one',
  ),
  'workdir': (
    'DIR',
    'where the run lives: checkpoints, metrics, summary; default: '
    'runs/<name of the configuration>, and beside a config.json its own',
  ),
  'checkpoint': (
    'FILE',
    'the weights that --mode=import reads: .npz, .safetensors, or .pth, .pt, '
    '.tar with PyTorch installed; only for that mode',
  ),
  'init_from': (
    'DIR',
    'the work directory of a run that a new one takes its initial weights '
    'from, as config.init_from; the head only if it has as many classes',
  ),
  'steps': (
    'T,T,...',
    'the numbers of time steps that --mode=steps evaluates with; default: 1, '
    '2, 4, 8 and that of training',
  ),
  'seeds': (
    'N',
    'how many seeds --mode=reproduce trains each arm with; default: those of '
    'the study',
  ),
  'processes': (
    'N',
    'how many trainings of --mode=reproduce run at once; default: one per core '
    'of a CPU, one on a GPU',
  ),
  'results': (
    'FILE',
    'the results file of --mode=reproduce, which says what is done; default: '
    f'{RESULTS}/<study>.json',
  ),
}
FLAGS |= launch.FLAGS
_OF_STUDIES = ('seeds', 'processes', 'results')
HELP = {'-h', '-help', '--help', '--helpfull'}


class Command(NamedTuple):
  """A parsed command.

  Attributes:
    mode: one of `MODES`.
    config: the whole configuration.
    workdir: the work directory of the run.
    checkpoint: the file to import; None in the other modes.
    steps: numbers of time steps to evaluate with; None takes the default ones.
    job: the processes that work together.
  """

  mode: str
  config: ml_collections.ConfigDict
  workdir: pathlib.Path
  checkpoint: pathlib.Path | None
  steps: tuple[int, ...] | None
  job: launch.Settings


class StudyCommand(NamedTuple):
  """A parsed command of --mode=reproduce.

  Attributes:
    study: what to train.
    workdir: the folder of the runs' work directories.
    results: the results file.
    processes: how many trainings run at once; None chooses.
    job: says whether this process is alone, as it must be.
  """

  study: Study
  workdir: pathlib.Path
  results: pathlib.Path
  processes: int | None
  job: launch.Settings


def wants_help(argv: list[str]) -> bool:
  """Returns whether the arguments ask for help."""
  return not HELP.isdisjoint(argv)


def parse(argv: list[str]) -> Command | StudyCommand:
  """Returns the command that the arguments after the program describe.

  A pure function except that it reads the configuration file. absl's flags
  would be global state, and ml_collections' flags report errors as tracebacks.

  Raises:
    InputError: an unknown flag, key or file, or a value of the wrong type.
  """
  given, overrides = _split(argv)
  mode = given.get('mode', 'train')
  if mode not in MODES:
    raise unknown('mode', mode, MODES)
  if mode != 'steps' and 'steps' in given:
    raise InputError(
      f'--steps is only for --mode=steps, got --mode={mode}: leave it out, or '
      'set --config.model.num_steps to train a run with another T'
    )
  job = launch.settings_of(given, mode=mode)
  if mode == 'reproduce':
    return _parse_study(given, overrides, job)
  for name in _OF_STUDIES:
    if name in given:
      raise InputError(
        f'--{name} is only for --mode=reproduce, got --mode={mode}: leave it '
        'out'
      )
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
  if mode != 'train' and 'init_from' in given:
    raise InputError(
      f'--init_from is only for --mode=train, got --mode={mode}: leave it out'
    )
  source = _source(given)
  config = config_files.load(source)
  before = config_lib.flatten(config)
  defaults = config_files.load(config_files.KEYS)
  optional = {k for k, v in config_lib.flatten(defaults).items() if v is None}
  if 'init_from' in given:
    overrides = [('init_from', given['init_from']), *overrides]
  for key, value in overrides:
    _set(config, key, value, optional=key in optional)
  _drop_paper(config, before)
  return Command(
    mode,
    config,
    workdir=_workdir(given, source),
    checkpoint=None if checkpoint is None else pathlib.Path(checkpoint),
    steps=_steps(given['steps']) if 'steps' in given else None,
    job=job,
  )


def _parse_study(given, overrides, job):
  """Returns the command; overrides apply to all arms."""
  for name in ('checkpoint', 'init_from'):
    if name in given:
      raise InputError(
        f'--{name} is not for --mode=reproduce, whose study says how its arms '
        'start: leave it out'
      )
  if 'config' not in given:
    raise InputError(
      '--mode=reproduce needs a study, got no --config: write '
      '--config=configs/paper.py:table1, for example'
    )
  study = config_files.load_study(given['config'])
  defaults = config_files.load(config_files.KEYS)
  optional = {k for k, v in config_lib.flatten(defaults).items() if v is None}
  arms = {}
  for arm, config in study.arms.items():
    config = config.copy_and_resolve_references()
    before = config_lib.flatten(config)
    for key, value in overrides:
      _set(config, key, value, optional=key in optional)
    _drop_paper(config, before)
    arms[arm] = config.lock()
  seeds = study.seeds
  if 'seeds' in given:
    seeds = tuple(range(_count('seeds', given['seeds'])))
  processes = None
  if 'processes' in given:
    processes = _count('processes', given['processes'])
  name = study.name
  return StudyCommand(
    study=dataclasses.replace(study, arms=arms, seeds=seeds),
    workdir=pathlib.Path(given.get('workdir', pathlib.Path('runs') / name)),
    results=pathlib.Path(given.get('results', RESULTS / f'{name}.json')),
    processes=processes,
    job=job,
  )


def _count(flag, text):
  if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 1000):
    raise InputError(
      f'--{flag} must be an integer from 1 to 1000, got {text!r}: write '
      f'--{flag}=5, for example'
    )
  return int(text)


def _steps(text):
  counts = text.split(',')
  if not all(
    t.isascii() and t.isdigit() and 1 <= int(t) <= 1000 for t in counts
  ) or len(set(map(int, counts))) < len(counts):
    raise InputError(
      '--steps must be different integers from 1 to 1000, separated by commas, '
      f'got {text!r}: write --steps=1,2,4,8, for example'
    )
  return tuple(sorted(map(int, counts)))


def _source(given):
  """Returns the source of the configuration; a run has its own."""
  if 'config' in given:
    return given['config']
  workdir = pathlib.Path(given.get('workdir', config_files.DEFAULT_WORKDIR))
  stored = workdir / config_files.STORED
  return str(stored if stored.is_file() else config_files.DEFAULT)


def _workdir(given, source):
  if 'workdir' in given:
    return pathlib.Path(given['workdir'])
  path, *row = config_files.split(source)
  if pathlib.Path(path).suffix == '.json':
    return pathlib.Path(path).parent
  return pathlib.Path('runs') / '_'.join([pathlib.Path(path).stem, *row])


def _split(argv):
  """Returns ({flag: value}, [(key, value or None)]); the last value wins."""
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
    if not is_key and name not in FLAGS:
      raise _unknown_flag(name)
    if not assigned:
      follows = rest and not rest[0].startswith('--')
      value = rest.pop(0) if follows else None
    if is_key:
      overrides.append((name.removeprefix('config.'), value))
      continue
    if not value:
      raise InputError(
        f'--{name} needs a value, got none: write --{name}={FLAGS[name][0]}'
      )
    given[name] = value
  return given, overrides


def _unknown_flag(name):
  flags = [f'--{flag}' for flag in (*FLAGS, 'config.KEY')]
  if difflib.get_close_matches(f'--{name}', flags, n=1, cutoff=0.75):
    return unknown('flag', f'--{name}', flags)
  near = config_lib.nearest_keys(
    name, config_lib.flatten(config_files.load(config_files.KEYS))
  )
  if not near:
    return unknown('flag', f'--{name}', flags)
  hint = ' or '.join(f'--config.{key}' for key in near)
  return InputError(f'unknown flag --{name}: did you mean {hint}?')


# Changing these keys keeps the paper's number beside the result.
_BESIDE_THE_PAPER = (
  'seed',
  'log.',
  'evaluation.',
  'paper.',
  'data.dir',
  'data.fake',  # the summary itself mentions it
  'data.on_bad_image',
  'data.prefetch',
  'data.workers',
  'model.autodiff',
  'model.keep',
  'model.remat',
  'model.unroll',
)


def _drop_paper(config, before):
  """Drops the paper's number if the experiment differs from the paper's."""
  changed = [
    key
    for key, value in config_lib.flatten(config).items()
    if value != before[key] and not key.startswith(_BESIDE_THE_PAPER)
  ]
  if changed and before['paper.accuracy'] is not None:
    _log.warning(
      "the paper's %.2f%% was measured with other settings (%s): not shown "
      'beside the result',
      before['paper.accuracy'],
      ', '.join(changed),
    )
    config.paper.accuracy = config.paper.deviation = None


# ---- --config.key=value

_SHOWN = 100  # characters of a value that a message quotes
_KINDS = {int: 'an integer', float: 'a number', bool: 'true or false'}
_BOOLS = {'true': True, 't': True, '1': True}
_BOOLS |= {'false': False, 'f': False, '0': False}


def _set(config, key, value, *, optional):
  """Sets one configuration key from text, or from None if none was given."""
  flat = config_lib.flatten(config)
  if key not in flat:
    inside = [name for name in flat if name.startswith(f'{key}.')]
    if inside:
      raise InputError(
        f'{key!r} is a group of keys, got --config.{key}: set one of them, '
        f'such as --config.{inside[0]}={flat[inside[0]]}'
      )
    raise config_lib.unknown_key(key, flat)
  *groups, last = key.split('.')
  for group in groups:
    config = config[group]
  kind = config.get_type(last)
  try:
    if optional and value == 'None':
      config[last] = None
    else:
      config[last] = _convert(value, kind)
  # The last two: what is nested too deeply for Python's parser.
  except (
    *(ValueError, TypeError, SyntaxError, KeyError),
    *(MemoryError, RecursionError),
  ) as error:
    got = 'no value' if value is None else repr(value[:_SHOWN])
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
