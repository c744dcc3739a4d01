"""Which recordings of an event camera lie on the disk, and what is in one?"""

import dataclasses
import logging
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mpbn_jax.errors import InputError

_log = logging.getLogger('mpbn_jax')


@dataclasses.dataclass(frozen=True)
class Source:
  """One archive of recordings, as tonic knows it.

  Attributes:
    kind: tonic's class, and its folder in `data.dir`.
    count: recordings that it has at least; fewer are an incomplete copy.
    options: of the class.
  """

  kind: str
  count: int
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Recordings:
  """Recordings with their labels; each is read when it is asked for.

  Attributes:
    reader: tonic's data set.
    positions: in it, int [N].
  """

  reader: Any
  positions: np.ndarray

  def __len__(self) -> int:
    return len(self.positions)

  @property
  def labels(self) -> np.ndarray:
    """int32 [N]."""
    return np.array(self.reader.targets, np.int32)[self.positions]

  @property
  def sensor(self) -> tuple[int, int]:
    """(height, width) in pixels."""
    width, height, _ = self.reader.sensor_size
    return height, width

  def select(self, part: np.ndarray) -> 'Recordings':
    """Returns those with these indices."""
    return dataclasses.replace(self, positions=self.positions[part])

  def file(self, index: int) -> str:
    """Returns the path of a recording."""
    return self.reader.data[self.positions[index]]

  def read(self, index: int) -> np.ndarray:
    """Returns the events of a recording: structured, fields t, x, y, p.

    Raises:
      InputError: the file cannot be read (names it).
    """
    try:
      return self.reader[self.positions[index]][0]
    except (KeyboardInterrupt, SystemExit):
      raise
    # `aedat` is Rust: a panic in it is no `Exception`.
    except BaseException as error:
      reason = ' '.join(str(error).split()) or type(error).__name__
      raise InputError(
        f'expected a recording of {type(self.reader).__name__}, got '
        f'{self.file(index)}, which cannot be read ({reason}): put an '
        'undamaged copy in its place, then the same command again'
      ) from error


def open_reader(source: Source, directory: str | os.PathLike) -> Any:
  """Returns tonic's data set of the files that are there; downloads nothing.

  Sorted by label, then by the last number in the name of the file, then by
  path: one order on every machine. Hidden files are no recordings.

  Args:
    source: what is read.
    directory: `data.dir`.

  Raises:
    InputError: a recording among them is of no class.
    OSError: a directory cannot be read.
  """
  from mpbn_jax.datasets.events import tonic_readers

  reader = getattr(tonic_readers, source.kind)(**source.options)
  reader.location_on_system = os.path.join(directory, source.kind)
  root = pathlib.Path(reader.location_on_system, reader.folder_name)
  keys = []
  for path in _files(root, reader.suffix):
    try:
      label = reader.label(path)
    except (KeyError, ValueError):
      label = -1
    if not 0 <= label < len(reader.classes):
      raise InputError(
        f'expected recordings of the {len(reader.classes)} classes of '
        f'{source.kind} in {root}, got {path}, which is of another: move it '
        'elsewhere, or give it back its name'
      )
    number = int((re.findall(r'\d+', path.stem) or ['-1'])[-1])
    keys.append((label, number, str(path)))
  keys.sort()
  reader.targets = [label for label, _, _ in keys]
  reader.data = [path for _, _, path in keys]
  return reader


def _files(root, suffix):
  """Yields the paths below `root`, but for hidden ones."""

  def stop(error):
    if not isinstance(error, FileNotFoundError):
      raise error

  for folder, folders, names in os.walk(root, onerror=stop):
    folders[:] = sorted(name for name in folders if name[0] != '.')
    for name in sorted(names):
      if name[0] != '.' and name.endswith(suffix):
        yield pathlib.Path(folder, name)


def open_recordings(
  source: Source, directory: str | os.PathLike, *, name: str, command: str
) -> Recordings:
  """Returns the recordings of a source, in the order of `open_reader`.

  Args:
    source: what is read.
    directory: `data.dir`.
    name: of the data set, for messages.
    command: what to type to prepare it.

  Raises:
    InputError: they are not there, or not all; as `open_reader`.
    OSError: a directory cannot be read.
  """
  reader = open_reader(source, directory)
  if len(reader) < source.count:
    location = pathlib.Path(reader.location_on_system)
    folder = location / reader.folder_name
    got = f'{len(reader):,}' if len(reader) else 'none'
    todo = (
      f'remove that incomplete copy, then run {command}'
      if len(reader)
      else f'run {command} (without internet, first put {reader.filename}, or '
      f'the folders in it, into {location})'
    )
    raise InputError(
      f'expected {source.count:,} recordings of {name!r} in {folder}, got '
      f'{got}: {todo}'
    )
  if len(reader) > source.count:
    _log.warning(
      '%s holds %s recordings of %r, %s more than the archive: remove copies',
      os.path.join(reader.location_on_system, reader.folder_name),
      f'{len(reader):,}',
      name,
      f'{len(reader) - source.count:,}',
    )
  return Recordings(reader, np.arange(len(reader)))
