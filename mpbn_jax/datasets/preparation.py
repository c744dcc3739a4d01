"""Preparing data sets on disk: once, by one process, atomically."""

import contextlib
import errno
import fcntl
import logging
import os
import pathlib
import shlex
import shutil
from collections.abc import Iterator

from mpbn_jax.errors import InputError
from mpbn_jax.files import NO_ROOM

_log = logging.getLogger('mpbn_jax')

# This place cannot be written.
_FORBIDDEN = (
  errno.EACCES,
  errno.EPERM,
  errno.EROFS,
  errno.ENOTDIR,
  errno.EEXIST,
)


def command(name: str, directory: str | os.PathLike, **settings: object) -> str:
  """Returns the command that prepares a data set in a directory.

  Args:
    name: name of the data set.
    directory: `data.dir`.
    **settings: further configuration keys, with `__` for the dot.
  """
  keys = {'data.name': name, 'data.dir': os.fspath(directory)}
  keys |= {key.replace('__', '.'): value for key, value in settings.items()}
  return 'python main.py --mode=prepare ' + ' '.join(
    f'--config.{key}={shlex.quote(str(value))}' for key, value in keys.items()
  )


def not_prepared(name: str, directory: pathlib.Path) -> InputError:
  """Returns the error for a data set that is not in its directory."""
  return InputError(
    f'expected {name!r}, prepared in {directory}, got none: run '
    f'{command(name, directory)}'
  )


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
  """Turns a system error while its body writes `path` into a one-line error.

  Raises:
    InputError: the disk is full, or the directory is not writable; other errors
      are unchanged.
  """
  try:
    yield
  except OSError as error:
    if error.errno in NO_ROOM:
      there = next(parent for parent in path.parents if parent.exists())
      free = megabytes(shutil.disk_usage(there).free)
      raise InputError(
        f'expected room to write {path}, got {os.strerror(error.errno)!r} '
        f'({free} free): free some space or choose another --config.data.dir, '
        'then run the same command again; nothing half-written is kept'
      ) from error
    if error.errno in _FORBIDDEN:
      raise InputError(
        f'expected a directory that can be written, got {path.parent} '
        f'({os.strerror(error.errno)}): choose another --config.data.dir'
      ) from error
    raise


@contextlib.contextmanager
def room_for(path: pathlib.Path, *, needed: int) -> Iterator[None]:
  """Checks that `needed` bytes can be written below `path.parent`.

  Raises:
    InputError: fewer bytes are free, or the disk fills up while its body runs.
  """

  def no_room():
    return InputError(
      f'expected room for {needed:,} bytes to write {path}, got '
      f'{shutil.disk_usage(path.parent).free:,} bytes free: free some space or '
      'choose another --config.data.dir, then run the same command again; '
      'nothing half-written is kept'
    )

  if shutil.disk_usage(path.parent).free < needed:
    raise no_room()
  try:
    yield
  except OSError as error:
    if error.errno in NO_ROOM:
      raise no_room() from error
    raise


@contextlib.contextmanager
def exclusive(path: pathlib.Path, *, what: str) -> Iterator[None]:
  """Lets one process at a time run its body; others log a warning and wait.

  The lock is on a hidden file beside `path`, which is kept. The lock ends with
  its process, however that ends. (`mpbn_jax.lock` rejects a second process
  instead of letting it wait.)

  Args:
    path: path that the body writes; need not exist. Its parents are created.
    what: name of `path` in the warning.

  Raises:
    InputError: the parent of `path` is not writable.
  """
  with writing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.with_name(f'.{path.name}.lock').open('w')
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      _log.warning('%s: another process is preparing it, waiting', what)
      fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:  # some network file systems
      _log.warning(
        '%s: cannot get a lock beside %s (%s): prepare it in one process only',
        what,
        path,
        error.strerror,
      )
    yield


@contextlib.contextmanager
def atomic_directory(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a new directory that becomes `path` if its body succeeds.

  Otherwise it is removed; if the process is killed, the next one removes it.
  Use inside `exclusive(path)`.

  Args:
    path: the final directory; its parents are created.

  Raises:
    InputError: `path` exists, the disk is full, or the parent is not writable.
  """
  if path.exists():
    raise InputError(
      f'expected nothing at {path}, got data that was not completely prepared: '
      'remove it, then run the same command again'
    )
  place = path.with_name(f'{path.name}.incomplete')
  try:
    with writing(path):
      if place.exists():
        shutil.rmtree(place)
      place.mkdir(parents=True)
      yield place
      _flush(place)
      place.rename(path)
  finally:
    shutil.rmtree(place, ignore_errors=True)


def _flush(directory):
  """Flushes every file to disk, so that a power cut cannot empty it."""
  for path in (*directory.rglob('*'), directory):
    descriptor = os.open(path, os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)


def megabytes(count: int) -> str:
  """Returns a number of bytes as text."""
  return f'{count / 1e6:,.0f} MB'
