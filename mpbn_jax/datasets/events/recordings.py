"""The recordings of an event camera on disk, read with tonic."""

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
class Collection:
  """The recordings of one archive that tonic knows.

  Attributes:
    kind: the name of tonic's class, and of its folder in `data.dir`.
    count: number of recordings in the archive; a copy with fewer is incomplete.
    options: options of the class.
  """

  kind: str
  count: int
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Recordings:
  """`base.Source` of recordings; `base.fetch` returns their events.

  Attributes:
    reader: tonic's data set.
    positions: positions in it, int [N].
  """

  reader: Any
  positions: np.ndarray

  def __len__(self) -> int:
    return len(self.positions)

  @property
  def labels(self) -> np.ndarray:
    return np.array(self.reader.targets, np.int32)[self.positions]

  @property
  def sensor(self) -> tuple[int, int]:
    """(height, width) in pixels."""
    width, height, _ = self.reader.sensor_size
    return height, width

  def select(self, part: np.ndarray) -> 'Recordings':
    """Returns the recordings with these indices."""
    return dataclasses.replace(self, positions=self.positions[part])

  def read(self, index: int) -> tuple[np.ndarray, int]:
    """Returns (events as a structured array of t, x, y and p, label)."""
    return self.reader[self.positions[index]]

  def name(self, index: int) -> str:
    """Returns the path of a recording."""
    return self.reader.data[self.positions[index]]


def open_reader(collection: Collection, directory: str | os.PathLike) -> Any:
  """Returns tonic's data set of the files on disk; downloads nothing.

  Files are sorted by label, then by the last number in their names, then by
  path, so the order is the same on every machine. Hidden files are skipped.

  Args:
    collection: collection to open.
    directory: `data.dir`.

  Raises:
    InputError: a file does not belong to any class.
    OSError: a directory cannot be read.
  """
  try:
    from mpbn_jax.datasets.events import tonic_readers
  except ModuleNotFoundError as error:
    raise InputError(
      f'expected the packages that read recordings of {collection.kind}, got '
      f'no {error.name}: pip install -r requirements-events.txt, or the extra '
      'mpbn_jax[events]'
    ) from error

  reader = getattr(tonic_readers, collection.kind)(**collection.options)
  reader.location_on_system = os.path.join(directory, collection.kind)
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
        f'{collection.kind} in {root}, got {path}, which belongs to another '
        'class: move it elsewhere, or restore its name'
      )
    number = int((re.findall(r'\d+', path.stem) or ['-1'])[-1])
    keys.append((label, number, str(path)))
  keys.sort()
  reader.targets = [label for label, _, _ in keys]
  reader.data = [path for _, _, path in keys]
  return reader


def _files(root, suffix):
  """Yields the paths below `root`, except hidden ones."""

  def stop(error):
    if not isinstance(error, FileNotFoundError):
      raise error

  for folder, folders, names in os.walk(root, onerror=stop):
    folders[:] = sorted(name for name in folders if name[0] != '.')
    for name in sorted(names):
      if name[0] != '.' and name.endswith(suffix):
        yield pathlib.Path(folder, name)


def open_recordings(
  collection: Collection,
  directory: str | os.PathLike,
  *,
  name: str,
  command: str,
) -> Recordings:
  """Returns all recordings of a collection, in the order of `open_reader`.

  Args:
    collection: collection to open.
    directory: `data.dir`.
    name: name of the data set, for messages.
    command: command that prepares it, for messages.

  Raises:
    InputError: recordings are missing, or a file does not belong to any class.
    OSError: a directory cannot be read.
  """
  reader = open_reader(collection, directory)
  if len(reader) < collection.count:
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
      f'expected {collection.count:,} recordings of {name!r} in {folder}, got '
      f'{got}: {todo}'
    )
  if len(reader) > collection.count:
    _log.warning(
      '%s holds %s recordings of %r, %s more than the archive: remove copies',
      os.path.join(reader.location_on_system, reader.folder_name),
      f'{len(reader):,}',
      name,
      f'{len(reader) - collection.count:,}',
    )
  return Recordings(reader, np.arange(len(reader)))
