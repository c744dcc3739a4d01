"""The images of ImageNet on disk, with their labels.

They come from the first of these that exists below `data.dir`:

* `imagenet2012/<version>/`, prepared by tensorflow_datasets as ArrayRecord with
  `tfds build imagenet2012 --file_format=array_record` (read without
  TensorFlow);
* `imagenet/train/<class>/*.JPEG` and `imagenet/val/<class>/*.JPEG`, the usual
  tree with a folder for each WordNet identifier.
"""

import concurrent.futures
import contextlib
import functools
import json
import logging
import os
import pathlib
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tqdm

from mpbn_jax.datasets.base import Source, fetch
from mpbn_jax.errors import InputError

_log = logging.getLogger(__name__)

_SUFFIXES = ('.jpeg', '.jpg', '.png')
_RECORDS = 1000  # number of labels that a thread reads at a time
# Shards of a split that are open at once. ImageNet has 1024, the usual limit of
# open files per process. Reopening one takes 0.2 ms, decoding an image about
# 10 ms.
_OPEN = 64


def find(
  root: pathlib.Path,
  class_names: Sequence[str],
  *,
  pool: concurrent.futures.Executor,
) -> dict[str, Source]:
  """Returns {'train', 'test'}, found below `root`.

  Args:
    root: `data.dir`.
    class_names: sorted names; a label is the position in this list.
    pool: threads that list folders and read labels.

  Raises:
    InputError: no images were found (says what was expected), or invalid ones.
  """
  prepared = [
    path.parent
    for path in root.glob('imagenet2012/*/dataset_info.json')
    if 'incomplete' not in path.parent.name
  ]
  tree = root / 'imagenet'
  parts = {'train': tree / 'train', 'test': tree / 'val'}
  complete = all(part.is_dir() for part in parts.values())
  if prepared:
    newest = max(prepared, key=lambda path: _version(path.name))
    # Unreadable records are rejected only if there is no folder tree.
    if _is_array_record(newest) or not complete:
      return _records(newest, class_names, pool, cache=root / 'mpbn_jax')
  if not complete:
    raise InputError(
      f'expected ImageNet, found neither {root}/imagenet2012/<version>/'
      f'dataset_info.json (tensorflow_datasets, array_record) nor {tree}/train '
      'and val (a folder for each class): put it there or set --config.data.dir'
    )
  return {
    name: FolderTree(part, class_names, pool=pool)
    for name, part in parts.items()
  }


def _is_array_record(directory):
  try:
    info = json.loads((directory / 'dataset_info.json').read_text())
    return info.get('fileFormat') == 'array_record'
  except (OSError, ValueError):
    return False


def _version(name):
  return [int(part) if part.isdigit() else -1 for part in name.split('.')]


def _progress(items: Iterable, total: int, text: str) -> Iterable:
  """Yields the items; shows progress if that takes more than two seconds."""
  seconds = 0.1 if sys.stderr.isatty() else 10
  return tqdm.tqdm(
    items, text, total, delay=2, mininterval=seconds, leave=False
  )


class FolderTree:
  """`base.Source` of image files in folders, sorted by class and name.

  Args:
    root: parent of the folders.
    class_names: sorted names of the folders.
    pool: threads that list them.

  Attributes:
    labels: int32 [N].
  """

  def __init__(
    self,
    root: pathlib.Path,
    class_names: Sequence[str],
    *,
    pool: concurrent.futures.Executor,
  ):
    self._root = root
    self._class_names = class_names
    _check_folders(root, class_names)
    listed = pool.map(lambda name: _image_names(root / name), class_names)
    folders = list(_progress(listed, len(class_names), f'listing {root}'))
    for name, files in zip(class_names, folders, strict=True):
      if not files:
        raise InputError(
          f'expected images (.JPEG) in {root / name}, got none: unpack the '
          "class's archive there"
        )
    counts = [len(files) for files in folders]
    self.labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    # As bytes, a million names take a quarter of the memory of text.
    self._names = np.array([name for files in folders for name in files])

  def __len__(self) -> int:
    return len(self.labels)

  def read(self, index: int) -> tuple[bytes, int]:
    """See `base.Source`."""
    return pathlib.Path(self.name(index)).read_bytes(), self.labels[index]

  def name(self, index: int) -> str:
    """Returns the path."""
    folder = self._root / self._class_names[self.labels[index]]
    return str(folder / os.fsdecode(self._names[index]))


def _check_folders(root, class_names):
  with os.scandir(root) as entries:
    found = {e.name for e in entries if e.is_dir() and e.name[0] != '.'}
  missing = sorted(set(class_names) - found)
  others = sorted(found - set(class_names))
  if missing or others:
    raise InputError(
      f'expected {len(class_names)} folders in {root}, each named by the '
      f'WordNet identifier of a class, got {len(missing)} missing '
      f'({_some(missing)}) and {len(others)} others ({_some(others)}): unpack '
      'or remove them'
    )


def _some(names):
  return ', '.join(names[:3] + ['...'] * (len(names) > 3)) or 'none'


def _image_names(folder):
  with os.scandir(folder) as entries:
    return sorted(
      os.fsencode(entry.name)
      for entry in entries
      if entry.name.lower().endswith(_SUFFIXES) and entry.name[0] != '.'
    )


# ---- prepared by tensorflow_datasets


