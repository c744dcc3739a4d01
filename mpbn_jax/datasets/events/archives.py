"""How do the recordings of an event camera get onto the disk?

The archives and their checksums are tonic's. They are unpacked beside their
place and moved into it, so that no half of a folder is taken for the whole.
"""

import functools
import hashlib
import os
import pathlib
import shutil
import tarfile
import zipfile

from mpbn_jax.datasets import downloads
from mpbn_jax.datasets.events.recordings import Source, open_reader
from mpbn_jax.datasets.preparation import exclusive, room_for, writing
from mpbn_jax.errors import InputError


def obtain(source: Source, directory: str | os.PathLike) -> None:
  """Downloads and unpacks a source, where its recordings are not there yet.

  An archive that lies in the folder of the data set is taken, and not
  downloaded. Another process that does the same is waited for.

  Args:
    source: what is wanted.
    directory: `data.dir`.

  Raises:
    InputError: no connection; an archive with another checksum; no room.
  """
  location = pathlib.Path(open_reader(source, directory).location_on_system)
  with exclusive(location, what=f'the recordings of {source.kind}'):
    reader = open_reader(source, directory)
    # What is there stays: half of the folder is the user's to remove.
    half = len(reader) > 0 and reader.folder_name
    if len(reader) < source.count and not half:
      _unpack(_archive(reader, location), location)


def _archive(reader, location):
  """Returns the path of the archive, downloaded if need be."""
  path = location / reader.filename
  if path.exists():
    if problem := _difference(path, reader):
      raise InputError(
        f'expected {path} with {problem}: remove it and download it again '
        f'from {reader.url}'
      )
    return path
  downloads.obtain(
    reader.url,
    path,
    difference=functools.partial(_difference, reader=reader),
    mend=f'put {path.name} into {location}, then the same command again',
  )
  return path


def _difference(path, reader):
  """Returns what was expected and got; None if it is tonic's archive."""
  with path.open('rb') as file:
    md5 = hashlib.file_digest(file, 'md5').hexdigest()
  if md5 == reader.file_md5:
    return None
  return (
    f'the md5 checksum {reader.file_md5}, got {md5}, it is truncated or '
    'another file'
  )


def _unpack(archive, location):
  """Moves the folders of an archive to `location`, those that are not there."""
  temporary = location / '.unpacked'
  try:
    with writing(temporary):
      shutil.rmtree(temporary, ignore_errors=True)
      _extract(archive, temporary)
      # CIFAR10-DVS is an archive of one archive for each class.
      for inner in sorted(temporary.glob('*.zip')):
        _extract(inner, temporary)
        inner.unlink()
      os.sync()  # a power cut must not leave whole folders of empty files
      for folder in sorted(temporary.iterdir()):
        if not (location / folder.name).exists():
          folder.rename(location / folder.name)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def _extract(archive, target):
  """Unpacks a .zip or a .tar.gz into `target`."""
  from tqdm import tqdm

  def bar(members, total):
    return tqdm(
      members, total=total, desc=archive.name, unit=' files', disable=None
    )

  target.mkdir(exist_ok=True)
  if archive.suffix == '.zip':
    with zipfile.ZipFile(archive) as file:
      members = file.infolist()
      needed = sum(member.file_size for member in members)
      with room_for(target, needed=needed):
        for member in bar(members, len(members)):
          file.extract(member, target)
  else:
    with tarfile.open(archive) as file:
      for member in bar(file, None):
        file.extract(member, target, filter='data')
