"""How does a file of weights from another program become a checkpoint?

The files are read without ever running code that they may hold.
"""

import json
import pathlib
import re
import warnings
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from mpbn_jax import record, sharding
from mpbn_jax.checkpoint import Checkpoints, steps_in
from mpbn_jax.errors import InputError, unknown
from mpbn_jax.interop.torch import from_reference
from mpbn_jax.train import saved_items
from mpbn_jax.train_step import build_network, start_state

# ---- reading

# Whole checkpoints hold the weights under one of these.
_NESTED = ('state_dict', 'model', 'net')
# Archives that hold more than weights, as tests/golden does, have it on these.
_PREFIX = 'state/'


def read_state(path: pathlib.Path | str) -> dict[str, np.ndarray]:
  """Returns {name: array} of a file of weights.

  Args:
    path: its suffix says how it is read. .npz: NumPy, the entries 'state/...'
      without that prefix where there are any. .safetensors. .pth, .pt, .tar:
      PyTorch, which must be installed; a `state_dict`, bare or under
      'state_dict', 'model' or 'net'.

  Returns:
    Names and axes as in the file, numbers as float32.

  Raises:
    InputError: no such file, unknown kind, damaged, code in it, no weights.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise InputError(
      f"expected a file of weights, got '{path}', which is none: give its path "
      'as --checkpoint=FILE'
    )
  suffix = path.suffix.lower()
  if suffix not in _READERS:
    raise unknown('kind of file of weights', suffix, _READERS)
  try:
    state = _READERS[suffix](path)
  except InputError:
    raise
  except Exception as error:  # whatever a damaged file may raise
    raise InputError(
      f'expected weights in {path}, which cannot be read as {suffix} '
      f'({_reason(error)}): restore a copy'
    ) from error
  if not state:
    raise InputError(
      f'expected arrays by name in {path}, got none: save what '
      'model.state_dict() returns'
    )
  for name, array in state.items():
    if array.dtype.kind not in 'biuf':
      raise InputError(
        f'expected numbers in {path}, got {name} of dtype {array.dtype}: save '
        'it as float32'
      )
  with np.errstate(over='ignore'):  # `import_checkpoint` refuses infinity
    return {name: array.astype(np.float32) for name, array in state.items()}


def _reason(error):
  sentence = re.split(r'\.?(?:\s*\n|\. |$)', str(error).strip())[0]
  name = type(error).__name__
  return f'{name}: {sentence[:160]}' if sentence else name


def _read_npz(path):
  with path.open('rb') as file:  # np.load leaves a damaged one open
    archive = np.load(file, allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile):
      raise ValueError('one array without a name')
    names = [name for name in archive.files if name.startswith(_PREFIX)]
    return {
      name.removeprefix(_PREFIX): archive[name]
      for name in names or archive.files
    }


_SAFETENSORS = {
  'BOOL': '?',
  'I8': '<i1',
  'U8': '<u1',
  'I16': '<i2',
  'U16': '<u2',
  'I32': '<i4',
  'U32': '<u4',
  'I64': '<i8',
  'U64': '<u8',
  'F16': '<f2',
  'BF16': '<u2',  # NumPy has none: the upper half of a float32
  'F32': '<f4',
  'F64': '<f8',
}


def _read_safetensors(path):
  """Reads the whole format, which is too small to depend on a package for.

  Eight bytes N, N bytes of JSON {name: dtype, shape, data_offsets}, the data.
  """
  content = memoryview(path.read_bytes())
  start = 8 + int.from_bytes(content[:8], 'little')
  if len(content) < max(start, 8):
    raise ValueError('it is cut off')
  header = json.loads(bytes(content[8:start]))
  header.pop('__metadata__', None)
  state = {}
  for name, entry in header.items():
    dtype = entry['dtype']
    if dtype not in _SAFETENSORS:
      raise ValueError(f'{name} has dtype {dtype}')
    first, last = (start + offset for offset in entry['data_offsets'])
    if not start <= first <= last <= len(content):
      raise ValueError(f'{name} is cut off')
    array = np.frombuffer(content[first:last], _SAFETENSORS[dtype])
    if dtype == 'BF16':
      array = (array.astype(np.uint32) << 16).view(np.float32)
    state[name] = array.reshape(entry['shape'])
  return state


def _read_torch(path):
  try:
    import torch  # large, and needed for nothing else
  except ImportError as error:
    raise InputError(
      f'expected PyTorch, to read {path}, which cannot be imported '
      f'({_reason(error)}): pip install torch, or where it is installed write '
      "s = torch.load('x.pth', weights_only=True, map_location='cpu'); "
      "numpy.savez('x.npz', **{k: v.float().numpy() for k, v in s.items()})"
    ) from error
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # an error says it all in one line
    try:
      content = torch.load(path, weights_only=True, map_location='cpu')
    except Exception as error:
      found = _code_in(str(error))
      if found is None:
        raise
      raise InputError(
        f'expected tensors alone in {path}, got {found}, and code in '
        'checkpoints is never run: save what model.state_dict() returns alone, '
        'with torch.save'
      ) from error
    for key in _NESTED:
      if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
        content = content[key]
    entries = content.items() if isinstance(content, Mapping) else ()
    return {
      name: np.asarray(tensor.detach().float())
      for name, tensor in entries
      if isinstance(tensor, torch.Tensor)
    }


def _code_in(message):
  """Returns what `weights_only` refused, None if the file is just damaged."""
  match = re.search(r'GLOBAL ([\w.]+)', message)
  if match:
    return f'the Python object {match[1]}'
  if 'TorchScript' in message:
    return 'a TorchScript program'
  return 'a pickle' if 'Weights only load failed' in message else None


_READERS = {
  '.npz': _read_npz,
  '.pt': _read_torch,
  '.pth': _read_torch,
  '.safetensors': _read_safetensors,
  '.tar': _read_torch,  # .pth.tar
}


# ---- the checkpoint


def import_checkpoint(
  file: pathlib.Path | str, config: Mapping, *, workdir: pathlib.Path
) -> pathlib.Path:
  """Writes weights as the checkpoint of step 0 of a new run; returns where.

  The optimizer starts afresh. No data are read. Nothing is written before
  the file is known to fit.

  Args:
    file: as for `read_state`, with the reference's names.
    config: of the run; `config.model` is the network in the file.
    workdir: made if need be; it must hold no run.

  Raises:
    InputError: an unusable configuration, work directory or file; entries
      that do not fit, all by name at once.
  """
  model, spec, mesh = build_network(config)
  _check_no_run(workdir, config)
  variables = from_reference(read_state(file), config.model)
  shape = (1, *spec.example_shape(config.model.num_steps))
  image = jax.ShapeDtypeStruct(shape, jnp.float32)
  expected = jax.eval_shape(
    lambda key, x: model.init(key, x, train=False), jax.random.key(0), image
  )
  _check_variables(variables, expected, file=file, spec=spec)
  state = jax.device_put(
    start_state(config, variables), sharding.replicated(mesh)
  )
  with record.hold_workdir(workdir, config) as held:
    _check_no_run(workdir, config)  # none was begun meanwhile
    checkpoints = Checkpoints(held.path / record.CHECKPOINTS, config=config)
    return checkpoints.save(0, saved_items(state, mesh))


def _check_no_run(workdir, config):
  steps = steps_in(workdir / record.CHECKPOINTS)
  if steps:
    raise InputError(
      f'expected a --workdir for a new run, got {workdir}, which holds a run '
      f'(checkpoint {steps[-1]}): give another'
    )
  record.check_config_of(workdir, config)


def _check_variables(variables, expected, *, file, spec):
  """Raises what does not fit the network on the images of its data set."""
  wanted = dict(jax.tree_util.tree_leaves_with_path(expected))
  problems = []
  for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    want = wanted[path].shape
    if leaf.shape != want:
      problems.append(f'{name} has shape {leaf.shape}, expected {want}')
    elif not np.isfinite(leaf).all():
      problems.append(f'{name} holds NaN or infinity')
  if problems:
    height, width, channels = spec.image_shape
    raise InputError(
      f'{file} does not fit {spec.name!r}, images of {height}x{width} with '
      f'{channels} channels (data.name): {"; ".join(problems)}'
    )
