"""How does a training state survive the process? Orbax, latest and best."""

import logging
import pathlib
import shutil
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from mpbn_jax.errors import InputError

_log = logging.getLogger(__name__)

# What orbax was seen to raise on truncated and missing files: ValueError from
# TensorStore, FileNotFoundError for metadata, JSONDecodeError (a ValueError).
_BROKEN = (ValueError, OSError, KeyError, TypeError)
_METRIC = 'validation_accuracy'
_UNMEASURED = -1.0  # below every accuracy: such a checkpoint is never best


class Checkpoints:
  """The checkpoints of a run: the last two, and the best on validation.

  A context manager: leaving it waits for the save under way. Writing is
  atomic; a killed process leaves the previous checkpoint intact.
  """

  def __init__(self, directory: pathlib.Path, *, read_only: bool = False):
    self._directory = directory.absolute()
    policy = preservation_policy.AnyPreservationPolicy(
      [
        # Two, so that a damaged one has a predecessor.
        preservation_policy.LatestN(2),
        preservation_policy.BestN(
          get_metric_fn=lambda metrics: metrics[_METRIC], n=1
        ),
      ]
    )
    self._manager = ocp.CheckpointManager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        best_fn=lambda metrics: metrics[_METRIC],
        best_mode='max',
        create=not read_only,
        read_only=read_only,
        # Left by a killed process.
        cleanup_tmp_directories=not read_only,
      ),
      item_names=('state',),
    )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._manager.close()

  def steps(self) -> list[int]:
    """Returns the steps of all checkpoints, rising."""
    return sorted(self._manager.all_steps())

  def best_step(self) -> int | None:
    """Returns the step that was best on validation."""
    return self._manager.best_step()

  def save(
    self, step: int, state: Any, *, validation_accuracy: float | None = None
  ) -> pathlib.Path:
    """Saves in the background; returns where."""
    if step not in self._manager.all_steps():
      accuracy = validation_accuracy
      self._manager.save(
        step,
        args=ocp.args.Composite(state=ocp.args.StandardSave(state)),
        metrics={_METRIC: _UNMEASURED if accuracy is None else accuracy},
      )
    return self._directory / str(step)

  def wait(self) -> None:
    """Returns when everything is on disk."""
    self._manager.wait_until_finished()

  def restore(self, like: Any, *, step: int) -> Any:
    """Returns the state of a step; `like` gives shapes and shardings."""
    return self._manager.restore(
      step,
      args=ocp.args.Composite(state=ocp.args.StandardRestore(_abstract(like))),
    ).state

  def restore_latest(self, like: Any) -> tuple[int, Any] | None:
    """Returns (step, state) of the newest checkpoint that can be read.

    A damaged one is moved to `<directory>_damaged`, with a warning, and the
    one before it is tried. None where there is no checkpoint at all.

    Raises:
      InputError: there are checkpoints, and none can be read.
    """
    steps = self.steps()
    damaged = []
    for step in reversed(steps):
      try:
        state = self.restore(like, step=step)
      except _BROKEN as error:
        damaged.append(step)
        reason = str(error).strip().splitlines()[0][:160]
        _log.warning(
          'checkpoint %s cannot be read (%s): using the one before it',
          self._directory / str(step),
          reason,
        )
        continue
      # Only now: with no readable one, nothing is touched.
      for broken in damaged:
        self._set_aside(broken)
      return step, state
    if damaged:
      raise InputError(
        'expected a readable checkpoint, but none of '
        f'{", ".join(str(self._directory / str(s)) for s in damaged)} can '
        'be read: restore a copy, or train into another --workdir'
      )
    return None

  def _set_aside(self, step):
    aside = self._directory.with_name(f'{self._directory.name}_damaged')
    aside.mkdir(exist_ok=True)
    target = aside / str(step)
    count = 0
    while target.exists():
      count += 1
      target = aside / f'{step}.{count}'
    shutil.move(self._directory / str(step), target)
    self._manager.reload()
    _log.warning('moved it to %s', target)


def _abstract(tree):
  def leaf(array):
    sharding = getattr(array, 'sharding', None)
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

  return jax.tree.map(leaf, tree)


def save_variables(path: pathlib.Path, variables: Any) -> None:
  """Writes variables (folded ones, say) to a directory, atomically.

  An older version at the same place is replaced.
  """
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(path.absolute(), variables, force=True)


def load_variables(path: pathlib.Path | str) -> Any:
  """Returns variables that `save_variables` wrote, as arrays on the device.

  Raises:
    InputError: nothing there, or damaged.
  """
  path = pathlib.Path(path).absolute()
  try:
    with ocp.StandardCheckpointer() as checkpointer:
      return checkpointer.restore(path)
  except _BROKEN as error:
    reason = str(error).strip().splitlines()[0][:160]
    raise InputError(
      f'expected folded variables in {path}, which cannot be read '
      f'({reason}): run --mode=fold again'
    ) from error
