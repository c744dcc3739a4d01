"""Checkpoints: training states on disk, one directory each.

`<step>` holds the arrays, written by Orbax, and notes (`arrays.py`);
`index.json` lists the steps, so that a missing one is noticed.
"""

import contextlib
import json
import logging
import pathlib
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

from mpbn_jax import arrays, files, job, watchdog
from mpbn_jax import config as config_lib
from mpbn_jax.arrays import UnreadableError
from mpbn_jax.errors import InputError

_log = logging.getLogger('mpbn_jax')

_FORMAT = 3  # 1: version 0.1.0; 2: spike norms beside their neurons
_STATE = 'state'
_LATEST = 2  # so that a damaged one has a predecessor
_INDEX = 'index.json'
_SEAL_OF_0_1_0 = 'files.json'
# Messages about a checkpoint that cannot be read.
_NEWEST = (
  'expected a readable checkpoint, but {error}: restore a copy, or run '
  '--mode=train, which resumes from the one before it'
)
_BEST = (
  'expected to read every checkpoint, to find the best one, but {error}: '
  'restore a copy, or set --config.evaluation.checkpoint=latest'
)


def steps_in(directory: pathlib.Path) -> list[int]:
  """Returns the steps of all checkpoints in a directory, in ascending order."""
  return sorted(_paths(directory))


def _paths(directory):
  """Returns {step: path}."""
  try:
    there = list(directory.iterdir())
  except (FileNotFoundError, NotADirectoryError):
    there = []
  except OSError as error:
    raise InputError(
      f'expected the checkpoints of a run in {directory}, which cannot be read '
      f'({error.strerror}): let this user read it, or choose another --workdir'
    ) from error
  return {int(path.name): path for path in there if path.name.isdecimal()}


