"""Which recordings of an event camera lie on the disk, and what is in one?"""

import dataclasses
import os
import pathlib
import re
import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np

from mpbn_jax.errors import InputError


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

  Args:
    source: what is read.
    directory: `data.dir`.

  Raises:
    InputError: files or folders among them that are no part of it.
  """
  from mpbn_jax.datasets import tonic_readers

  kind = getattr(tonic_readers, source.kind)
  try:
    return kind(save_to=os.fspath(directory), **source.options)
  except (KeyError, ValueError, IndexError) as error:
    where = pathlib.Path(directory) / source.kind
    raise InputError(
      f'expected the folders of {source.kind} and no others in {where}, got '
      f'one that is unknown ({error}): move it elsewhere'
    ) from error


def open_recordings(
  source: Source, directory: str | os.PathLike, *, name: str
) -> Recordings:
  """Returns the recordings of a source, in one order on every machine.

  Sorted by label, then by the last number in the name of the file, then by
  path: tonic leaves them in the order of the file system.

  Args:
    source: what is read.
    directory: `data.dir`.
    name: of the data set, for messages.

  Raises:
    InputError: they are not there, or not all.
  """
  reader = open_reader(source, directory)
  location = pathlib.Path(reader.location_on_system)
  keys = []
  for position, (file, label) in enumerate(
    zip(reader.data, reader.targets, strict=True)
  ):
    path = pathlib.PurePath(file).relative_to(location)
    if not any(part.startswith('.') for part in path.parts):
      number = int((re.findall(r'\d+', path.stem) or ['-1'])[-1])
      keys.append((label, number, str(path), position))
  if len(keys) < source.count:
    folder = location / reader.folder_name
    got = f'{len(keys):,}' if keys else 'none'
    command = (
      f'run python main.py --mode=prepare --config=configs/{name}.py '
      f'--config.data.dir={shlex.quote(os.fspath(directory))}'
    )
    todo = (
      f'remove that incomplete copy, then {command}'
      if keys
      else f'{command} (without internet, first put {reader.filename}, or the '
      f'folders in it, into {location})'
    )
    raise InputError(
      f'expected {source.count:,} recordings of {name!r} in {folder}, got '
      f'{got}: {todo}'
    )
  return Recordings(reader, np.array([key[-1] for key in sorted(keys)]))
