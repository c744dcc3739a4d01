"""A directory lock that ends with its process and names its owner."""

import contextlib
import datetime
import errno
import fcntl
import json
import logging
import os
import pathlib
import socket
import time
from collections.abc import Iterator

from mpbn_jax.errors import InputError
from mpbn_jax.files import NotWrittenError, writing

_log = logging.getLogger('mpbn_jax')
_LOCK = '.lock'


class Lock:
  """One process's exclusive use of a directory, created by `hold`."""

  def __init__(self, path: pathlib.Path, descriptor: int):
    self._path, self._descriptor = path, descriptor

  def check(self) -> None:
    """Raises NotWrittenError if the directory was removed or replaced.

    Another process may then use it and must not find our files in it.
    """
    if not _is_at(self._descriptor, self._path):
      raise NotWrittenError(
        f'expected {self._path.parent} as this process opened it, got it '
        'removed or replaced: restore it, or choose another --workdir'
      )


@contextlib.contextmanager
def hold(directory: pathlib.Path) -> Iterator[Lock]:
  """Gives its body exclusive use of a directory.

  The kernel releases the lock when the process ends, however it ends. The file
  is kept: removing it would let two processes lock two files of one name.

  Args:
    directory: an existing directory.

  Raises:
    InputError: another process uses it (names host, process and start time), or
      it cannot be written.
  """
  path = directory / _LOCK
  descriptor = _acquire(path)
  try:
    yield Lock(path, descriptor)
  finally:
    os.close(descriptor)


def wait_until_free(directory: pathlib.Path, *, seconds: float) -> None:
  """Waits while another process holds a directory.

  Raises:
    InputError: it still does after this time.
  """
  last = time.monotonic() + seconds
  while directory.exists():
    try:
      with hold(directory):
        return
    except NotWrittenError:
      raise
    except InputError:
      if time.monotonic() > last:
        raise
    time.sleep(0.2)


def _acquire(path):
  while True:
    with writing(path):
      descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
      _lock(descriptor, path)
      # If the directory was removed in between, this is another file.
      if _is_at(descriptor, path):
        _sign(descriptor)
        return descriptor
    except BaseException:
      os.close(descriptor)
      raise
    os.close(descriptor)


def _lock(descriptor, path):
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
      raise InputError(
        f'expected no other process to use {path.parent}, got '
        f'{_holder(path)}: wait for it, stop it, or choose another --workdir'
      ) from error
    _log.warning(  # some network file systems
      'cannot get a lock in %s (%s): let only one process at a time use it',
      path.parent,
      error.strerror,
    )


def _is_at(descriptor, path):
  try:
    return os.path.samestat(os.fstat(descriptor), os.stat(path))
  except OSError:
    return False


def _sign(descriptor):
  holder = {
    'host': socket.gethostname(),
    'process': os.getpid(),
    'since': datetime.datetime.now().astimezone().isoformat(' ', 'seconds'),
  }
  # For people only: the lock holds even if there is no space for this.
  with contextlib.suppress(OSError):
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, (json.dumps(holder) + '\n').encode(), 0)


def _holder(path):
  try:
    holder = json.loads(path.read_text())
    return (
      f'process {holder["process"]} on {holder["host"]}, which has used it '
      f'since {holder["since"]}'
    )
  except (OSError, ValueError, KeyError, TypeError):  # being written
    return 'another process'