class Checkpoints:
  """The checkpoints of a run: the last two, and the best on validation.

  Writing is atomic: a killed process leaves a complete checkpoint or none, and
  the previous one unchanged. Checksums detect damage, and a checkpoint whose
  accuracy cannot be read is never removed.

  In a job of several processes, all must call the methods that save or restore
  a state, in the same order: the first process writes, and chooses what all
  restore.

  Args:
    directory: where the checkpoints are.
    config: configuration of the run; it is stored in each checkpoint, and
      checkpoints of a run with another configuration are refused. None if the
      configuration is unknown.
    data: checksum of the data that the run trains on; likewise.
    read_only: create, move and remove nothing; another process may write.
      Otherwise the caller must make sure that no other process writes.

  Raises:
    InputError: the directory cannot be read or written.
  """

  def __init__(
    self,
    directory: pathlib.Path,
    *,
    config: Mapping | None = None,
    data: str | None = None,
    read_only: bool = False,
  ):
    self._directory = directory.absolute()
    self._config, self._data = config, data
    self._read_only = read_only
    self._known: dict[int, dict] = {}  # notes of checkpoints read or saved
    if not read_only and job.is_first():
      files.check_writable(self._directory)
      files.remove_leftovers(self._directory)
      if not (self._directory / _INDEX).exists() and not self.steps():
        self._write_index([])
      self._indexed()

  def steps(self) -> list[int]:
    """Returns the steps of all existing checkpoints, in ascending order."""
    return steps_in(self._directory)

  def _path(self, step):
    return _paths(self._directory).get(step, self._directory / str(step))

  # ---- the index

  def _indexed(self) -> set[int]:
    """Returns the steps in the index; some checkpoints may be missing."""
    path = self._directory / _INDEX
    if not path.exists() and not self.steps():
      return set()
    try:
      steps = json.loads(path.read_text())['steps']
      if not all(type(step) is int and step >= 0 for step in steps):
        raise ValueError('no list of steps')
      return set(steps)
    except (OSError, ValueError, KeyError, TypeError) as error:
      reason = getattr(error, 'strerror', None) or error
      content = json.dumps({'steps': self.steps()})
      raise InputError(
        f'expected the list of checkpoints in {path}, which cannot be read '
        f'({reason}): restore it, or write {content} there if none is missing'
      ) from error

  def _write_index(self, steps: Iterable[int]) -> None:
    text = json.dumps({'steps': sorted(steps)}) + '\n'
    files.write_whole(self._directory / _INDEX, text)

  # ---- notes

  def _notes(self, step):
    """Returns the notes of a checkpoint."""
    if step in self._known:
      return self._known[step]
    with self._reading(step) as path:
      older = (path / _SEAL_OF_0_1_0).exists()
      notes = {'format': 1} if older else arrays.read_notes(path)
      if notes.get('format') != _FORMAT:
        raise InputError(
          f'expected a checkpoint of format {_FORMAT} in {path}, got '
          f'{notes.get("format")}: use the version of mpbn_jax that wrote it'
        )
      if notes['step'] != step:
        raise UnreadableError(f'it holds step {notes["step"]}')
    self._known[step] = notes
    return notes

  def config_of(self, step: int) -> dict | None:
    """Returns the configuration of a restored step, or None if unknown."""
    return self._notes(step)['config']

  def best_step(self) -> int | None:
    """Returns the step with the best validation accuracy, the last of ties.

    None if no validation accuracy was measured.

    Raises:
      InputError: a checkpoint that may be the best is damaged or missing.
    """
    return self._despite_a_writer(self._best, _BEST)

  def _best(self):
    steps = sorted(self._indexed() | set(self.steps()))
    return _best({step: self._notes(step) for step in steps})

  # ---- saving

  def save(
    self,
    step: int,
    state: Any,
    *,
    validation_accuracy: float | None = None,
  ) -> pathlib.Path:
    """Saves a checkpoint and returns its path.

    Args:
      step: step of the checkpoint; an existing one is left unchanged.
      state: pytree of arrays.
      validation_accuracy: decides which checkpoint is best; None if it was not
        measured.

    Raises:
      NotWrittenError: it cannot be written; earlier checkpoints are kept.
    """
    if job.is_first() and step not in self.steps():
      with watchdog.unbroken():
        self._write(step, state, validation_accuracy)
    job.barrier('saved')
    return self._path(step)

  def _write(self, step, state, validation_accuracy):
    path = self._directory / str(step)
    config = self._config
    notes = {
      'format': _FORMAT,
      'step': step,
      'validation_accuracy': validation_accuracy,
      'config': None if config is None else config_lib.plain(config),
      'data': self._data,
    }
    arrays.save(path, {_STATE: state}, notes=notes)
    self._known[step] = notes
    kept = self._kept()
    # Index first: a step that it lists but that does not exist is noticed.
    self._write_index(kept)
    for old in self.steps():
      if old not in kept:
        files.remove(self._path(old))
        self._known.pop(old, None)

  def _kept(self):
    """Returns the last two steps, the best step and those that may be best."""
    steps = self.steps()
    kept, notes = set(steps[-_LATEST:]), {}
    for step in steps:
      try:
        notes[step] = self._notes(step)
      except _Broken:
        kept.add(step)
    return kept | ({_best(notes)} - {None})

  # ---- restoring

  def restore(self, like: Any, *, step: int) -> Any:
    """Returns the state of a step.

    Args:
      like: pytree that gives shapes and shardings.
      step: one of `steps()`.

    Raises:
      InputError: the checkpoint cannot be read.
    """
    try:
      return self._restore(like, step)
    except _Broken as error:
      raise InputError(
        f'expected a readable checkpoint, but {error}: restore a copy, or use '
        'another one'
      ) from error

  @contextlib.contextmanager
  def _reading(self, step):
    path = self._path(step)
    try:
      yield path
    except (UnreadableError, PermissionError) as error:
      raise _Broken(path, error) from error

  def _restore(self, like, step):
    stored = self._notes(step)['config']
    if stored is not None and self._config is not None:
      changed = config_lib.differences(self._config, stored)
      if changed:
        raise InputError(
          f'{self._path(step)} was saved with another configuration '
          f'({config_lib.listed(changed)}): choose another --workdir, or use '
          'the stored values'
        )
    data = self._notes(step).get('data')
    if None not in (data, self._data) and data != self._data:
      raise InputError(
        f'{self._path(step)} was saved by a run on other data (sha256 '
        f'{data[:16]}, now {self._data[:16]}): register with from_arrays what '
        'it was trained on, or choose another --workdir'
      )
    with self._reading(step) as path:
      return arrays.read_like(path, {_STATE: like})[_STATE]

  def restore_latest(self, like: Any) -> tuple[int, Any] | None:
    """Returns (step, state) of the newest checkpoint, or None if there is none.

    If it is damaged or missing, the previous one is returned with a warning,
    and the damaged one is moved to `<directory>_damaged`: training from there
    ends with the same bits. In read-only mode this is an error, because nothing
    would repeat the lost training.

    Raises:
      InputError: no checkpoint can be read or, in read-only mode, the newest
        one cannot.
    """
    if self._read_only:
      return self._chosen(
        like,
        lambda: self._despite_a_writer(lambda: self._newest(like), _NEWEST),
      )
    return self._chosen(like, lambda: self._newest_readable(like))

  def _chosen(self, like, choose):
    """Returns choose(), (step, state) or None, as the first process sees it."""
    found = choose() if job.is_first() else None
    step = job.agree('restored', None if found is None else found[0])
    if job.is_first() or step is None:
      return found
    return step, self.restore(like, step=step)

  def _newest_readable(self, like):
    """Returns (step, state), and moves damaged checkpoints away."""
    broken = {}
    expected = self._indexed() | set(self.steps())
    for step in sorted(expected, reverse=True):
      try:
        state = self._restore(like, step)
      except _Broken as error:
        broken[step] = error
        if error.forbidden:
          break
        continue
      # Only now: if no checkpoint is readable, nothing is moved.
      for damaged, reason in broken.items():
        aside = self._set_aside(damaged)
        _log.warning(
          '%s: resuming from %s, the one before it%s', reason, step, aside
        )
      for missing in sorted(expected - broken.keys() - set(self.steps())):
        path = self._directory / str(missing)
        _log.warning('%s is missing, and may have been the best one', path)
      if expected != set(self.steps()):
        self._write_index(self.steps())
      return step, state
    if broken:
      raise InputError(
        'expected a readable checkpoint, but '
        f'{"; ".join(map(str, broken.values()))}: restore a copy, or train '
        'into another --workdir'
      )
    return None

  def restore_best(self, like: Any) -> tuple[int, Any] | None:
    """Returns (step, state) of the best on validation; None if not measured.

    Raises:
      InputError: it, or a checkpoint that may be the best, cannot be read.
    """

    def best():
      step = self._best()
      return None if step is None else (step, self._restore(like, step))

    return self._chosen(like, lambda: self._despite_a_writer(best, _BEST))

  def _newest(self, like):
    steps = self._indexed() | set(self.steps())
    return (max(steps), self._restore(like, max(steps))) if steps else None

  def _despite_a_writer(self, function, message):
    """Returns function(), retried if another process removed what it read."""
    while True:
      before = self.steps()
      try:
        return function()
      except _Broken as error:
        if self.steps() == before:
          raise InputError(message.format(error=error)) from error

  def _set_aside(self, step):
    """Moves a damaged checkpoint away; returns a message that says so."""
    path = self._path(step)
    if not path.exists():
      return ''
    aside = self._directory.with_name(f'{self._directory.name}_damaged')
    with files.writing(aside):
      aside.mkdir(exist_ok=True)
      target, count = aside / path.name, 0
      while target.exists():
        count += 1
        target = aside / f'{path.name}.{count}'
      shutil.move(path, target)
    return f'; moved to {target}'


class _Broken(Exception):
  """A checkpoint cannot be read.

  Attributes:
    forbidden: whether it belongs to another user, which is not damage.
  """

  def __init__(self, path, error):
    self.forbidden = isinstance(error, PermissionError)
    reason = error.strerror if self.forbidden else error
    super().__init__(f'{path} cannot be read ({reason})')


def _best(notes):
  accuracy = {step: of['validation_accuracy'] for step, of in notes.items()}
  measured = [step for step, value in accuracy.items() if value is not None]
  return max(measured, key=lambda step: (accuracy[step], step), default=None)
