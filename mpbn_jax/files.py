"""Atomic writing of files, and errors of writing."""

import contextlib
import errno
import os
import pathlib
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO

from mpbn_jax.errors import InputError

# No space left: on the disk, in a quota, or for a file of that size.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# The directory of the file was removed or replaced.
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
_TEMPORARY = '.{name}.{unique}.tmp'


class NotWrittenError(InputError):
  """A run could not write one of its files; earlier files are kept."""


@contextlib.contextmanager
def writing(
  path: pathlib.Path, *, also: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
  """Turns system errors in its body into one line that names `path`.

  Args:
    path: the file or directory being written.
    also: other errors that a library raises if it cannot write.

  Raises:
    NotWrittenError: in place of any `OSError`, and of errors in `also` that
      quote a system error.
  """
  try:
    yield
  except NotWrittenError:
    raise
  except OSError as error:
    raise NotWrittenError(_why(path, error.errno, error)) from error
  except also as error:
    number = _errno_of(path, error)
    if not number:  # no system error: a bug, which keeps its traceback
      raise
    raise NotWrittenError(_why(path, number, error)) from error


def _why(path, number, error):
  reason = os.strerror(number) if number else str(error)
  if number in NO_ROOM:
    with contextlib.suppress(OSError):
      reason += f', {shutil.disk_usage(path.parent).free:,} bytes free'
    mend = 'free some space and run the same command again: it will resume'
  elif number in _GONE:
    mend = (
      'its directory was removed or replaced while it was in use; restore it, '
      'or choose another --workdir'
    )
  else:
    mend = (
      'make it writable, remove what is in the way, or choose another place'
    )
  return f'expected to write {path}, got an error ({reason}): {mend}'


def _errno_of(path, error):
  """Returns the error number that a library's message quotes, or 0."""
  numbers = (*NO_ROOM, *_GONE, errno.EACCES, errno.EROFS)
  said = [number for number in numbers if os.strerror(number) in str(error)]
  if not said and not path.parent.is_dir():
    return errno.ENOENT
  return said[0] if said else 0


def check_room(path: pathlib.Path, size: int) -> None:
  """Raises NotWrittenError if a disk has less than `size` bytes left.

  For use before calling a library that handles a full disk badly.

  Args:
    path: the file to write, in an existing directory.
    size: approximate size in bytes.
  """
  with writing(path):
    if shutil.disk_usage(path.parent).free < size:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextlib.contextmanager
def whole_directory(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Creates a directory atomically.

  Yields a temporary directory beside it, which is renamed at the end.

  Args:
    path: the new directory; its parent must exist.

  Raises:
    NotWrittenError: the directory cannot be written.
  """
  unique = f'{os.getpid()}-{secrets.token_hex(4)}'
  temporary = path.with_name(_TEMPORARY.format(name=path.name, unique=unique))
  with writing(path):
    try:
      temporary.mkdir()
      yield temporary
      sync(temporary)
      os.rename(temporary, path)
    except BaseException:
      _remove_beside_writers(temporary)
      raise
    sync(path.parent)


def _remove_beside_writers(directory):
  """Removes a directory to which threads of a library may still write.

  After an error, TensorStore finishes other pending files and recreates their
  directories.
  """
  for _ in range(20):
    shutil.rmtree(directory, ignore_errors=True)
    time.sleep(0.1)
    if not directory.exists():
      return


def write_whole(
  path: pathlib.Path, write: bytes | str | Callable[[BinaryIO], None]
) -> None:
  """Writes a file atomically.

  Whenever the process or the machine stops, `path` holds the old content or
  the new one: a temporary file beside it is flushed to disk and renamed.

  Args:
    path: the file to write; its directory must exist.
    write: the content, or a function that writes it to a binary file.

  Raises:
    NotWrittenError: the file cannot be written.
  """
  if isinstance(write, str):
    write = write.encode()
  # Unique: two processes may write the same file, and the last one wins.
  unique = f'{os.getpid()}-{secrets.token_hex(4)}'
  temporary = path.with_name(_TEMPORARY.format(name=path.name, unique=unique))
  with writing(path):
    try:
      with temporary.open('xb') as file:
        if isinstance(write, bytes):
          file.write(write)
        else:
          write(file)
        file.flush()
        os.fsync(file.fileno())
      os.replace(temporary, path)
    except BaseException:
      with contextlib.suppress(OSError):
        temporary.unlink()
      raise
    sync(path.parent)


def sync(path: pathlib.Path) -> None:
  """Flushes a file, or the entries of a directory, to disk.

  They then survive a power cut.
  """
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  except OSError as error:
    # Some file systems neither support nor need this.
    if error.errno not in (errno.EINVAL, errno.ENOTSUP):
      raise
  finally:
    os.close(descriptor)


def remove_leftovers(directory: pathlib.Path, *, of: str = '*') -> None:
  """Removes the temporary files of processes that were killed.

  The caller must hold the lock: another process may be writing.

  Args:
    directory: where to look for them.
    of: names of the files that were being written.
  """
  for path in directory.glob(_TEMPORARY.format(name=of, unique='*')):
    with writing(path):
      shutil.rmtree(path) if path.is_dir() else path.unlink()


def remove(path: pathlib.Path) -> None:
  """Removes a file or a directory atomically.

  Raises:
    NotWrittenError: it cannot be removed.
  """
  with writing(path):
    if path.is_dir() and not path.is_symlink():
      aside = path.with_name(
        _TEMPORARY.format(name=path.name, unique='removed')
      )
      os.replace(path, aside)
      shutil.rmtree(aside)
    else:
      path.unlink()


def check_writable(directory: pathlib.Path) -> None:
  """Creates a directory if needed and checks that it is writable.

  Raises:
    NotWrittenError: it is not.
  """
  with writing(directory):
    directory.mkdir(parents=True, exist_ok=True)
    probe = directory / _TEMPORARY.format(
      name='probe', unique=secrets.token_hex(4)
    )
    probe.touch(exist_ok=False)
    probe.unlink()
