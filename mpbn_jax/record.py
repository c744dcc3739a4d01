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
import secrets
import socket
import sys
import time
from collections.abc import Iterator, Mapping

import tqdm

from mpbn_jax import config as config_lib
from mpbn_jax import files, job, tensorboard_events
from mpbn_jax.errors import InputError
from mpbn_jax.files import NotWrittenError
from mpbn_jax.lock import Lock, hold

_log = logging.getLogger('mpbn_jax')

CONFIG = 'config.json'
METRICS = 'metrics.jsonl'
CHECKPOINTS = 'checkpoints'
_JOB = '.job'  # the first process writes a token into it, which all must see
_SEEN = 30.0  # seconds after which network file systems show a new file


@dataclasses.dataclass(frozen=True)
class Workdir:
  """A work directory used exclusively by this process or its job.

  Attributes:
    path: path of the directory.
    stored: the previously stored configuration; None in a new directory.
    lock: its `check()` raises if the directory was removed or replaced. None in
      a job's other processes: the first one holds it for all.
  """

  path: pathlib.Path
  stored: dict | None
  lock: Lock | None


@contextlib.contextmanager
def hold_workdir(
  workdir: str | os.PathLike, config: Mapping
) -> Iterator[Workdir]:
  """Gives its body a work directory with config.json, created if needed.

  A stored configuration is left unchanged; `write_config` replaces it once the
  run continues. In a job, all processes call it at once.

  Raises:
    InputError: the directory cannot be written, another process uses it, it
      holds a run with another configuration (names the keys), or a process of
      the job does not see it.
  """
  if not os.fspath(workdir):
    raise InputError("expected a work directory, got '': choose a --workdir")
  path = pathlib.Path(workdir)
  if not job.is_first():
    yield Workdir(path, _wait_until_held(path), lock=None)
    return
  check_config_of(path, config)  # before anything is created
  make_workdir(path)
  with hold(path) as lock:
    stored = check_config_of(path, config)
    for name in (CONFIG, METRICS):
      files.remove_leftovers(path, of=name)
    # Written even if it exists, to check that it can be.
    files.write_whole(path / CONFIG, config_lib.to_json(stored or config))
    _show(path, stored)
    yield Workdir(path, stored, lock)


def _show(path, stored):
  """Lets the other processes of the job use the directory."""
  if job.count() == 1:
    return
  token = secrets.token_hex(8)
  files.write_whole(path / _JOB, token)
  job.agree('workdir', [token, stored])
  job.barrier('workdir')
  files.remove(path / _JOB)


def _wait_until_held(path):
  """Returns the stored configuration once the first process has the lock."""
  token, stored = job.agree('workdir', None)
  last = time.monotonic() + _SEEN
  while not (path / _JOB).is_file() or (path / _JOB).read_text() != token:
    if time.monotonic() > last:
      raise InputError(
        f'expected a work directory that all processes of the job share, got '
        f'{path}, where {socket.gethostname()} does not see what process 0 '
        'wrote: choose a --workdir on a file system that all of them mount'
      )
    time.sleep(0.1)
  job.barrier('workdir')
  return stored


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
  if not job.is_first():
    return
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
  """Writes values to a JSON file atomically; in a job, its first process does.

  Raises:
    NotWrittenError: the file cannot be written.
  """
  if not job.is_first():
    return
  files.write_whole(path, json.dumps(values, indent=2) + '\n')


def read_metrics(workdir: pathlib.Path) -> list[dict]:
  """Returns the lines of metrics.jsonl, {'step': step, metric: value, ...}."""
  return list(_lines(workdir / METRICS))


class Metrics(contextlib.AbstractContextManager):
  """Appends metrics to metrics.jsonl and to TensorBoard event files.

  Entries of metrics.jsonl that the event files lack (because a process was
  killed or wrote none) are added to them. Only the first process of a job
  writes.

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
    self._events = None
    self._writes = job.is_first()
    if not self._writes:
      return
    kept = [line for line in _lines(self._path) if line['step'] <= step]
    files.write_whole(
      self._path, ''.join(json.dumps(line) + '\n' for line in kept)
    )
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
    if not self._writes:
      return
    self._check()
    values = {name: float(value) for name, value in values.items()}
    line = json.dumps({'step': step, **values}) + '\n'
    with files.writing(self._path), _existing(self._path) as file:
      file.write(line.encode())
    if self._events is not None:
      self._events.add(step, values)

  def flush(self) -> None:
    """Flushes everything to disk, before a checkpoint of this step."""
    if not self._writes:
      return
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
  """A progress bar with the time left on a terminal, plain lines elsewhere.

  Only the first process of a job shows it.
  """

  def __init__(self, *, total: int, done: int):
    self._shown = job.is_first()
    self._terminal = (
      self._shown
      and sys.stderr.isatty()
      and (
        # 0 if nobody is watching, for example under `script`.
        os.get_terminal_size(sys.stderr.fileno()).columns > 0
      )
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
    if not self._shown:
      return
    if self._terminal:
      self._bar.write(f'step {step}  {text}', file=sys.stdout)
      return
    seconds = (time.monotonic() - self._start) / max(1, step - self._first)
    left = seconds * (self._total - step)
    print(f'step {step}/{self._total}  {text}  left {left:.0f} s', flush=True)

  def close(self) -> None:
    """Leaves the bar on the terminal."""
    self._bar.close()
