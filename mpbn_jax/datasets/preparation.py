"""How is a data set prepared on disk once, and wholly or not at all?"""

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

_log = logging.getLogger('mpbn_jax')

# No room: on the disk, in a quota, for a file of that size.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Not our place.
_FORBIDDEN = (
  errno.EACCES,
  errno.EPERM,
  errno.EROFS,
  errno.ENOTDIR,
  errno.EEXIST,
)


def command(name: str, directory: str | os.PathLike, **settings: object) -> str:
  """Returns what to type to prepare a data set in a directory.

  Args:
    name: of the data set.
    directory: `data.dir`.
    **settings: further keys of the configuration, `__` for the dot.
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
  """Makes one line of it when the system does not let its body write `path`.

  Raises:
    InputError: no room, or no permission; other errors stay as they are.
  """
  try:
    yield
  except OSError as error:
    if error.errno in NO_ROOM:
      there = next(parent for parent in path.parents if parent.exists())
      free = megabytes(shutil.disk_usage(there).free)
      raise InputError(
        f'expected room to write {path}, got {os.strerror(error.errno)!r} '
        f'({free} free): make room or give another --config.data.dir, then '
        'the same command again; nothing half-written is kept'
      ) from error
    if error.errno in _FORBIDDEN:
      raise InputError(
        f'expected a directory that can be written, got {path.parent} '
        f'({os.strerror(error.errno)}): give another --config.data.dir'
      ) from error
    raise


@contextlib.contextmanager
def room_for(path: pathlib.Path, *, needed: int) -> Iterator[None]:
  """Makes sure that so many bytes can be written below `path.parent`.

  Raises:
    InputError: fewer bytes are free, or none is left before its body ends.
  """

  def no_room():
    return InputError(
      f'expected room for {needed:,} bytes to write {path}, got '
      f'{shutil.disk_usage(path.parent).free:,} bytes free: make room or give '
      'another --config.data.dir, then the same command again; nothing '
      'half-written is kept'
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
  """Lets one process at a time into its body; another one waits, and says so.

  The lock is a hidden file beside `path`, and stays there. However its process
  ends, the lock ends with it.

  Args:
    path: what the body writes; need not exist. Its parents are made.
    what: its name, for the message of who waits.

  Raises:
    InputError: nothing can be written beside `path`.
  """
  with writing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.with_name(f'.{path.name}.lock').open('w')
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      _log.warning('%s: another process prepares it, waiting', what)
      fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:  # some network file systems
      _log.warning(
        '%s: no lock to be had beside %s (%s), prepare it in one process only',
        what,
        path,
        error.strerror,
      )
    yield


@contextlib.contextmanager
def atomic_directory(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a new directory that becomes `path` when its body has ended well.

  Otherwise it is removed; what a killed process left, the next one removes. To
  be used inside `exclusive(path)`.

  Args:
    path: its parents are made.

  Raises:
    InputError: `path` exists; no room, or no permission.
  """
  if path.exists():
    raise InputError(
      f'expected nothing at {path}, got what was not prepared wholly: remove '
      'it, then the same command again'
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
  """Sends every file to the disk, so that a power cut cannot empty it."""
  for path in (*directory.rglob('*'), directory):
    descriptor = os.open(path, os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)


def megabytes(count: int) -> str:
  """Returns a number of bytes as text."""
  return f'{count / 1e6:,.0f} MB'
