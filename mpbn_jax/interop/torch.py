"""Checkpoints of the paper's PyTorch implementation, mapped onto ours.

Its arrays are channels-first: kernels OIHW, the linear layer [out, in],
element-wise normalizations [C, H, W]. Names are those of its `state_dict`. The
model defines which leaves exist; this module only has their reference names.
"""

import re
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from mpbn_jax.errors import InputError, unknown
from mpbn_jax.interop.readers import Entry, is_floating
from mpbn_jax.models import build_model
from mpbn_jax.norm import CONSTANTS

# Reference names of our layers: (convolution or linear layer, norm).
Prefixes = tuple[str | None, str | None]


def _residual(shortcut: int) -> Callable[[str], Prefixes]:
  def prefixes(layer):
    match = re.fullmatch(r'stage(\d)_block(\d)_(\w+?)(\d?)', layer)
    if match is None:
      return _stem(layer, triple=shortcut == 1)
    stage, block, kind, number = match.groups()
    at = f'model.layer{stage}.{int(block) - 1}'
    if kind == 'conv':
      return f'{at}.conv{number}.pool', f'{at}.bn{number}.bn'
    if kind == 'lif':
      return None, f'{at}.{"relu1" if number == "1" else "output_act"}.bn'
    return (
      f'{at}.downsample.{shortcut}.pool',
      f'{at}.downsample.{shortcut + 1}.bn',
    )

  return prefixes


def _stem(layer, *, triple):
  if layer == 'head':
    return 'model.fc.conv', None
  kind, index = layer.removeprefix('stem_')[:-1], 3 * (int(layer[-1]) - 1)
  if triple:
    if kind == 'lif':
      return None, f'model.conv1.{index + 2}.bn'
    return f'model.conv1.{index}.pool', f'model.conv1.{index + 1}.bn'
  if kind == 'lif':
    return None, 'model.relu.bn'
  return 'model.conv1.pool', 'model.bn1.bn'


def _vgg16(layer):
  if layer == 'head':
    return 'model.classifier.conv', None
  # Three entries per layer, and one for each average pool before it.
  number = int(re.search(r'\d+', layer)[0])
  pools = sum(number > last for last in (2, 4, 7, 10))
  index = 3 * (number - 1) + pools
  if layer.startswith('lif'):
    return None, f'model.features.{index + 2}.bn'
  return f'model.features.{index}.pool', f'model.features.{index + 1}.bn'


# The average pool in ResNet20's shortcut takes index 0.
ARCHITECTURES: dict[str, Callable[[str], Prefixes]] = {
  'resnet18': _residual(shortcut=0),
  'resnet19': _residual(shortcut=0),
  'resnet20': _residual(shortcut=1),
  'resnet34': _residual(shortcut=0),
  'vgg16': _vgg16,
}

_LEAVES = {
  'kernel': 'weight',
  'scale': 'weight',
  'bias': 'bias',
  'mean': 'running_mean',
  'var': 'running_var',
}


def _their_name(architecture, path):
  """Returns the reference name of a leaf (collection, layer, [norm,] leaf)."""
  _, layer, *norm, leaf = path
  convolution, normalization = ARCHITECTURES[architecture](layer)
  prefix = normalization if norm else convolution
  return f'{prefix}.{_LEAVES[leaf]}'


def _their_axes(ndim):
  """Returns axes such that reference = ours.transpose(axes)."""
  return {4: (3, 2, 0, 1), 3: (2, 0, 1), 2: (1, 0), 1: (0,)}[ndim]


def _check(config):
  if config['name'] not in ARCHITECTURES:
    raise unknown(
      'architecture of the reference', config['name'], ARCHITECTURES
    )
  if config.get('conv_norm', 'bn') != 'bn':
    raise InputError(
      "the reference has conv_norm='bn' after every convolution, got "
      f'{config["conv_norm"]!r}: set config.model.conv_norm=bn'
    )
  if config.get('spike_norm', 'none') != 'none':
    raise InputError(
      'the reference has no normalization of the spikes, got '
      f'{config["spike_norm"]!r}: set config.model.spike_norm=none'
    )
  for key in ('learn_tau', 'learn_v_th'):
    if config.get(key):
      raise InputError(
        f'the reference has no {key}, got model.{key}=True: set '
        f'--config.model.{key}=false'
      )
  if config.get('start', 'zero') != 'zero':
    raise InputError(
      'the neurons of the reference start at 0, got model.start='
      f'{config["start"]!r}: set --config.model.start=zero'
    )


def _expected(config, channels, side):
  """Returns ({path: (reference name, our shape)}, {path: constant})."""
  model = build_model(config)
  shapes = {}

  @jax.jit
  def constants():
    variables = model.init(
      jax.random.key(0), jnp.zeros((1, side, side, channels)), train=False
    )
    leaves = _by_path(variables)
    shapes.update({path: leaf.shape for path, leaf in leaves.items()})
    # Everything else is dead code and is not compiled.
    return [leaves[path] for path in leaves if path[-1] in CONSTANTS]

  values = constants()
  names = {
    path: (_their_name(config['name'], path), shape)
    for path, shape in shapes.items()
    if path[-1] not in CONSTANTS
  }
  paths = [path for path in shapes if path not in names]
  return names, dict(zip(paths, values, strict=True))


