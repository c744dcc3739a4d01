"""Checks of a configuration, alone and against the one stored with a run."""

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from mpbn_jax import norm
from mpbn_jax.errors import InputError

# A run may be resumed with other values of these keys: logging, evaluation,
# training length, where the data are, how fast they are loaded and whether bad
# images are skipped.
FREE_KEYS = (
  'log.',  # every key of the group
  'evaluation.',
  'paper.',
  'num_epochs',
  'data.dir',
  'data.on_bad_image',
  'data.workers',
  'data.prefetch',
)


# Format of config.json. 1: with current_norm and fold_convolutions.
FORMAT = 2
# What --mode=fold and the summary fold: membrane norms only, or every norm.
FOLDS = ('thresholds', 'all')
# Keys that stored configurations may lack: {key: what programs did before}.
_ADDED = {
  'data.rand_augment': 0,
  'data.rand_augment_magnitude': 9,
  'log.per_layer': False,
  'loss.distillation': 0.0,
  'loss.distillation_temperature': 2.0,
  'loss.regularizer': 0.0,
  'loss.regularizer_target': 1.0,
  'model.autodiff': True,
  'model.keep': 'all',
  'model.kernel_init': 'fan_out',
  'model.start': 'zero',
  'model.stats_groups': 1,
  'model.surrogate_unit': 'one',
  'optimizer.accumulate': 1,
  'optimizer.b2': 0.999,
  'optimizer.ema': 0.0,
  'optimizer.name': 'sgd',
  'optimizer.schedule': 'cosine',
}
_LISTED = 8  # differing keys that one message lists


