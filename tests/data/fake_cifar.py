"""Small archives of CIFAR in the official layouts.

As a program it runs main.py on them, in a process of its own:

    python tests/data/fake_cifar.py '{"train": 200}' --mode=prepare ...
"""

import dataclasses
import functools
import gzip
import hashlib
import io
import json
import os
import pathlib
import resource
import struct
import subprocess
import sys
import tarfile

import numpy as np

if __name__ == '__main__':
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from mpbn_jax.datasets import get_spec
from mpbn_jax.datasets.base import Split
from mpbn_jax.datasets.cifar import archives

ROOT = pathlib.Path(__file__).resolve().parents[2]
TRAIN, TEST = 200, 20
NOWHERE = 'http://127.0.0.1:9/'  # nobody listens
ARCHIVES = {
  'cifar10': ('cifar-10-binary.tar.gz', 'cifar-10-python.tar.gz'),
  'cifar100': ('cifar-100-binary.tar.gz', 'cifar-100-python.tar.gz'),
}


@functools.cache
def splits(name: str, *, train: int = TRAIN, test: int = TEST):
  """Returns {split: random images [N, 32, 32, 3] and labels [N]}."""
  rng = np.random.default_rng([train, len(name)])
  num_classes = get_spec(name).num_classes
  return {
    split: Split(
      rng.integers(0, 256, (count, 32, 32, 3), np.uint8),
      rng.integers(0, num_classes, count).astype(np.int32),
    )
    for split, count in (('train', train), ('test', test))
  }


def official(
  name: str, *, train: int = TRAIN, test: int = TEST, folder: str = NOWHERE
):
  """Returns the official archives, but for sizes, checksums and address."""
  return tuple(
    of_content(
      dataclasses.replace(archive, url=folder + archive.name),
      packed(archive.name, train=train, test=test),
    )
    for archive in archives.ARCHIVES[name]
  )


def publish(*, train: int = TRAIN, test: int = TEST, folder: str = NOWHERE):
  """Puts the small archives in the official ones' place; `official`'s Args."""
  archives.COUNTS = {'train': train, 'test': test}
  archives.ARCHIVES = {
    name: official(name, train=train, test=test, folder=folder)
    for name in ARCHIVES
  }


def of_content(archive, content: bytes):
  """Returns the archive as if this were its official content."""
  sha256 = hashlib.sha256(content).hexdigest()
  checksum = f'sha256:{sha256}'
  return dataclasses.replace(archive, size=len(content), checksum=checksum)


@functools.cache
def packed(archive: str, *, train: int = TRAIN, test: int = TEST) -> bytes:
  """Returns the content of one of the four archives."""
  return pack(members(archive, train=train, test=test))


def pack(contents: dict[str, bytes]) -> bytes:
  """Returns a .tar.gz of {path: content}, always the same."""
  raw = io.BytesIO()
  with (
    gzip.GzipFile(fileobj=raw, mode='wb', compresslevel=1, mtime=0) as zipped,
    tarfile.open(fileobj=zipped, mode='w') as tar,
  ):
    folder = tarfile.TarInfo(next(iter(contents)).split('/')[0])
    folder.type = tarfile.DIRTYPE
    tar.addfile(folder)
    for name, content in contents.items():
      member = tarfile.TarInfo(name)
      member.size = len(content)
      tar.addfile(member, io.BytesIO(content))
  return raw.getvalue()


