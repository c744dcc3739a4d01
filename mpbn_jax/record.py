"""The record of a run: its configuration, metrics and progress.

The work directory has config.json, metrics.jsonl, TensorBoard event files and
summary.json. A terminal shows a progress bar, other outputs plain lines.
"""

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping

import tqdm

from mpbn_jax import config as config_lib
from mpbn_jax import files, tensorboard_events
from mpbn_jax.errors import InputError
from mpbn_jax.files import NotWrittenError
from mpbn_jax.lock import Lock, hold

_log = logging.getLogger('mpbn_jax')

CONFIG = 'config.json'
METRICS = 'metrics.jsonl'
CHECKPOINTS = 'checkpoints'


@dataclasses.dataclass(frozen=True)
class Workdir:
  """A work directory used exclusively by this process.

  Attributes:
    path: path of the directory.
    stored: the previously stored configuration; None in a new directory.
    lock: its `check()` raises if the directory was removed or replaced.
  """

  path: pathlib.Path
  stored: dict | None
  lock: Lock


@contextlib.contextmanager
def hold_workdir(
  workdir: str | os.PathLike, config: Mapping
) -> Iterator[Workdir]:
  """Gives its body a work directory with config.json, created if needed.

  A stored configuration is left unchanged; `write_config` replaces it once the
  run continues.

  Raises:
    InputError: the directory cannot be written, another process uses it, or it
      holds a run with another configuration (names the keys).
  """
  if not os.fspath(workdir):
    raise InputError("expected a work directory, got '': choose a --workdir")
  path = pathlib.Path(workdir)
  check_config_of(path, config)  # before anything is created
  make_workdir(path)
  with hold(path) as lock:
    stored = check_config_of(path, config)
    for name in (CONFIG, METRICS):
      files.remove_leftovers(path, of=name)
    # Written even if it exists, to check that it can be.
    files.write_whole(path / CONFIG, config_lib.to_json(stored or config))
    yield Workdir(path, stored, lock)


def make_workdir(path: pathlib.Path) -> None:
  """Creates a directory, or raises InputError."""
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise InputError(
      f'expected a work directory that can be written, got {path} '
      f'({error.strerror}): choose another --workdir'
    ) from error


def write_config(workdir: pathlib.Path, config: Mapping) -> None:
  """Writes config.json: the run continues with this configuration."""
  files.write_whole(workdir / CONFIG, config_lib.to_json(config))


def check_config_of(path: pathlib.Path, config: Mapping) -> dict | None:
  """Returns the configuration of the run in `path`, or None if there is none.

  Raises:
    InputError: it differs in keys that must not differ (names them), or is
      damaged.
  """
  file = path / CONFIG
  try:
    stored = config_lib.from_json(file.read_text())
  except (FileNotFoundError, NotADirectoryError) as error:
    if not (path / CHECKPOINTS).is_dir():
      return None
    raise InputError(
      f'expected {CONFIG} beside the checkpoints in {path}, got none: '
      'restore it, or choose another --workdir'
    ) from error
  except (OSError, ValueError) as error:
    raise InputError(
      f'expected the configuration of a run in {file}, which cannot be '
      f'read ({error}): restore it, or choose another --workdir'
    ) from error
  changed = config_lib.differences(config, stored)
  if changed:
    raise InputError(
      f'{file} belongs to a run with another configuration '
      f'({config_lib.listed(changed)}): choose another --workdir, or use the '
      'stored values'
    )
  return stored


def write_json(path: pathlib.Path, values: Mapping) -> None:
  """Writes values to a JSON file atomically.

  Raises:
    NotWrittenError: the file cannot be written.
  """
  files.write_whole(path, json.dumps(values, indent=2) + '\n')


def read_metrics(workdir: pathlib.Path) -> list[dict]:
  """Returns the lines of metrics.jsonl, {'step': step, metric: value, ...}."""
  return list(_lines(workdir / METRICS))