class Records:
  """`base.Source` of tensorflow_datasets' records, in the order of its shards.

  Args:
    shards: {file: number of its records}.
    parse: bytes of a record -> example with an encoded image.
    place: name of the records in messages.
    pool: threads that read labels.
    cache: file that stores the labels.
  """

  def __init__(
    self,
    shards: Mapping[pathlib.Path, int],
    *,
    parse: Callable[[bytes], Mapping[str, Any]],
    place: str,
    pool: concurrent.futures.Executor,
    cache: pathlib.Path,
  ):
    self._shards = tuple(shards.items())
    self._starts = np.cumsum([0, *shards.values()])
    self._parse = parse
    self._place = place
    self._pool = pool
    self._cache = cache
    # An evicted shard is closed once no thread reads it any more.
    self._reader = functools.lru_cache(_OPEN)(_reader)

  def __len__(self) -> int:
    return int(self._starts[-1])

  def read(self, index: int) -> tuple[bytes, int]:
    """See `base.Source`."""
    shard = np.searchsorted(self._starts, index, side='right') - 1
    reader = self._reader(*self._shards[shard])
    (record,) = reader.read([int(index - self._starts[shard])])
    example = self._parse(record)
    return example['image'], example['label']

  def name(self, index: int) -> str:
    """Returns the number of the record."""
    return f'record {index} of {self._place}'

  @functools.cached_property
  def labels(self) -> np.ndarray:
    """int32 [N]; the first access reads every record.

    Raises:
      InputError: a record cannot be read (names it).
    """
    kept = _kept(self._cache, len(self))
    if kept is not None:
      return kept
    starts = range(0, len(self), _RECORDS)

    def read(start):
      end = min(start + _RECORDS, len(self))
      return [fetch(self, index)[1] for index in range(start, end)]

    text = f'reading the labels of {self._place}'
    parts = list(_progress(self._pool.map(read, starts), len(starts), text))
    labels = np.concatenate(parts).astype(np.int32)
    _keep(self._cache, labels)
    return labels


def _reader(path, count):
  from array_record.python import array_record_module

  reader = array_record_module.ArrayRecordReader(
    str(path),
    # Recommended by its documentation for random access.
    options='readahead_buffer_size:0,max_parallelism:0',
    file_reader_buffer_size=32768,
  )
  # It would read a truncated file as one with fewer or empty records.
  found = reader.num_records()
  if found != count:
    raise ValueError(f'{found} records in {path.name} instead of {count}')
  return reader


def _kept(path, count):
  """Returns the labels that `_keep` wrote, or None if missing or damaged."""
  try:
    with path.open('rb') as file:
      labels = np.lib.format.read_array(file)
    if labels.shape != (count,) or labels.dtype != np.int32:
      raise ValueError(f'it is not int32 [{count}]')
  except (FileNotFoundError, NotADirectoryError):
    return None
  except Exception as error:  # whatever damaged files may raise
    _log.warning('%s is damaged (%s): reading the labels again', path, error)
    return None
  return labels


def _keep(path, labels):
  """Writes a file atomically; a failure only costs time."""
  temporary = path.with_name(f'{path.name}.{os.getpid()}.npy')
  try:
    path.parent.mkdir(exist_ok=True)
    with temporary.open('wb') as file:
      np.save(file, labels)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except OSError:
    with contextlib.suppress(OSError):
      temporary.unlink()


def _records(directory, class_names, pool, *, cache):
  """Returns {'train', 'test'} of a directory that tfds prepared."""
  import tensorflow_datasets as tfds  # takes seconds; only this needs it

  try:
    builder = tfds.builder_from_directory(directory)
    features, splits = builder.info.features, builder.info.splits
    kind = builder.info.file_format.value
    names = tuple(features['label'].names)
  except Exception as error:  # damaged metadata may raise anything
    reason = ' '.join(str(error).split())[:160] or type(error).__name__
    raise InputError(
      f'expected ImageNet of tensorflow_datasets in {directory}, which cannot '
      f'be read ({reason}): prepare it again'
    ) from error
  if kind != 'array_record':
    raise InputError(
      f'expected ArrayRecord files in {directory}, got {kind}: prepare it with '
      'tfds build imagenet2012 --file_format=array_record'
    )
  if names != tuple(class_names):
    raise InputError(
      f'expected the {len(class_names)} classes of ImageNet in {directory}, '
      f'got {len(names)} others: prepare imagenet2012 again'
    )
  sources = {}
  for name, theirs in (('train', 'train'), ('test', 'validation')):
    place = f'{directory}, split {theirs!r}'
    if theirs not in splits:
      raise InputError(
        f'expected {place}, got only {", ".join(splits)}: prepare it again '
        'with both archives'
      )
    files = [pathlib.Path(file) for file in splits[theirs].filepaths]
    fingerprint = _fingerprint(files)
    sources[name] = Records(
      dict(zip(files, splits[theirs].shard_lengths, strict=True)),
      parse=functools.partial(
        features.deserialize_example_np,
        decoders={'image': tfds.decode.SkipDecoding()},
      ),
      place=place,
      pool=pool,
      cache=cache / f'imagenet2012-{theirs}-{fingerprint}.npy',
    )
  return sources


def _fingerprint(shards):
  """Returns a text that changes with the files; rejects missing files."""
  text = []
  for path in shards:
    if not path.is_file():
      raise InputError(
        f'expected the file {path}, got none: restore it or prepare the data '
        'set again'
      )
    status = path.stat()
    text.append(f'{path.name} {status.st_size} {status.st_mtime_ns}')
  return f'{zlib.crc32(" ".join(text).encode()):08x}'
