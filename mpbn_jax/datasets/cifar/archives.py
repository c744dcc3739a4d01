"""The official archives of CIFAR-10 and CIFAR-100, and their contents.

https://www.cs.toronto.edu/~kriz/cifar.html describes the formats.
"""

import dataclasses
import functools
import io
import os
import pathlib
import pickle
import tarfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mpbn_jax.datasets import downloads
from mpbn_jax.datasets.base import Split
from mpbn_jax.errors import InputError

_PIXELS = 3 * 32 * 32  # bytes of an image: channels, rows, columns


@dataclasses.dataclass(frozen=True, kw_only=True)
class Archive(downloads.Archive):
  """One of the forms in which a data set is published.

  Attributes:
    files: {split: paths in the archive, in the order of the images}.
    decode: content of a file -> (pixels [N, 3072] uint8, labels [N]).
  """

  files: Mapping[str, tuple[str, ...]]
  decode: Callable[[bytes], tuple[np.ndarray, np.ndarray]]


def _decode_binary(content, *, labels):
  """Decodes images stored as label bytes, the finest last, then pixels."""
  rows = np.frombuffer(content, np.uint8).reshape(-1, labels + _PIXELS)
  return rows[:, labels:], rows[:, labels - 1]


def _decode_pickle(content, *, key):
  batch = _ArrayUnpickler(io.BytesIO(content), encoding='bytes').load()
  return batch[b'data'], np.array(batch[key], np.uint8)


class _ArrayUnpickler(pickle.Unpickler):
  """Unpickles containers, numbers, strings and arrays; calls nothing else."""

  _known = {
    # Its name in NumPy 1, which wrote the archives.
    ('numpy.core.multiarray', '_reconstruct'): np.empty(0).__reduce__()[0],
    ('numpy', 'ndarray'): np.ndarray,
    ('numpy', 'dtype'): np.dtype,
  }

  def find_class(self, module, name):
    if (module, name) not in self._known:
      raise pickle.UnpicklingError(f'it tries to call {module}.{name}')
    return self._known[module, name]


def _batches(folder, suffix):
  return {
    'train': tuple(f'{folder}/data_batch_{i}{suffix}' for i in range(1, 6)),
    'test': (f'{folder}/test_batch{suffix}',),
  }


def _archive(name, *, size, sha256, files, decode):
  return Archive(
    name=name,
    url=f'https://www.cs.toronto.edu/~kriz/{name}',
    checksum=f'sha256:{sha256}',
    size=size,
    files=files,
    decode=decode,
  )


# {split: number of images}; all files of a split hold equally many.
COUNTS = {'train': 50_000, 'test': 10_000}

# Any archive of a data set is accepted; the first one is downloaded.
ARCHIVES = {
  'cifar10': (
    _archive(
      'cifar-10-binary.tar.gz',
      size=170_052_171,
      sha256='c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd',
      files=_batches('cifar-10-batches-bin', '.bin'),
      decode=functools.partial(_decode_binary, labels=1),
    ),
    _archive(
      'cifar-10-python.tar.gz',
      size=170_498_071,
      sha256='6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce',
      files=_batches('cifar-10-batches-py', ''),
      decode=functools.partial(_decode_pickle, key=b'labels'),
    ),
  ),
  'cifar100': (
    _archive(
      'cifar-100-binary.tar.gz',
      size=168_513_733,
      sha256='58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec',
      files={
        'train': ('cifar-100-binary/train.bin',),
        'test': ('cifar-100-binary/test.bin',),
      },
      decode=functools.partial(_decode_binary, labels=2),  # coarse, fine
    ),
    _archive(
      'cifar-100-python.tar.gz',
      size=169_001_437,
      sha256='85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7',
      files={
        'train': ('cifar-100-python/train',),
        'test': ('cifar-100-python/test',),
      },
      decode=functools.partial(_decode_pickle, key=b'fine_labels'),
    ),
  ),
}


def obtain(name: str, folder: pathlib.Path) -> tuple[Archive, pathlib.Path]:
  """Returns an official archive and its path, downloaded if necessary.

  Args:
    name: name of the data set.
    folder: where the user may have put an archive; downloads go there too.

  Raises:
    InputError: an archive in `folder` is not the official one, or there is
      neither an archive nor a connection.
  """
  known = ARCHIVES[name]
  names = ' or '.join(archive.name for archive in known)
  there = [archive for archive in known if (folder / archive.name).exists()]
  archive = (there or known)[0]
  # The download manager of tensorflow-datasets would try for minutes on a
  # machine without internet, and would not stop at Ctrl-C.
  mend = f'put {names} into {folder} and run the same command again'
  return archive, downloads.obtain(archive, folder, mend=mend)


def read(
  path: pathlib.Path, *, archive: Archive, num_classes: int
) -> dict[str, Split]:
  """Returns the splits of an archive, in its order.

  Raises:
    InputError: a file in the archive is missing or invalid.
  """
  files = {}
  wanted = {name for names in archive.files.values() for name in names}
  name = 'its first file'
  try:
    with tarfile.open(path, 'r|gz') as tar:
      for member in tar:
        name = os.path.normpath(member.name)
        if name in wanted:
          content: Any = tar.extractfile(member)  # None: a folder, an error
          files[name] = archive.decode(content.read())
  except Exception as error:  # a damaged archive or pickle may raise anything
    text = ' '.join(str(error).split())
    raise _unusable(path, archive, f'{name} unreadable ({text})') from error
  for split, names in archive.files.items():
    count = COUNTS[split] // len(names)
    for name in names:
      if name not in files:
        raise _unusable(path, archive, f'no {name}')
      if problem := _problem(*files[name], count, num_classes):
        raise _unusable(path, archive, f'{name} with {problem}')
  return {split: _join(files, names) for split, names in archive.files.items()}


def _problem(pixels, labels, count, num_classes):
  """Returns the problem with the content of a file, or None."""
  if getattr(pixels, 'dtype', None) != np.uint8:
    return 'something other than pixels'
  if pixels.shape != (count, _PIXELS):
    return f'pixels {list(pixels.shape)}, not {[count, _PIXELS]}'
  if labels.shape != (count,):
    return f'{labels.size} labels, not {count}'
  if labels.max() >= num_classes:
    return f'the label {labels.max()} for {num_classes} classes'
  return None


def _join(files, names):
  """Returns the images of these files, and frees the files."""
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