def members(
  archive: str, *, train: int = TRAIN, test: int = TEST
) -> dict[str, bytes]:
  """Returns {path: content} of one of the four archives.

  In the order of the official python archive, which is not the images'.
  """
  name = next(name for name, names in ARCHIVES.items() if archive in names)
  parts = splits(name, train=train, test=test)
  encode = _binary if 'binary' in archive else _python
  if name == 'cifar100':
    folder = archive.removesuffix('.tar.gz')
    suffix = '.bin' if 'binary' in archive else ''
    found = {
      f'{folder}/file.txt~': b'',
      f'{folder}/train{suffix}': encode(parts['train'], coarse=True),
      f'{folder}/test{suffix}': encode(parts['test'], coarse=True),
    }
    return found | {f'{folder}/fine_label_names.txt': b'apple\n'}
  folder, suffix = {
    _binary: ('cifar-10-batches-bin', '.bin'),
    _python: ('cifar-10-batches-py', ''),
  }[encode]
  found = {}
  for number in (4, 0, 3, 2, 5, 1):
    file = f'data_batch_{number}' if number else 'test_batch'
    part = parts['test']
    if number:
      size = train // 5
      of_file = slice((number - 1) * size, number * size)
      part = Split(*(array[of_file] for array in _fields(parts['train'])))
    found[f'{folder}/{file}{suffix}'] = encode(part)
  return found | {f'{folder}/batches.meta.txt': b'airplane\n'}


def _fields(split):
  return split.images, split.labels


def _pixels(split):
  """Returns [N, 3072]: of each image red, green, blue, row by row."""
  return split.images.transpose(0, 3, 1, 2).reshape(len(split.labels), -1)


def _binary(split, coarse=False):
  labels = [split.labels // 5] * coarse + [split.labels]
  columns = [label.astype(np.uint8)[:, None] for label in labels]
  return np.concatenate([*columns, _pixels(split)], 1).tobytes()


def _python(split, coarse=False):
  labels = [int(label) for label in split.labels]
  items = [('batch_label', b'training batch 1 of 5')]
  if coarse:
    items.append(('fine_labels', labels))
    items.append(('coarse_labels', [label // 5 for label in labels]))
  else:
    items.append(('labels', labels))
  return pickled([*items, ('data', _pixels(split)), ('filenames', [b'a.png'])])


def pickled(items) -> bytes:
  """Returns what Python 2 and NumPy 1 wrote of a dict: strings are bytes."""
  pairs = b''.join(_string(key.encode()) + _value(v) for key, v in items)
  return b'\x80\x02}(' + pairs + b'u.'


def _value(value):
  if isinstance(value, bytes):
    return _string(value)
  if isinstance(value, int):
    return b'K' + struct.pack('<B', value)
  if isinstance(value, list):
    return b'](' + b''.join(map(_value, value)) + b'e'
  rows, columns = value.shape
  return (
    b'cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n'
    b'K\x00\x85U\x01b\x87R(K\x01'
    + b'J'
    + struct.pack('<i', rows)
    + b'J'
    + struct.pack('<i', columns)
    + b'\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R'
    b'(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89'
    + _string(value.tobytes())
    + b'tb'
  )


def _string(content):
  return b'T' + struct.pack('<i', len(content)) + content


def lay(
  directory: pathlib.Path, archive: str, *, train: int = TRAIN, test: int = TEST
) -> pathlib.Path:
  """Lays an archive where a user without internet does; returns its path."""
  path = directory / 'downloads' / 'manual' / archive
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(packed(archive, train=train, test=test))
  return path


# ---- in a process of its own


def start(
  *arguments: str,
  largest_file: int | None = None,
  stderr: int = subprocess.PIPE,
  environment: dict[str, str] | None = None,
  **settings,
) -> subprocess.Popen:
  """Starts main.py on the fake data sets, with one device.

  Args:
    *arguments: of main.py.
    largest_file: bytes that a file may have, as on a full disk.
    stderr: where that goes.
    environment: more of it.
    **settings: of `publish`.
  """
  settings = json.dumps([largest_file, settings])
  return subprocess.Popen(
    [sys.executable, __file__, settings, *arguments],
    cwd=ROOT,
    env={**os.environ, **(environment or {})},
    stdout=subprocess.PIPE,
    stderr=stderr,
    text=True,
  )


def _main(settings, *arguments):
  import main

  largest_file, settings = json.loads(settings)
  publish(**settings)
  if largest_file:
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
  return main.main(list(arguments))


if __name__ == '__main__':
  sys.exit(_main(*sys.argv[1:]))