def flatten(config: Mapping, prefix: str = '') -> dict[str, Any]:
  """Returns {'model.num_steps': 4, ...} of nested mappings."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, Mapping) or hasattr(value, 'items'):
      flat.update(flatten(value, f'{prefix}{key}.'))
    else:
      flat[prefix + key] = value
  return flat


# {key in earlier versions: its present name}
RENAMED = {
  'evaluation.fold_convolutions': "'evaluation.fold' ('thresholds' or 'all')",
  'model.current_norm': "'model.conv_norm'",
}

# Other names for our keys.
_SYNONYMS = {
  'batch': 'data.batch_size',
  'bs': 'data.batch_size',
  'adam': 'optimizer.name',
  'beta2': 'optimizer.b2',
  'dataset': 'data.name',
  'decay': 'optimizer.weight_decay',
  'epochs': 'num_epochs',
  'lr': 'optimizer.learning_rate',
  'scheduler': 'optimizer.schedule',
  'steps': 'model.num_steps',
  't': 'model.num_steps',
  'threshold': 'model.v_th',
  'time_steps': 'model.num_steps',
  'timesteps': 'model.num_steps',
  'vth': 'model.v_th',
  'wd': 'optimizer.weight_decay',
}


def nearest_keys(key: str, known: Iterable[str]) -> list[str]:
  """Returns the known keys that a user who wrote `key` may have meant.

  Returns the first that exists: the same key in the group with the most similar
  name; keys of the same name in other groups; a synonym; the most similar key,
  from the group if it is known.

  Example:
    >>> nearest_keys('lr', ['optimizer.learning_rate', 'model.tau'])
    ['optimizer.learning_rate']
  """
  known = list(known)
  group, _, last = key.rpartition('.')
  groups = {_group(name) for name in known}
  near = difflib.get_close_matches(group, groups, n=1, cutoff=0.7)
  group = near[0] if near else ''
  if f'{group}.{last}' in known:
    return [f'{group}.{last}']
  same = [name for name in known if _last(name) == last]
  if same:
    return difflib.get_close_matches(key, same, n=3, cutoff=0.0)
  meant = _SYNONYMS.get(last.lower())
  if meant in known and group in ('', _group(meant)):
    return [meant]
  inside = {_last(name): name for name in known if group in ('', _group(name))}
  near = difflib.get_close_matches(last, inside, n=1)
  if near:
    return [inside[near[0]]]
  return [meant] if meant in known else []


def _group(key):
  return key.rpartition('.')[0]


def _last(key):
  return key.rpartition('.')[2]


def unknown_key(key: str, known: Iterable[str]) -> InputError:
  """Returns the error for a key that no configuration has.

  Args:
    key: the unknown key, 'group.name'.
    known: all known keys.
  """
  known = list(known)
  if key in RENAMED:
    return InputError(
      f'unknown configuration key {key!r}: it was renamed to {RENAMED[key]}'
    )
  near = nearest_keys(key, known)
  hint = f'did you mean {" or ".join(map(repr, near))}? (--help lists all)'
  return InputError(
    f'unknown configuration key {key!r}: {hint if near else "see --help"}'
  )


def check_config(config: Mapping) -> None:
  """Raises InputError for values outside their ranges.

  Names of models, norms and data sets are checked when they are looked up.
  """
  flat = flatten(config)
  for key, value in flat.items():
    if isinstance(value, float) and not math.isfinite(value):
      raise InputError(
        f'{key} must be a finite number, got {value}: set --config.{key} to one'
      )
  at_least = {
    'num_epochs': 1,
    'data.batch_size': 1,
    'model.stats_groups': 1,
    'data.fake': 0,
    'data.shift': 0,
    'data.roll': 0,
    'data.cutout': 0,
    'data.train_size': 0,
    'data.validation_size': 0,
    'data.workers': 0,
    'data.prefetch': 1,
    'data.mixup': 0,
    'data.rand_augment': 0,
    'data.rand_augment_magnitude': 0,
    'data.random_erasing': 0,
    'evaluation.batch_size': 1,
    'log.every_steps': 1,
    'log.checkpoint_every_epochs': 1,
    'optimizer.warmup_epochs': 0,
    'optimizer.accumulate': 1,
    'optimizer.gradient_clip': 0,
    'optimizer.weight_decay': 0,
    'seed': 0,
  }
  for key, least in at_least.items():
    if not flat[key] >= least:
      raise InputError(
        f'{key} must be at least {least}, got {flat[key]}: set '
        f'--config.{key}={least} or more'
      )
  if flat['seed'] >= 2**32:  # JAX would silently drop the higher bits
    raise InputError(
      f'seed must be less than 2**32, got {flat["seed"]}: set --config.seed to '
      'a smaller one'
    )
  for key, example in (
    ('optimizer.learning_rate', 0.1),
    ('loss.distillation_temperature', 2.0),
  ):
    if not flat[key] > 0:
      raise InputError(
        f'{key} must be positive, got {flat[key]}: set --config.{key}='
        f'{example}, for example'
      )
  for key in (
    'optimizer.momentum',
    'optimizer.b2',
    'optimizer.ema',
    'loss.distillation',
    'loss.label_smoothing',
    'loss.regularizer',
  ):
    if not 0 <= flat[key] < 1:
      raise InputError(
        f'{key} must lie in [0, 1), got {flat[key]}: set --config.{key}=0, '
        'for example'
      )
  if flat['loss.distillation'] > 0 and flat['model.num_steps'] == 1:
    raise InputError(
      'loss.distillation must be 0 with model.num_steps = 1, where every step '
      f'is its own teacher, got {flat["loss.distillation"]}: set '
      '--config.loss.distillation=0'
    )
  if flat['optimizer.warmup_epochs'] >= flat['num_epochs']:
    raise InputError(
      'optimizer.warmup_epochs must be less than num_epochs = '
      f'{flat["num_epochs"]}, got {flat["optimizer.warmup_epochs"]}: set '
      '--config.optimizer.warmup_epochs=0, for example'
    )
  if flat['evaluation.fold'] not in FOLDS:
    raise InputError(
      f"evaluation.fold must be 'thresholds' or 'all', got "
      f'{flat["evaluation.fold"]!r}: set --config.evaluation.fold=thresholds, '
      'for example'
    )
  if flat['evaluation.fold'] == 'all':
    _check_kernels_fold(flat['model.conv_norm'], flat['model.spike_norm'])
  if flat['evaluation.checkpoint'] not in ('latest', 'best'):
    raise InputError(
      "evaluation.checkpoint must be 'latest' or 'best', got "
      f'{flat["evaluation.checkpoint"]!r}: set '
      '--config.evaluation.checkpoint=latest, for example'
    )


def _check_kernels_fold(conv, spike):
  mend = 'set --config.evaluation.fold=thresholds'
  if conv == spike == norm.NONE:
    raise InputError(
      "evaluation.fold='all' needs a normalization after the convolutions or "
      "the firing, got model.conv_norm = 'none' and model.spike_norm = "
      f"'none': {mend}"
    )
  for name in (conv, spike):
    # Unknown names are reported when they are looked up.
    entry = norm.NORMS.get(name)
    if entry is not None and entry.fold is None:
      raise InputError(
        f"evaluation.fold='all' needs normalizations that fold, "
        f'but {name!r} does not: {entry.why_not}; {mend}'
      )


def to_json(config: Mapping) -> str:
  """Returns the configuration and its format version as JSON text."""
  content = {'format': FORMAT, **plain(config)}
  return json.dumps(content, indent=2, sort_keys=True) + '\n'


def from_json(text: str) -> dict[str, Any]:
  """Returns the configuration from the text that `to_json` returned.

  Raises:
    ValueError: the text is damaged or has another format.
  """
  config = json.loads(text)
  if not isinstance(config, dict):
    raise ValueError('no JSON object')
  version = config.pop('format', 1)
  if version != FORMAT:
    raise ValueError(
      f'it has format {version}, and this version of mpbn_jax reads format '
      f'{FORMAT}'
    )
  return _completed(config)


def _completed(stored):
  """Returns a stored configuration with the keys that were added since."""
  completed = dict(stored)
  for added, value in _ADDED.items():
    group, _, key = added.partition('.')
    if hasattr(stored.get(group), 'items'):
      completed[group] = {key: value, **completed[group]}
  return completed


def plain(config: Mapping) -> dict[str, Any]:
  """Returns the configuration as nested, JSON-serializable dicts."""
  return {
    key: plain(value) if hasattr(value, 'items') else value
    for key, value in config.items()
  }


def as_before(config: Mapping) -> dict[str, Any]:
  """Returns the flat configuration without keys that say what was always so.

  Keys that were added later are left out where they have the value of programs
  before, so that a key that is added changes nothing.
  """
  return {
    key: value
    for key, value in flatten(config).items()
    if key not in _ADDED or value != _ADDED[key]
  }


def differences(config: Mapping, stored: Mapping) -> list[str]:
  """Returns 'key: stored -> now' for each key that differs but must not."""
  ours = flatten(json.loads(json.dumps(plain(config))))
  theirs = flatten(_completed(stored))
  return [
    f'{key}: {theirs.get(key)!r} -> {ours.get(key)!r}'
    for key in sorted(ours.keys() | theirs.keys())
    if ours.get(key) != theirs.get(key) and not _is_free(key)
  ]


def _is_free(key):
  return any(
    key.startswith(free) if free.endswith('.') else key == free
    for free in FREE_KEYS
  )


def listed(differences: list[str]) -> str:
  """Returns differences as text on one line: the first few, and the count."""
  more = len(differences) - _LISTED
  return '; '.join(differences[:_LISTED]) + f'; and {more} more' * (more > 0)