def _by_path(variables):
  return {
    tuple(key.key for key in path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
  }


def _side(config, state, first):
  """Returns the side of the images for which element-wise norms were built."""
  _, norm = ARCHITECTURES[config['name']](first.replace('conv', 'lif'))
  weight = state.get(f'{norm}.weight')
  if config.get('membrane_norm') != 'mpbn_element' or np.ndim(weight) != 3:
    return 64  # channel-wise: any image that is large enough
  stride = 2 if config['name'] in ('resnet18', 'resnet34') else 1
  return stride * np.shape(weight)[1]


def _by_name(state):
  """Returns the relevant arrays, named as in single-device training."""
  ours = {}
  for name, value in state.items():
    if not isinstance(name, str):
      raise TypeError(
        f'expected arrays by name, got the key {name!r}: pass what '
        'model.state_dict() returns'
      )
    if name.endswith('num_batches_tracked'):
      continue
    short = name.removeprefix('module.')
    if short in ours:
      raise InputError(
        f'expected each name once, got {short!r} with and without "module.": '
        'leave one of them out'
      )
    ours[short] = value if hasattr(value, 'shape') else np.asarray(value)
  return ours


def _numbers(name, value):
  """Returns (float32 array, the problem with its numbers or '')."""
  if not is_floating(value.dtype):
    return (
      None,
      f'{name} of dtype {value.dtype}',
    )
  array = value.read() if isinstance(value, Entry) else np.asarray(value)
  with np.errstate(over='ignore'):
    array = array.astype(np.float32)
  if not np.isfinite(array).all():
    return array, f'{name} with NaN or infinity'
  if name.endswith('running_var') and (array < 0).any():
    return array, f'{name} with the variance {array.min():.4g}'
  return array, ''


def from_reference(state: Mapping, config: Mapping) -> dict:
  """Returns our variables for a reference checkpoint.

  Args:
    state: {name: array, tensor or `readers.Entry`}, as in the reference's
      `state_dict`, with or without a leading `module.`; `num_batches_tracked`
      is ignored.
    config: `config.model` of its network.

  Returns:
    {'params', 'batch_stats'} of float32 arrays. The constants v_th and eps,
    which the reference keeps in its code, are those of `config`.

  Raises:
    InputError: the reference does not have the architecture; or entries are
      missing, unexpected, wrongly shaped, not finite floating-point numbers or
      negative variances (lists all of them by name).

  Example:
    >>> config = {'name': 'resnet20', 'width': 4, 'num_steps': 2}
    >>> sorted(from_reference(to_reference(variables, config), config))
    ['batch_stats', 'params']
  """
  _check(config)
  state = _by_name(state)
  first = 'conv1' if config['name'] == 'vgg16' else 'stem_conv1'
  kernel, _ = ARCHITECTURES[config['name']](first)
  shape = np.shape(state.get(f'{kernel}.weight', np.zeros((1, 3))))
  expected, constants = _expected(config, shape[1], _side(config, state, first))

  problems = []
  for name, shape in expected.values():
    want = tuple(shape[axis] for axis in _their_axes(len(shape)))
    if name not in state:
      problems.append(f'missing {name}')
    elif tuple(state[name].shape) != want:
      got = tuple(state[name].shape)
      problems.append(f'{name} has shape {got}, expected {want}')
  names = {name for name, _ in expected.values()}
  problems += [f'extra {name}' for name in sorted(state.keys() - names)]
  if problems:
    raise InputError(
      f'the checkpoint is not one of {config["name"]!r} with this '
      f'config.model (width, num_classes, norms): {"; ".join(problems)}'
    )

  ours = dict(constants)
  for path, (name, shape) in expected.items():
    theirs, problem = _numbers(name, state[name])
    if problem:
      problems.append(problem)
      continue
    leaf = theirs.transpose(np.argsort(_their_axes(len(shape))))
    ours[path] = jnp.asarray(leaf, jnp.float32)
  if problems:
    raise InputError(
      'expected finite floating-point numbers, and variances of at least 0, '
      f'got {"; ".join(problems)}: restore a copy of the checkpoint'
    )
  variables: dict = {}
  for path, leaf in ours.items():
    *parents, last = path
    node = variables
    for key in parents:
      node = node.setdefault(key, {})
    node[last] = leaf
  return variables


def to_reference(variables: Mapping, config: Mapping) -> dict[str, np.ndarray]:
  """Returns the reference's `state_dict` for our variables, as NumPy arrays.

  The inverse of `from_reference`. Omits `num_batches_tracked`, which the
  reference does not read, and v_th and eps, which it keeps in its code.

  Args:
    variables: {'params', 'batch_stats'}, unfolded.
    config: `config.model`.

  Raises:
    InputError: the reference does not have the architecture or norm, or the
      variables are folded.
  """
  _check(config)
  if not {'params', 'batch_stats'} >= set(variables):
    raise InputError(
      'expected unfolded variables, {params, batch_stats}, got the '
      f'collections {", ".join(variables)}: the reference does not fold'
    )
  state = {}
  for path, leaf in _by_path(variables).items():
    if path[-1] in CONSTANTS:
      continue
    name = _their_name(config['name'], path)
    state[name] = np.asarray(leaf).transpose(_their_axes(leaf.ndim))
  return state
