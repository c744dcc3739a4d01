"""Archives, downloaded atomically and verified by checksum."""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
from typing import Any

from mpbn_jax.datasets.preparation import writing
from mpbn_jax.errors import InputError

_NO_ANSWER = 10  # seconds to wait for a server's answer
_NO_BYTES = 60  # seconds to wait for more of a file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Archive:
  """A published file.

  Attributes:
    name: name of the file.
    url: where it is downloaded from.
    checksum: algorithm and hexadecimal digest, 'sha256:...' or 'md5:...'.
    size: size in bytes; None if unknown.
  """

  name: str
  url: str
  checksum: str
  size: int | None = None


def obtain(
  archive: Archive, folder: pathlib.Path, *, mend: str
) -> pathlib.Path:
  """Returns the path of an archive in `folder`, downloaded if necessary.

  Args:
    archive: archive to obtain.
    folder: may already hold the archive; created if missing.
    mend: advice to the user if the archive cannot be downloaded.

  Raises:
    InputError: the file in `folder` or at the URL is a different one, there is
      no connection, the disk is full, or `folder` cannot be written.
  """
  path = folder / archive.name
  if path.exists():
    if problem := _difference(path, archive):
      raise InputError(
        f'expected {path} with {problem}: remove it and download it again '
        f'from {archive.url}'
      )
    return path
  part = path.with_name(f'{path.name}.part')
  with writing(path):
    folder.mkdir(parents=True, exist_ok=True)
    try:
      if reason := download(archive.url, part):
        raise InputError(
          f'expected {archive.name}, got no download of {archive.url} '
          f'({reason}): {mend}'
        )
      if problem := _difference(part, archive):
        raise InputError(f'expected {archive.url} with {problem}: {mend}')
      part.rename(path)
    finally:
      with contextlib.suppress(OSError):
        part.unlink()
  return path


def _difference(path, archive):
  """Returns 'expected ..., got ...'; None if the file is the archive."""
  algorithm, _, expected = archive.checksum.partition(':')
  with path.open('rb') as file:
    size = os.fstat(file.fileno()).st_size
    if archive.size is not None and size != archive.size:
      what = 'truncated or ' * (size < archive.size) + 'another file'
      return f'{archive.size:,} bytes, got {size:,}, it is {what}'
    found = hashlib.file_digest(file, algorithm).hexdigest()
  if found == expected:
    return None
  what = 'damaged' if archive.size else 'truncated'
  return (
    f'the {algorithm} checksum {expected}, got {found}, it is {what} or '
    'another file'
  )


def download(url: str, path: pathlib.Path) -> str | None:
  """Downloads a file to `path`; returns None, or the reason for a failure.

  Timeouts are short, so that a machine without internet fails quickly. The file
  is not checked.
  """
  # Not pooch: if a server declares a Content-Encoding, as some do for a .gz, it
  # stores the decoded file, which has another checksum; and only the owner can
  # read its downloads.
  import requests
  from tqdm import tqdm

  try:
    with (
      requests.get(
        url,
        headers={'Accept-Encoding': 'identity'},
        stream=True,
        timeout=(_NO_ANSWER, _NO_BYTES),
      ) as response,
      path.open('wb') as file,
    ):
      response.raise_for_status()
      # Keep a .gz as it is: some servers declare its compression here.
      response.raw.headers.pop('Content-Encoding', None)
      size = response.headers.get('Content-Length')
      with tqdm(
        total=int(size) if size else None,
        desc=path.name,
        unit='B',
        unit_scale=True,
        disable=None,  # unless a terminal shows it
      ) as bar:
        for block in response.iter_content(1 << 20):
          file.write(block)
          bar.update(len(block))
  except requests.HTTPError as error:
    answer: Any = error.response  # every HTTP error has one
    return f'{answer.status_code} {answer.reason}'
  except requests.Timeout:
    return 'no answer'
  except requests.RequestException:
    return 'no connection, or it was lost'
  return None
