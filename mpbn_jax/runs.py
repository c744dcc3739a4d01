"""Runs on disk: loading their networks, and starting other runs from them."""

import pathlib
import re
from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from mpbn_jax import config as config_lib
from mpbn_jax import config_files, optim, record, sharding
from mpbn_jax.checkpoint import Checkpoints
from mpbn_jax.datasets.base import Spec
from mpbn_jax.errors import InputError, unknown
from mpbn_jax.experiment import build_network
from mpbn_jax.folded import folded_path, load_folded
from mpbn_jax.norm import CONSTANTS
from mpbn_jax.train_step import TrainState, start_state

_CHECKPOINTS = ('latest', 'best')
_HEAD = 'head'  # the layer that depends on the number of classes


class Run(NamedTuple):
  """A trained network.

  Attributes:
    model: the network.
    variables: its variables, trained (the averages with `optimizer.ema`) or
      folded.
    spec: specification of its data: classes and normalization of images.
  """

  model: nn.Module
  variables: dict
  spec: Spec


def load_run(
  workdir: str | pathlib.Path,
  *,
  checkpoint: str = 'latest',
  folded: str | None = None,
) -> Run:
  """Returns the network of a run; reads no data and changes nothing.

  A network, a norm or a data set of your own must be registered before, by
  importing the file that does so.

  Args:
    workdir: work directory of the run.
    checkpoint: 'latest', or 'best' on validation.
    folded: None for the trained variables; 'thresholds' or 'all' for the
      variables that --mode=fold wrote with this `evaluation.fold`.

  Raises:
    InputError: the run or checkpoint does not exist or cannot be read.

  Example:
    >>> run = load_run(workdir)
    >>> shape = run.spec.example_shape(run.model.num_steps)
    >>> x = run.spec.normalize(jnp.zeros((2, *shape)))
    >>> run.model.apply(run.variables, x, train=False).shape
    (2, 10)
  """
  if checkpoint not in _CHECKPOINTS:
    raise unknown('checkpoint', checkpoint, _CHECKPOINTS)
  if folded not in (None, *config_lib.FOLDS):
    raise unknown('fold', folded, config_lib.FOLDS)
  workdir = pathlib.Path(workdir)
  file = workdir / record.CONFIG
  if not file.is_file():
    raise InputError(
      f'expected the work directory of a run, got {workdir} without a '
      f'{record.CONFIG}: pass the --workdir that a run was trained in'
    )
  config = config_files.load(file)
  model, spec, _ = build_network(
    config, mesh=sharding.make_mesh(jax.devices()[:1])
  )
  step, state = _restored(workdir, config, model, spec, checkpoint)
  if folded is None:
    return Run(model, state.variables, spec)
  path = folded_path(workdir, step=step, kernels=folded == 'all')
  if not path.is_dir():
    raise InputError(
      f'expected the folded network in {path}, got none: run --mode=fold '
      f'--workdir={workdir} --config.evaluation.fold={folded} first'
    )
  _, variables = load_folded(path, model=model)
  return Run(model, variables, spec)


def _restored(workdir, config, model, spec, checkpoint):
  """Returns (step, state) of a checkpoint."""
  shape = (1, *spec.example_shape(config.model.num_steps))

  def state():
    variables = model.init(jax.random.key(0), jnp.zeros(shape), train=False)
    return start_state(
      variables,
      optimizer=optim.optimizer(config.optimizer),
      averaged=config.optimizer.ema > 0,
    )

  checkpoints = Checkpoints(
    workdir / record.CHECKPOINTS, config=config, read_only=True
  )
  like = jax.eval_shape(state)
  if checkpoint == 'latest':
    restored = checkpoints.restore_latest(like)
  else:
    restored = checkpoints.restore_best(like)
  if restored is None:
    raise InputError(
      f'expected a checkpoint in {workdir / record.CHECKPOINTS}, got none'
      + (' that was measured on validation' if checkpoint == 'best' else '')
      + ': train that run first, or choose another'
    )
  return restored


def with_weights_of(
  state: TrainState, workdir: str | pathlib.Path
) -> tuple[TrainState, list[str]]:
  """Returns a new run's state with the weights of another run.

  Copies the parameters and running statistics of the newest checkpoint, or
  their averages if that run has them (`optimizer.ema`). The head is kept if the
  numbers of classes differ. The optimizer and averages start afresh.

  Args:
    state: state before the first step.
    workdir: work directory of the other run.

  Returns:
    (the new state, names of the leaves that were kept).

  Raises:
    InputError: there is no run, leaves mismatch (lists them by name), or
      constants (v_th, eps) differ.
  """
  theirs = load_run(workdir).variables
  ours = traverse_util.flatten_dict(state.variables, sep='/')
  given = traverse_util.flatten_dict(theirs, sep='/')
  problems, kept, new = [], [], dict(ours)
  for name in sorted(ours.keys() | given.keys()):
    if name not in given or name not in ours:
      problems.append(f'{name} is {"extra" if name in given else "missing"}')
      continue
    if given[name].shape != ours[name].shape:
      if re.match(rf'params/{_HEAD}/', name):
        kept.append(name)
      else:
        problems.append(
          f'{name} has shape {given[name].shape}, expected {ours[name].shape}'
        )
      continue
    if name.rpartition('/')[2] in CONSTANTS and not np.array_equal(
      given[name], ours[name]
    ):
      got, expected = np.asarray(given[name]), np.asarray(ours[name])
      problems.append(f'{name} is {got!s}, expected {expected!s}')
    new[name] = jax.device_put(given[name], ours[name].sharding)
  if problems:
    raise InputError(
      f'expected the weights of the same network in {workdir} '
      f'(config.init_from), got others: {config_lib.listed(problems)}: set '
      "config.model as in that run's config.json"
    )
  # If one leaf of the head is kept, the whole head is.
  if kept:
    kept = [name for name in ours if name.startswith(f'params/{_HEAD}/')]
    new |= {name: ours[name] for name in kept}
  variables: Mapping = traverse_util.unflatten_dict(new, sep='/')
  return state.with_variables(variables), kept
