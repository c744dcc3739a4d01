"""Downloading and unpacking archives of event recordings.

URLs and checksums are tonic's. An archive is unpacked next to its final
location and then moved there, so that a partial folder is never used.
"""

import os
import pathlib
import shutil
import tarfile
import zipfile

from mpbn_jax.datasets import downloads
from mpbn_jax.datasets.events.recordings import Collection, open_reader
from mpbn_jax.datasets.preparation import exclusive, room_for, writing
from mpbn_jax.errors import InputError


def obtain(collection: Collection, directory: str | os.PathLike) -> None:
  """Downloads and unpacks the recordings that are not on disk yet.

  Uses an archive that is already in the folder of the data set. If another
  process is preparing the same recordings, this one waits for it.

  Args:
    collection: the recordings.
    directory: `data.dir`.

  Raises:
    InputError: there is no connection, an archive has another checksum, or the
      disk is full.
  """
  location = pathlib.Path(open_reader(collection, directory).location_on_system)
  with exclusive(location, what=f'the recordings of {collection.kind}'):
    reader = open_reader(collection, directory)
    # An incomplete folder is kept: only the user may remove it.
    half = len(reader) > 0 and reader.folder_name
    if len(reader) >= collection.count or half:
      return
    archive = downloads.Archive(
      name=reader.filename, url=reader.url, checksum=f'md5:{reader.file_md5}'
    )
    mend = f'put {archive.name} into {location} and run the same command again'
    _unpack(downloads.obtain(archive, location, mend=mend), location)


def _unpack(archive, location):
  """Unpacks the folders of an archive that `location` lacks."""
  temporary = location / '.unpacked'
  try:
    with writing(temporary):
      shutil.rmtree(temporary, ignore_errors=True)
      _extract(archive, temporary)
      # The archive of CIFAR10-DVS holds one archive per class.
      for inner in sorted(temporary.glob('*.zip')):
        _extract(inner, temporary)
        inner.unlink()
      os.sync()  # otherwise a power cut may leave empty files
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
        _extract_member(file, member, target)


# `TarFile.extract` has a filter for this only from Python 3.11.4 on.
def _extract_member(file, member, target):
  """Unpacks a file of a .tar; raises InputError unless it stays in `target`."""
  if member.isdir():
    return
  inside = pathlib.PurePosixPath(member.name)
  if not member.isfile() or inside.is_absolute() or '..' in inside.parts:
    raise InputError(
      f'{file.name} may only contain files inside its own folder, got '
      f'{member.name!r}: delete the archive and obtain it again'
    )
  path = target / inside
  path.parent.mkdir(parents=True, exist_ok=True)
  with file.extractfile(member) as source, path.open('wb') as sink:
    shutil.copyfileobj(source, sink)
