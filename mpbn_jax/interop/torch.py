"""How do checkpoints of the paper's PyTorch implementation map onto ours?

Its arrays are channels-first: kernels OIHW, the linear layer [out, in],
element-wise normalizations [C, H, W]. Names are those of its `state_dict`.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from mpbn_jax.errors import InputError, unknown

# (our layer, kind, their prefix); kind: 'kernel', 'current', 'membrane',
# 'linear'.
Row = tuple[str, str, str]


def _resnet20() -> Iterator[Row]:
  for i in range(3):
    yield f'stem_conv{i + 1}', 'kernel', f'model.conv1.{3 * i}.pool'
    yield f'stem_conv{i + 1}', 'current', f'model.conv1.{3 * i + 1}.bn'
    yield f'stem_lif{i + 1}', 'membrane', f'model.conv1.{3 * i + 2}.bn'
  for stage in range(4):
    for block in range(2):
      ours = f'stage{stage + 1}_block{block + 1}'
      theirs = f'model.layer{stage + 1}.{block}'
      for i in (1, 2):
        yield f'{ours}_conv{i}', 'kernel', f'{theirs}.conv{i}.pool'
        yield f'{ours}_conv{i}', 'current', f'{theirs}.bn{i}.bn'
      yield f'{ours}_lif1', 'membrane', f'{theirs}.relu1.bn'
      yield f'{ours}_lif2', 'membrane', f'{theirs}.output_act.bn'
      if stage > 0 and block == 0:
        yield f'{ours}_shortcut', 'kernel', f'{theirs}.downsample.1.pool'
        yield f'{ours}_shortcut', 'current', f'{theirs}.downsample.2.bn'
  yield 'head', 'linear', 'model.fc.conv'


LAYERS = {'resnet20': _resnet20}

_PARAMS = {'scale': 'weight', 'bias': 'bias'}
_STATS = {'mean': 'running_mean', 'var': 'running_var'}


def _channels_last(array: np.ndarray) -> np.ndarray:
  return np.moveaxis(array, 0, -1)  # [C, H, W] -> [H, W, C]; [C] stays


def from_reference(state: Mapping, config: Mapping) -> dict:
  """Returns our variables of a reference checkpoint.

  Args:
    state: names to arrays, as in the reference's `state_dict`.
    config: `config.model`; its name, current_norm and membrane_norm count.

  Returns:
    {'params', 'batch_stats'} of NumPy arrays in float32.

  Raises:
    InputError: unknown architecture; missing entries, all named at once.
  """
  name = config['name']
  if name not in LAYERS:
    raise unknown('architecture of the reference', name, LAYERS)
  norms = {
    'current': config['current_norm'],
    'membrane': config['membrane_norm'],
  }
  params, stats, missing = {}, {}, []

  def take(key):
    if key not in state:
      missing.append(key)
      return np.zeros(1, np.float32)
    return np.asarray(state[key], np.float32)

  for ours, kind, theirs in LAYERS[name]():
    layer = params.setdefault(ours, {})
    if kind == 'kernel':
      layer['kernel'] = take(f'{theirs}.weight').transpose((2, 3, 1, 0))
    elif kind == 'linear':
      layer['kernel'] = take(f'{theirs}.weight').T
      layer['bias'] = take(f'{theirs}.bias')
    elif norms[kind] != 'none':
      layer[norms[kind]] = {
        leaf: _channels_last(take(f'{theirs}.{their_leaf}'))
        for leaf, their_leaf in _PARAMS.items()
      }
      stats.setdefault(ours, {})[norms[kind]] = {
        leaf: _channels_last(take(f'{theirs}.{their_leaf}'))
        for leaf, their_leaf in _STATS.items()
      }
  if missing:
    raise InputError(
      f'the checkpoint is not one of {name!r} with these normalizations: '
      f'it lacks {", ".join(missing)}'
    )
  return {'params': params, 'batch_stats': stats}
