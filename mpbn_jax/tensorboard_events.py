"""Writing and reading scalars in TensorBoard event files.

Writing uses no threads, so that errors are raised where they occur. The records
and their checksums are tensorboardX's.
"""

import pathlib
import socket
import struct
import time
from collections.abc import Iterator, Mapping

from mpbn_jax.files import writing

_NAME = 'events.out.tfevents.{time}.{host}'
_LENGTH = struct.Struct('<Q')
_CHECKSUM = struct.Struct('<I')


class EventFile:
  """A new event file.

  Args:
    directory: where to write; created if needed.
    step: first step; TensorBoard discards later steps of older files.

  Raises:
    NotWrittenError: the file cannot be written; raised by every method.
  """

  def __init__(self, directory: pathlib.Path, *, step: int):
    with writing(directory):
      directory.mkdir(exist_ok=True)
      self._path = directory / _next_name(directory)
      self._file = self._path.open('xb')
    event_pb2, _ = _formats()
    self._write(event_pb2.Event(file_version='brain.Event:2'))
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._write(event_pb2.Event(step=step + 1, session_log=start))

  def add(self, step: int, values: Mapping[str, float]) -> None:
    """Adds the values of a step."""
    from tensorboardX import summary  # slow to import, and optional

    event_pb2, _ = _formats()
    for name, value in values.items():
      scalar = summary.scalar(name, value)
      self._write(event_pb2.Event(step=step, summary=scalar))

  def _write(self, event):
    _, masked_crc32c = _formats()
    event.wall_time = time.time()
    data = event.SerializeToString()
    length = _LENGTH.pack(len(data))
    with writing(self._path):
      for part in (length, data):
        self._file.write(part + _CHECKSUM.pack(masked_crc32c(part)))

  def flush(self) -> None:
    """Hands added values to the system: they survive a killed process."""
    with writing(self._path):
      self._file.flush()

  def close(self) -> None:
    """Flushes and closes the file."""
    with writing(self._path):
      self._file.close()


def _formats():
  from tensorboardX.proto import event_pb2
  from tensorboardX.record_writer import masked_crc32c

  return event_pb2, masked_crc32c


def _files(directory):
  """Returns the event files in TensorBoard's order."""
  return sorted(directory.glob(_NAME.format(time='*', host='*')))


def _next_name(directory):
  """Returns a name that sorts last, even if the clock was set back."""
  stamps = [
    int(stamp)
    for path in _files(directory)
    if (stamp := path.name.split('.')[3]).isdecimal()
  ]
  stamp = max([int(time.time()), *(stamp + 1 for stamp in stamps)])
  return _NAME.format(time=f'{stamp:010}', host=socket.gethostname())


def scalars_in(directory: pathlib.Path) -> set[tuple[str, int]]:
  """Returns the (name, step) pairs that TensorBoard would show of a directory.

  A damaged file counts up to the damage, where TensorBoard stops too.
  """
  event_pb2, _ = _formats()
  found: set[tuple[str, int]] = set()
  for path in _files(directory):
    for data in _records(path):
      event = event_pb2.Event.FromString(data)
      if event.session_log.status == event_pb2.SessionLog.START:
        found = {(name, step) for name, step in found if step < event.step}
      found |= {(value.tag, event.step) for value in event.summary.value}
  return found


def _records(path) -> Iterator[bytes]:
  """Yields the records of a file up to the first damaged one."""
  try:
    content = memoryview(path.read_bytes())
  except OSError:  # TensorBoard cannot read it either
    return
  while content:
    length, content = _take(content, _LENGTH.size)
    if length is None:
      return
    record, content = _take(content, *_LENGTH.unpack(length))
    if record is None:
      return
    yield record


def _take(content, size):
  """Returns (the next bytes or None if they are damaged, the rest)."""
  _, masked_crc32c = _formats()
  part, after = bytes(content[:size]), size + _CHECKSUM.size
  if content[size:after] != _CHECKSUM.pack(masked_crc32c(part)):
    return None, content
  return part, content[after:]
