"""How does a training state survive the process? Orbax, latest and best."""

import json
import logging
import os
import pathlib
import shutil
import tempfile
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from mpbn_jax.errors import InputError

_log = logging.getLogger(__name__)

# What `_verify` raises, and what orbax was seen to raise on truncated and
# missing files: ValueError from TensorStore, FileNotFoundError for metadata,
# JSONDecodeError (a ValueError).
_BROKEN = (ValueError, OSError, KeyError, TypeError)
_LATEST = 2  # so that a damaged one has a predecessor
_VALIDATION = 'validation'
_SEAL = 'files.json'
# Orbax writes it again after the rest is sealed, and can do without it.
_UNSEALED = '_CHECKPOINT_METADATA'


class Checkpoints:
  """The checkpoints of a run: the last two, and the best on validation.

  A context manager: leaving it waits for the save under way. Writing is
  atomic; a killed process leaves the previous checkpoint intact.

  Args:
    directory: where; each step is a directory in it.
    read_only: nothing is made, moved or removed.
  """

  def __init__(self, directory: pathlib.Path, *, read_only: bool = False):
    self._directory = directory.absolute()
    self._read_only = read_only
    if not read_only:
      _check_writable(self._directory)
      # Left by a killed process. Orbax would remove them in a thread that
      # may outlive the program.
      for leftover in self._directory.glob('*.orbax-checkpoint-tmp*'):
        shutil.rmtree(leftover)
    self._manager = ocp.CheckpointManager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=_LatestAndBest(self),
        create=not read_only,
        read_only=read_only,
        async_options=ocp.AsyncOptions(
          post_finalization_callback=self._seal_saving
        ),
      ),
    )
    self._saving: int | None = None
    # Kept here and not by orbax's `metrics`: with one unreadable file of
    # those, no manager can be made at all.
    self._accuracy = {
      step: _read_accuracy(self._directory / str(step)) for step in self.steps()
    }

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._manager.close()

  def steps(self) -> list[int]:
    """Returns the steps of all checkpoints, rising."""
    return sorted(self._manager.all_steps())

  def best_step(self) -> int | None:
    """Returns the step that was best on validation, the last of equals."""
    return _best(self._accuracy, self.steps())

  def save(
    self,
    step: int,
    items: Mapping[str, Any],
    *,
    validation_accuracy: float | None = None,
  ) -> pathlib.Path:
    """Saves in the background; returns where.

    Args:
      step: a checkpoint that is there already stays as it is.
      items: {name: pytree of arrays}.
      validation_accuracy: decides which one is best; None: not measured.
    """
    if step not in self._manager.all_steps():
      # Before saving: the policy asks for it then.
      self._accuracy[step] = validation_accuracy
      saved = {k: ocp.args.StandardSave(tree) for k, tree in items.items()}
      saved[_VALIDATION] = ocp.args.JsonSave({'accuracy': validation_accuracy})
      self._manager.wait_until_finished()  # `_saving` is free then
      self._saving = step
      self._manager.save(step, args=ocp.args.Composite(**saved))
    return self._directory / str(step)

  def _seal_saving(self):
    # Orbax calls this in its thread before it renames the directory, so that
    # a checkpoint that is there is sealed.
    for path in self._directory.glob(f'{self._saving}.orbax-checkpoint-tmp*'):
      _seal(path)

  def wait(self) -> None:
    """Returns when everything is on disk."""
    self._manager.wait_until_finished()

  def restore(self, like: Mapping[str, Any], *, step: int) -> dict[str, Any]:
    """Returns the items of a step that `like` has.

    Args:
      like: {name: pytree}; gives shapes and shardings.
      step: one of `steps()`.

    Raises:
      InputError: it cannot be read.
    """
    try:
      return self._restore(like, step)
    except _BROKEN as error:
      raise InputError(
        f'expected a readable checkpoint in {self._directory / str(step)} '
        f'({_reason(error)}): restore a copy, or use another checkpoint'
      ) from error

  def _restore(self, like, step):
    _verify(self._directory / str(step))
    wanted = {
      k: ocp.args.StandardRestore(_abstract(v)) for k, v in like.items()
    }
    restored = self._manager.restore(step, args=ocp.args.Composite(**wanted))
    return {name: restored[name] for name in like}

  def restore_latest(
    self, like: Mapping[str, Any]
  ) -> tuple[int, dict[str, Any]] | None:
    """Returns (step, items) of the newest checkpoint that can be read.

    A damaged one is moved to `<directory>_damaged` (unless read-only), with a
    warning, and the one before it is tried. None where there is no checkpoint
    at all.

    Raises:
      InputError: there are checkpoints, and none can be read.
    """
    damaged = []
    for step in reversed(self.steps()):
      try:
        items = self._restore(like, step)
      except _BROKEN as error:
        damaged.append(step)
        reason = _reason(error)
        continue
      # Only now: with no readable one, nothing is touched.
      for broken in damaged:
        _log.warning(
          'checkpoint %s cannot be read (%s): using %s, the one before it%s',
          self._directory / str(broken),
          reason,
          step,
          '' if self._read_only else f'; moved to {self._set_aside(broken)}',
        )
      return step, items
    if damaged:
      raise InputError(
        'expected a readable checkpoint, but none of '
        f'{", ".join(str(self._directory / str(s)) for s in damaged)} can '
        f'be read ({reason}): restore a copy, or train into another --workdir'
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
    return target


class _LatestAndBest:
  """Orbax's preservation policy: the last two, and the best of all."""

  def __init__(self, checkpoints: Checkpoints):
    self._checkpoints = checkpoints

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    del context
    steps = [info.step for info in checkpoints]
    kept = {_best(self._checkpoints._accuracy, steps), *steps[-_LATEST:]}
    return [step in kept for step in steps]


def _best(accuracy, steps):
  measured = [step for step in steps if accuracy.get(step) is not None]
  return max(measured, key=lambda step: (accuracy[step], step), default=None)


def _read_accuracy(path):
  try:
    text = (path / _VALIDATION / 'metadata').read_text()
    return json.loads(text)['accuracy']
  except _BROKEN:  # damaged: it counts as not measured
    return None


def _seal(directory):
  """Writes {file: [bytes, checksum]} of a checkpoint into its directory."""
  files = {
    str(path.relative_to(directory)): _fingerprint(path)
    for path in sorted(directory.rglob('*'))
    if path.is_file() and path.name != _UNSEALED
  }
  temporary = directory / f'{_SEAL}.tmp'
  temporary.write_text(json.dumps(files, indent=1))
  os.replace(temporary, directory / _SEAL)


def _verify(directory):
  """Raises an error of `_BROKEN` unless every file is as it was sealed.

  Orbax finds most damage too, but while it reads: what it leaves behind goes
  on to print tracebacks.
  """
  seal = directory / _SEAL
  files = dict(json.loads(seal.read_text())) if seal.is_file() else {}
  for name in (_SEAL, *files):
    if not (directory / name).is_file():
      raise FileNotFoundError(f'{name} is missing')
  for name, (expected, checksum) in files.items():
    size, found = _fingerprint(directory / name)
    if size != expected:
      raise ValueError(f'{name} has {size} bytes, expected {expected}')
    if found != checksum:
      raise ValueError(f'{name} has changed')


def _fingerprint(path):
  content = path.read_bytes()
  return len(content), zlib.crc32(content)


def _reason(error):
  lines = str(error).strip().splitlines() or [type(error).__name__]
  return lines[0][:160]


def _abstract(tree):
  def leaf(array):
    sharding = getattr(array, 'sharding', None)
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

  return jax.tree.map(leaf, tree)


def _check_writable(directory):
  """Raises InputError unless files can be made in a directory.

  Orbax finds out in threads that then wait ten minutes for each other, and the
  process with them.
  """
  try:
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory):
      pass
  except OSError as error:
    raise InputError(
      f'expected to write in {directory}, got an error ({_reason(error)}): '
      'make room, or remove what is in the way'
    ) from error


def save_variables(path: pathlib.Path, variables: Any) -> None:
  """Writes variables (folded ones, say) to a directory, whole or not at all.

  An older version at the same place is replaced.

  Raises:
    InputError: it cannot be written.
  """
  _check_writable(path.absolute().parent)
  try:
    with ocp.StandardCheckpointer() as checkpointer:
      checkpointer.save(path.absolute(), variables, force=True)
    _seal(path.absolute())
  except OSError as error:
    raise InputError(
      f'expected to write {path}, got an error ({_reason(error)}): make room, '
      'or remove what is in the way'
    ) from error


def load_variables(path: pathlib.Path | str) -> Any:
  """Returns variables that `save_variables` wrote, as arrays on the device.

  Raises:
    InputError: nothing there, or damaged.
  """
  path = pathlib.Path(path).absolute()
  try:
    _verify(path)
    with ocp.StandardCheckpointer() as checkpointer:
      return checkpointer.restore(path)
  except _BROKEN as error:
    raise InputError(
      f'expected folded variables in {path}, which cannot be read '
      f'({_reason(error)}): run --mode=fold again'
    ) from error
