"""How are frames of events kept on disk, so that they are made only once?

As arrays that are mapped into memory and never read as a whole, in

    <data.dir>/event_frames/<data set>-<T>-<framing>-<H>x<W>-v<VERSION>/
        train_images.npy  uint8 [N, T, H, W, 2]
        train_labels.npy  int32 [N]
        test_images.npy, test_labels.npy

The name holds what the frames depend on, but for the recordings themselves:
frames of more or fewer than there are now are made anew. The directory appears
when it is complete.
"""

import concurrent.futures
import contextlib
import itertools
import logging
import math
import multiprocessing
import os
import pathlib
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from mpbn_jax.datasets import preparation
from mpbn_jax.datasets.base import Spec, Split
from mpbn_jax.datasets.events.archives import obtain
from mpbn_jax.datasets.events.frames import check_framing, to_frames
from mpbn_jax.datasets.events.recordings import (
  Recordings,
  Source,
  open_reader,
  open_recordings,
)
from mpbn_jax.datasets.preparation import (
  atomic_directory,
  exclusive,
  megabytes,
  room_for,
)
from mpbn_jax.errors import InputError

VERSION = 2  # of the frames: rule of framing, order of recordings, split
PARTS = ('train', 'test')
# Recordings for which a further process pays: it takes seconds to start.
_WORTH_A_PROCESS = 1000
_BLOCK = 1024  # recordings that wait for the disk at most

_log = logging.getLogger('mpbn_jax')

# {source: its recordings} to {'train', 'test'}.
Splitter = Callable[[Mapping[str, Recordings]], Mapping[str, Recordings]]


def load(
  spec: Spec,
  config: Mapping,
  *,
  num_steps: int,
  sources: Mapping[str, Source],
  split: Splitter = dict,
) -> dict[str, Split]:
  """Returns the splits, their images on the disk; makes the frames if need be.

  Args:
    spec: of the data set.
    config: `config.data`.
    num_steps: T.
    sources: where the recordings come from, by name.
    split: makes 'train' and 'test' of these; as they are by default.

  Raises:
    InputError: neither frames nor recordings are there; a recording cannot be
      read or used; no room.
  """
  path = place(spec, config, num_steps=num_steps)
  shape = spec.example_shape(num_steps)
  splits, problem = _read(path, shape, config['dir'], sources)
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
          source, config['dir'], name=spec.name, command=command
        )
        for name, source in sources.items()
      }
    )
  with exclusive(path, what=f'the frames of {spec.name!r}'):
    # Of who was waited for.
    splits, problem = _read(path, shape, config['dir'], sources)
    if splits is None:
      if problem:
        _log.warning('%s: its frames are made anew', problem)
        shutil.rmtree(path)
      _write(path, recordings, spec=spec, config=config, num_steps=num_steps)
      splits, _ = _read(path, shape, config['dir'], sources)
  return splits


def prepare(
  spec: Spec,
  config: Mapping,
  *,
  num_steps: int,
  sources: Mapping[str, Source],
  split: Splitter = dict,
) -> None:
  """Gets the recordings if need be, does as `load`, says what is where."""
  path = place(spec, config, num_steps=num_steps)
  start = time.monotonic()
  splits, problem = _read(
    path, spec.example_shape(num_steps), config['dir'], sources
  )
  done = splits is not None
  if not done:
    with _because(problem):
      for source in sources.values():
        obtain(source, config['dir'])
  splits = load(spec, config, num_steps=num_steps, sources=sources, split=split)
  seconds = time.monotonic() - start
  what = 'is prepared already' if done else f'prepared in {seconds:.1f} s'
  parts = ' and '.join(f'{len(splits[part]):,} {part}' for part in PARTS)
  print(f'{spec.name} {what}: {path}, {parts} recordings, T = {num_steps}')


def place(spec: Spec, config: Mapping, *, num_steps: int) -> pathlib.Path:
  """Returns the directory of the frames that a configuration asks for."""
  check_framing(config['framing'])
  height, width, _ = spec.image_shape
  return (
    pathlib.Path(config['dir'])
    / 'event_frames'
    / (
      f'{spec.name}-{num_steps}-{config["framing"]}-{height}x{width}-v{VERSION}'
    )
  )


@contextlib.contextmanager
def _because(problem):
  """Says first, in the message of what its body raises, what led to it."""
  try:
    yield
  except InputError as error:
    if not problem:
      raise
    raise InputError(f'{problem}; {error}') from error


