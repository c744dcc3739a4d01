"""Weight files of other programs: as arrays, and as the start of a run."""

import hashlib
import pathlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mpbn_jax import optim, record, sharding
from mpbn_jax.checkpoint import Checkpoints, steps_in
from mpbn_jax.errors import InputError
from mpbn_jax.experiment import build_network
from mpbn_jax.interop.readers import (
  entries,
  is_floating,
  say_what_is_unchecked,
)
from mpbn_jax.interop.torch import from_reference
from mpbn_jax.train_step import start_state

# ---- reading


def read_state(path: pathlib.Path | str) -> dict[str, np.ndarray]:
  """Returns {name: array} of a weight file.

  Args:
    path: as for `readers.entries`.

  Returns:
    Arrays with the names and axes of the file, as float32.

  Raises:
    InputError: the file does not exist, is of an unknown kind, is damaged,
      contains code, or has no weights or other than floating-point numbers.
  """
  found = _weights(path)
  with np.errstate(over='ignore'):  # `import_checkpoint` rejects infinity
    state = {
      name: entry.read().astype(np.float32) for name, entry in found.items()
    }
  say_what_is_unchecked(pathlib.Path(path))
  return state


def _weights(path):
  """Returns the entries of a file without reading them."""
  found = entries(path)
  for name, entry in found.items():
    counts = entry.shape == () and entry.dtype.lower() in _COUNTS
    if not is_floating(entry.dtype) and not counts:
      raise InputError(
        f'expected floating-point numbers in {path}, got {name} of dtype '
        f'{entry.dtype}: save it as float32'
      )
  return found


# Integer dtypes of scalars, such as PyTorch's num_batches_tracked.
_COUNTS = {'i32', 'i64', 'u32', 'u64', 'int32', 'int64', 'uint32', 'uint64'}


def sha256(path: pathlib.Path | str) -> str:
  """Returns the hexadecimal checksum of a file."""
  with pathlib.Path(path).open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


# ---- the checkpoint


def import_checkpoint(
  file: pathlib.Path | str,
  config: ml_collections.ConfigDict,
  *,
  workdir: pathlib.Path,
) -> pathlib.Path:
  """Writes weights as the checkpoint of step 0 of a new run; returns its path.

  The optimizer starts afresh. No data are read. Nothing is written before the
  whole file is checked, and arrays with mismatched shapes are not read.

  Args:
    file: as for `read_state`, with the reference's names.
    config: configuration of the run; `config.model` describes the network in
      the file.
    workdir: created if needed; must not hold a run.

  Raises:
    InputError: the configuration, work directory or file is invalid;
      mismatched entries are listed by name.
  """
  model, spec, mesh = build_network(config)
  _check_no_run(workdir, config)
  variables = from_reference(_weights(file), config.model)
  shape = (1, *spec.example_shape(config.model.num_steps))
  image = jax.ShapeDtypeStruct(shape, jnp.float32)
  expected = jax.eval_shape(
    lambda key, x: model.init(key, x, train=False), jax.random.key(0), image
  )
  _check_variables(variables, expected, file=file, spec=spec)
  say_what_is_unchecked(pathlib.Path(file))
  optimizer = optim.optimizer(config.optimizer)
  averaged = config.optimizer.ema > 0
  state = start_state(variables, optimizer=optimizer, averaged=averaged)
  state = jax.device_put(state, sharding.replicated(mesh))
  with record.hold_workdir(workdir, config) as held:
    _check_no_run(workdir, config)  # none was started meanwhile
    checkpoints = Checkpoints(held.path / record.CHECKPOINTS, config=config)
    return checkpoints.save(0, state)


def _check_no_run(workdir, config):
  steps = steps_in(workdir / record.CHECKPOINTS)
  if steps:
    raise InputError(
      f'expected a --workdir for a new run, got {workdir}, which holds a run '
      f'(checkpoint {steps[-1]}): choose another'
    )
  record.check_config_of(workdir, config)


def _check_variables(variables, expected, *, file, spec):
  """Raises InputError if variables do not match the network and its images."""
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
