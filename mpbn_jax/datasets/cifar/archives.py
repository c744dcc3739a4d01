"""What is in the official archives of CIFAR, and is a file one of them?

https://www.cs.toronto.edu/~kriz/cifar.html describes their layouts.
"""

import dataclasses
import functools
import hashlib
import io
import os
import pathlib
import pickle
import tarfile
from collections.abc import Callable, Mapping

import numpy as np

from mpbn_jax.datasets import downloads
from mpbn_jax.datasets.base import Split
from mpbn_jax.errors import InputError

_PIXELS = 3 * 32 * 32  # of an image: channels, rows, columns


@dataclasses.dataclass(frozen=True)
class Archive:
  """One of the forms in which a data set is published.

  Attributes:
    name: of the file.
    size: bytes.
    sha256: of the file, hexadecimal.
    files: {split: paths in it, in the order of the images}.
    decode: content of such a file to (pixels [N, 3072] uint8, labels [N]).
    folder: where it is published.
  """

  name: str
  size: int
  sha256: str
  files: Mapping[str, tuple[str, ...]]
  decode: Callable[[bytes], tuple[np.ndarray, np.ndarray]]
  folder: str = 'https://www.cs.toronto.edu/~kriz/'

  @property
  def url(self) -> str:
    return self.folder + self.name


@dataclasses.dataclass(frozen=True)
class Source:
  """Where a data set comes from.

  Attributes:
    archives: any of them will do; the first one is downloaded.
    counts: {split: images}; each file of a split has equally many.
  """

  archives: tuple[Archive, ...]
  counts: Mapping[str, int]


# ---- their files


def _decode_binary(content, *, labels):
  """Each image: some label bytes, the last one the finest, then its pixels."""
  rows = np.frombuffer(content, np.uint8).reshape(-1, labels + _PIXELS)
  return rows[:, labels:], rows[:, labels - 1]


def _decode_pickle(content, *, key):
  batch = _ArrayUnpickler(io.BytesIO(content), encoding='bytes').load()
  return batch[b'data'], np.array(batch[key], np.uint8)


class _ArrayUnpickler(pickle.Unpickler):
  """Makes containers, numbers, strings and arrays, and calls nothing else."""

  _known = {
    # As NumPy 1 was called when the archives were written.
    ('numpy.core.multiarray', '_reconstruct'): np.empty(0).__reduce__()[0],
    ('numpy', 'ndarray'): np.ndarray,
    ('numpy', 'dtype'): np.dtype,
  }

  def find_class(self, module, name):
    if (module, name) not in self._known:
      raise pickle.UnpicklingError(f'it wants to call {module}.{name}')
    return self._known[module, name]


def _batches(folder, suffix):
  return {
    'train': tuple(f'{folder}/data_batch_{i}{suffix}' for i in range(1, 6)),
    'test': (f'{folder}/test_batch{suffix}',),
  }


_COUNTS = {'train': 50_000, 'test': 10_000}

SOURCES = {
  'cifar10': Source(
    archives=(
      Archive(
        name='cifar-10-binary.tar.gz',
        size=170_052_171,
        sha256='c4a38c50a1bc5f3a1c5537f2155ab9d6'
        '8f9f25eb1ed8d9ddda3db29a59bca1dd',
        files=_batches('cifar-10-batches-bin', '.bin'),
        decode=functools.partial(_decode_binary, labels=1),
      ),
      Archive(
        name='cifar-10-python.tar.gz',
        size=170_498_071,
        sha256='6d958be074577803d12ecdefd02955f3'
        '9262c83c16fe9348329d7fe0b5c001ce',
        files=_batches('cifar-10-batches-py', ''),
        decode=functools.partial(_decode_pickle, key=b'labels'),
      ),
    ),
    counts=_COUNTS,
  ),
  'cifar100': Source(
    archives=(
      Archive(
        name='cifar-100-binary.tar.gz',
        size=168_513_733,
        sha256='58a81ae192c23a4be8b1804d68e518ed'
        '807d710a4eb253b1f2a199162a40d8ec',
        files={
          'train': ('cifar-100-binary/train.bin',),
          'test': ('cifar-100-binary/test.bin',),
        },
        decode=functools.partial(_decode_binary, labels=2),  # coarse, fine
      ),
      Archive(
        name='cifar-100-python.tar.gz',
        size=169_001_437,
        sha256='85cd44d02ba6437773c5bbd22e183051'
        'd648de2e7d6b014e1ef29b855ba677a7',
        files={
          'train': ('cifar-100-python/train',),
          'test': ('cifar-100-python/test',),
        },
        decode=functools.partial(_decode_pickle, key=b'fine_labels'),
      ),
    ),
    counts=_COUNTS,
  ),
}


