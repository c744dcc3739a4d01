"""Event frames on disk, computed once from the recordings.

They are arrays that are mapped into memory and never read as a whole:

    <data.dir>/event_frames/<data set>-<T>-<framing>-<H>x<W>-v<VERSION>/
        train_images.npy  uint8 [N, T, H, W, 2]
        train_labels.npy  int32 [N]
        test_images.npy, test_labels.npy

The name of the directory encodes everything that the frames depend on except
the recordings themselves: if their number has changed, the frames are computed
again. The directory appears only once it is complete.
"""

import contextlib
import logging
import math
import pathlib
import shutil
import time
from collections.abc import Callable, Mapping

import numpy as np

from mpbn_jax.datasets import preparation
from mpbn_jax.datasets.base import Spec, Split, fetch
from mpbn_jax.datasets.events import archives
from mpbn_jax.datasets.events.frames import check_framing, to_frames
from mpbn_jax.datasets.events.recordings import (
  Collection,
  Recordings,
  open_reader,
  open_recordings,
)
from mpbn_jax.errors import InputError

VERSION = 2  # of the frames: framing rule, order of recordings, split
PARTS = ('train', 'test')

_log = logging.getLogger('mpbn_jax')

# {collection: its recordings} -> {'train': ..., 'test': ...}
Splitter = Callable[[Mapping[str, Recordings]], Mapping[str, Recordings]]


def load(
  spec: Spec,
  config: Mapping,
  *,
  num_steps: int,
  collections: Mapping[str, Collection],
  split: Splitter = dict,
) -> dict[str, Split]:
  """Returns the splits, mapped from disk; computes the frames if needed.

  Args:
    spec: specification of the data set.
    config: `config.data`.
    num_steps: T.
    collections: the recordings, by name.
    split: divides them into 'train' and 'test'; by default they are these two.

  Raises:
    InputError: neither frames nor recordings exist, a recording is invalid, or
      the disk is full.
  """
  path = place(spec, config, num_steps=num_steps)
  shape = spec.example_shape(num_steps)
  splits, problem = _read(path, shape, config['dir'], collections)
  if splits is not None:
    return splits
  command = preparation.command(
    spec.name,
    config['dir'],
    model__num_steps=num_steps,
    data__framing=config['framing'],
  )
  with _because(problem):
    recordings = split(
      {
        name: open_recordings(
          collection, config['dir'], name=spec.name, command=command
        )
        for name, collection in collections.items()
      }
    )
  with preparation.exclusive(path, what=f'the frames of {spec.name!r}'):
    # Another process may have computed them while this one waited.
    splits, problem = _read(path, shape, config['dir'], collections)
    if splits is None:
      if problem:
        _log.warning('%s: making its frames again', problem)
        shutil.rmtree(path)
      _write(path, recordings, spec=spec, config=config, num_steps=num_steps)
      splits, _ = _read(path, shape, config['dir'], collections)
  return splits


def prepare(
  spec: Spec,
  config: Mapping,
  *,
  num_steps: int,
  collections: Mapping[str, Collection],
  split: Splitter = dict,
) -> None:
  """Downloads recordings if needed, computes the frames and prints where.

  Args and errors are those of `load`.
  """
  path = place(spec, config, num_steps=num_steps)
  start = time.monotonic()
  splits, problem = _read(
    path, spec.example_shape(num_steps), config['dir'], collections
  )
  done = splits is not None
  if not done:
    with _because(problem):
      for collection in collections.values():
        archives.obtain(collection, config['dir'])
    splits = load(
      spec, config, num_steps=num_steps, collections=collections, split=split
    )
  seconds = time.monotonic() - start
  what = 'is already prepared' if done else f'prepared in {seconds:.1f} s'
  parts = ' and '.join(f'{len(splits[part]):,} {part}' for part in PARTS)
  print(f'{spec.name} {what}: {path}, {parts} recordings, T = {num_steps}')


def place(spec: Spec, config: Mapping, *, num_steps: int) -> pathlib.Path:
  """Returns the directory of the frames of a configuration."""
  check_framing(config['framing'])
  height, width, _ = spec.image_shape
  name = f'{spec.name}-{num_steps}-{config["framing"]}-{height}x{width}'
  return pathlib.Path(config['dir']) / 'event_frames' / f'{name}-v{VERSION}'


@contextlib.contextmanager
def _because(problem):
  """Prefixes errors of its body with the problem with the frames."""
  try:
    yield
  except InputError as error:
    if not problem:
      raise
    raise InputError(f'{problem}; {error}') from error


def _read(path, example_shape, directory, collections):
  """Returns (splits or None, the problem with the frames on disk)."""
  if not path.is_dir():
    return None, ''
  try:
    splits = {part: _read_part(path, part, example_shape) for part in PARTS}
  except (ValueError, EOFError, FileNotFoundError):
    return None, f'{path} is damaged'
  made = sum(len(split) for split in splits.values())
  found = sum(len(open_reader(c, directory)) for c in collections.values())
  least = sum(collection.count for collection in collections.values())
  # Some or all recordings may have been removed to save space.
  if made == found or found < least <= made:
    return splits, ''
  return None, (
    f'{path} was made from {made:,} recordings, not {max(found, least):,}'
  )


def _read_part(path, part, example_shape):
  images = np.load(path / f'{part}_images.npy', mmap_mode='r')
  labels = np.load(path / f'{part}_labels.npy')
  found = images.shape, images.dtype, labels.dtype
  if found != ((len(labels), *example_shape), np.uint8, np.int32):
    raise ValueError(f'{path} holds arrays other than its name says')
  return Split(images, labels)


def _write(path, recordings, *, spec, config, num_steps):
  """Writes the frames of {'train', 'test'} to the directory `path`."""
  from tqdm import tqdm

  shape = spec.example_shape(num_steps)
  total = sum(len(recordings[part]) for part in PARTS)
  needed = total * math.prod(shape)
  with (
    preparation.atomic_directory(path) as directory,
    preparation.room_for(path, needed=needed),
    tqdm(total=total, desc=spec.name, disable=None) as bar,
  ):
    print(
      f'{spec.name}: converting {total:,} recordings to frames, '
      f'{preparation.megabytes(needed)}, in {path}',
      flush=True,
    )
    for part in PARTS:
      source = recordings[part]
      np.save(directory / f'{part}_labels.npy', source.labels)
      # Not through mapped memory, where a full disk kills the process.
      with (directory / f'{part}_images.npy').open('wb') as file:
        header = {
          'descr': '|u1',
          'fortran_order': False,
          'shape': (len(source), *shape),
        }
        np.lib.format.write_array_header_1_0(file, header)
        for index in range(len(source)):
          events, _ = fetch(source, index)
          frames = to_frames(
            events,
            num_steps=num_steps,
            sensor=source.sensor,
            name=source.name(index),
            framing=config['framing'],
            size=spec.image_shape[:2],
          )
          file.write(frames)
          bar.update()