def _read(path, example_shape, directory, sources):
  """Returns (splits or None, what is wrong with the frames that are there)."""
  if not path.is_dir():
    return None, ''
  try:
    splits = {part: _read_part(path, part, example_shape) for part in PARTS}
  except (ValueError, EOFError, FileNotFoundError):
    return None, f'{path} is damaged'
  made = sum(len(split) for split in splits.values())
  there = sum(
    len(open_reader(source, directory)) for source in sources.values()
  )
  least = sum(source.count for source in sources.values())
  # Of recordings that have since been removed, or some of them.
  if made == there or there < least <= made:
    return splits, ''
  return None, f'{path} is of {made:,} recordings, not {max(there, least):,}'


def _read_part(path, part, example_shape):
  images = np.load(path / f'{part}_images.npy', mmap_mode='r')
  labels = np.load(path / f'{part}_labels.npy')
  found = images.shape, images.dtype, labels.dtype
  if found != ((len(labels), *example_shape), np.uint8, np.int32):
    raise ValueError(f'{path} holds other arrays than its name says')
  return Split(images, labels)


# ---- making them


def _write(path, recordings, *, spec, config, num_steps):
  """Writes the frames of {'train', 'test'} to the directory `path`."""
  from tqdm import tqdm

  tasks = [(part, i) for part in PARTS for i in range(len(recordings[part]))]
  shape = spec.example_shape(num_steps)
  needed = len(tasks) * math.prod(shape)
  options = dict(
    num_steps=num_steps, framing=config['framing'], size=spec.image_shape[:2]
  )
  workers = config['workers'] or min(
    _cores(), 1 + len(tasks) // _WORTH_A_PROCESS
  )
  with (
    atomic_directory(path) as directory,
    room_for(path, needed=needed),
    contextlib.closing(_frames(recordings, tasks, options, workers)) as frames,
    tqdm(frames, total=len(tasks), desc=spec.name, disable=None) as bar,
  ):
    print(
      f'{spec.name}: {len(tasks):,} recordings become frames, '
      f'{megabytes(needed)}, in {path}',
      flush=True,
    )
    rows = iter(bar)
    for part in PARTS:
      labels = recordings[part].labels
      np.save(directory / f'{part}_labels.npy', labels)
      _write_array(
        directory / f'{part}_images.npy',
        itertools.islice(rows, len(labels)),
        shape=(len(labels), *shape),
      )


def _write_array(path, rows, *, shape):
  """Writes uint8 rows as one array.

  Not stored into mapped memory: there, a full disk ends the process.
  """
  header = {'descr': '|u1', 'fortran_order': False, 'shape': shape}
  with path.open('wb') as file:
    np.lib.format.write_array_header_1_0(file, header)
    for row in rows:
      file.write(row)


def _frames(recordings, tasks, options, workers) -> Iterator[np.ndarray]:
  """Yields the frames of each task (part, index), in this order."""
  if workers == 1:
    for task in tasks:
      yield _frame(recordings, options, task)
    return
  # Processes: tonic's readers and NumPy's indexing hold Python's lock. Spawned,
  # not forked: JAX has threads.
  with concurrent.futures.ProcessPoolExecutor(
    workers,
    mp_context=multiprocessing.get_context('spawn'),
    initializer=_Worker.start,
    initargs=(recordings, options),
  ) as pool:
    for start in range(0, len(tasks), _BLOCK):
      block = tasks[start : start + _BLOCK]
      try:
        for frames, warnings in pool.map(_Worker.run, block, chunksize=8):
          for warning in warnings:
            _log.warning(warning)
          yield frames
      except concurrent.futures.BrokenExecutor as error:
        files = [recordings[part].file(i) for part, i in (block[0], block[-1])]
        raise InputError(
          f'a process that read recordings between {files[0]} and {files[1]} '
          'was ended from outside (too little memory?), or one of these is '
          'damaged: set --config.data.workers=1'
        ) from error


def _frame(recordings, options, task):
  part, index = task
  source = recordings[part]
  return to_frames(
    source.read(index),
    sensor=source.sensor,
    name=source.file(index),
    **options,
  )


class _Worker:
  """What a process of the pool holds; it leaves its warnings to the parent."""

  recordings: Mapping[str, Recordings]
  options: Mapping
  warnings: list[str]

  @classmethod
  def start(cls, recordings, options):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the pool
    threading.Thread(target=cls._end_with_parent, daemon=True).start()
    cls.recordings, cls.options, cls.warnings = recordings, options, []
    handler = logging.Handler()
    handler.emit = lambda record: cls.warnings.append(record.getMessage())
    _log.addHandler(handler)

  @staticmethod
  def _end_with_parent():
    # However it ends: the pool does not see when it is killed.
    multiprocessing.parent_process().join()
    os._exit(1)

  @classmethod
  def run(cls, task):
    cls.warnings.clear()
    frames = _frame(cls.recordings, cls.options, task)
    return frames, tuple(cls.warnings)


def _cores():
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