# ---- getting one


def obtain(
  source: Source, folder: pathlib.Path
) -> tuple[Archive, pathlib.Path]:
  """Returns an official archive and where it lies, downloaded if need be.

  Args:
    source: whose archive.
    folder: of archives that the user laid there, and of the downloaded one.

  Raises:
    InputError: an archive there is not the official one; there is none, and no
      connection.
  """
  for archive in source.archives:
    path = folder / archive.name
    if path.exists():
      if problem := _difference(path, archive):
        raise InputError(
          f'expected {path} with {problem}: remove it and download it again '
          f'from {archive.url}'
        )
      return archive, path
  archive = source.archives[0]
  path = folder / archive.name
  names = ' or '.join(archive.name for archive in source.archives)
  # tensorflow-datasets' download manager would try for minutes on a machine
  # without internet, and go on after Ctrl-C until it has the file.
  downloads.obtain(
    archive.url,
    path,
    difference=functools.partial(_difference, archive=archive),
    mend=f'lay {names} into {folder} and run the same command again',
  )
  return archive, path


def _difference(path, archive):
  """Returns what was expected and got; None if it is the official archive."""
  with path.open('rb') as file:
    size = os.fstat(file.fileno()).st_size
    if size != archive.size:
      what = 'truncated or ' * (size < archive.size) + 'another file'
      return f'{archive.size:,} bytes, got {size:,}, it is {what}'
    sha256 = hashlib.file_digest(file, 'sha256').hexdigest()
  if sha256 != archive.sha256:
    return f'the sha256 checksum {archive.sha256}, got {sha256}'
  return None


# ---- reading one


def read(
  path: pathlib.Path, *, archive: Archive, source: Source, num_classes: int
) -> dict[str, Split]:
  """Returns {split: images [N, 32, 32, 3], labels [N]}, in the archive's order.

  Raises:
    InputError: a file in it is missing or is not what it should be.
  """
  files = {}
  wanted = {name for names in archive.files.values() for name in names}
  name = 'its first file'
  try:
    with tarfile.open(path, 'r|gz') as tar:
      for member in tar:
        name = os.path.normpath(member.name)
        if name in wanted:
          files[name] = archive.decode(tar.extractfile(member).read())
  except Exception as error:  # whatever a damaged archive or pickle may raise
    text = ' '.join(str(error).split())
    raise _unusable(path, archive, f'{name} unreadable ({text})') from error
  for split, names in archive.files.items():
    count = source.counts[split] // len(names)
    for name in names:
      if name not in files:
        raise _unusable(path, archive, f'no {name}')
      if problem := _problem(*files[name], count, num_classes):
        raise _unusable(path, archive, f'{name} with {problem}')
  return {split: _join(files, names) for split, names in archive.files.items()}


def _problem(pixels, labels, count, num_classes):
  """Returns what is wrong with a batch; None if nothing is."""
  if getattr(pixels, 'dtype', None) != np.uint8:
    return 'something else than pixels'
  if pixels.shape != (count, _PIXELS):
    return f'pixels {list(pixels.shape)}, not {[count, _PIXELS]}'
  if labels.shape != (count,):
    return f'{labels.size} labels, not {count}'
  if labels.max() >= num_classes:
    return f'the label {labels.max()}, of {num_classes} classes'
  return None


def _join(files, names):
  """Returns the images of these files, and drops the files."""
  count = sum(len(files[name][1]) for name in names)
  split = Split(
    np.empty((count, 32, 32, 3), np.uint8), np.empty(count, np.int32)
  )
  start = 0
  for name in names:
    pixels, labels = files.pop(name)
    part = slice(start, start + len(labels))
    split.images[part] = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    split.labels[part] = labels
    start = part.stop
  return split


def _unusable(path, archive, got):
  return InputError(
    f'expected the files of {archive.name} in {path}, got {got}: remove it and '
    f'download it again from {archive.url}'
  )