class Metrics(contextlib.AbstractContextManager):
  """Appends metrics to metrics.jsonl and to TensorBoard event files.

  Entries of metrics.jsonl that the event files lack (because a process was
  killed or wrote none) are added to them.

  Args:
    workdir: the work directory.
    step: the step from which training starts. Later lines (from a process that
      was killed after its last checkpoint) are dropped, since training repeats
      them.
    tensorboard: whether to write event files.
    lock: lock of the work directory, which protects another process's files.

  Raises:
    NotWrittenError: a file cannot be written; raised by every method.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    *,
    step: int,
    tensorboard: bool = True,
    lock: Lock | None = None,
  ):
    self._check = (lambda: None) if lock is None else lock.check
    self._path = workdir / METRICS
    kept = [line for line in _lines(self._path) if line['step'] <= step]
    files.write_whole(
      self._path, ''.join(json.dumps(line) + '\n' for line in kept)
    )
    self._events = None
    if tensorboard:
      directory = workdir / 'tensorboard'
      there = tensorboard_events.scalars_in(directory)
      self._events = tensorboard_events.EventFile(directory, step=step)
      for line in kept:
        at = line.pop('step')
        missing = {k: v for k, v in line.items() if (k, at) not in there}
        self._events.add(at, missing)

  def __exit__(self, kind, error, trace):
    if self._events is None:
      return
    # Only the first error is reported.
    quiet = (NotWrittenError,) if error is not None else ()
    with contextlib.suppress(*quiet):
      self._events.close()

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Appends one line: {"step": step, **values}."""
    self._check()
    values = {name: float(value) for name, value in values.items()}
    line = json.dumps({'step': step, **values}) + '\n'
    with files.writing(self._path), _existing(self._path) as file:
      file.write(line.encode())
    if self._events is not None:
      self._events.add(step, values)

  def flush(self) -> None:
    """Flushes everything to disk, before a checkpoint of this step."""
    self._check()
    with files.writing(self._path), _existing(self._path) as file:
      os.fsync(file.fileno())
    if self._events is not None:
      self._events.flush()


def _existing(path):
  """Opens an existing file for appending."""
  return open(
    path, 'ab', opener=lambda p, flags: os.open(p, flags & ~os.O_CREAT)
  )


def _lines(path):
  """Yields the readable lines of metrics.jsonl."""
  try:
    texts = path.read_bytes().splitlines()
  except FileNotFoundError:
    return
  except OSError as error:
    raise InputError(
      f'expected the metrics of a run in {path}, which cannot be read '
      f'({error.strerror}): restore it, or move it away'
    ) from error
  for number, text in enumerate(texts, 1):
    try:
      line = json.loads(text)
      if type(line['step']) is not int:
        raise ValueError('no step')
      values = {k: float(v) for k, v in line.items() if k != 'step'}
      yield {'step': line['step'], **values}
    except (ValueError, TypeError, KeyError, AttributeError):
      # A killed process may leave a partial last line; training repeats it.
      if number < len(texts):
        _log.warning('%s, line %s is damaged: it is dropped', path, number)


class Progress:
  """A progress bar with the time left on a terminal, plain lines elsewhere."""

  def __init__(self, *, total: int, done: int):
    self._terminal = sys.stderr.isatty() and (
      # 0 if nobody is watching, for example under `script`.
      os.get_terminal_size(sys.stderr.fileno()).columns > 0
    )
    self._bar = tqdm.tqdm(
      total=total,
      initial=done,
      unit='step',
      disable=not self._terminal,
      dynamic_ncols=True,
      bar_format='{l_bar}{bar}| {n_fmt}/{total_fmt}, {rate_fmt}, '
      'left {remaining}',
    )
    self._total = total
    self._start = time.monotonic()
    self._first = done

  def advance(self) -> None:
    """Counts one step."""
    self._bar.update()

  def say(self, step: int, text: str) -> None:
    """Prints a line about a step, with the time left if there is no bar."""
    if self._terminal:
      self._bar.write(f'step {step}  {text}', file=sys.stdout)
      return
    seconds = (time.monotonic() - self._start) / max(1, step - self._first)
    left = seconds * (self._total - step)
    print(f'step {step}/{self._total}  {text}  left {left:.0f} s', flush=True)

  def close(self) -> None:
    """Leaves the bar on the terminal."""
    self._bar.close()
