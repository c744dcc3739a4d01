"""Small data sets of events on the disk, in their true formats."""

import dataclasses
import importlib
import pathlib
import shutil

import aedat4
import numpy as np
from mpbn_jax.configs.default import get_config

from mpbn_jax.datasets import get_spec, load_dataset

NAMES = ('cifar10_dvs', 'dvs_gesture', 'nmnist')
EVENT = np.dtype([('t', '<i8'), ('x', '<i2'), ('y', '<i2'), ('p', '?')])
OFF = {k: v for k, v in get_config().data.items() if k != 'name'}
PER_CLASS = 10  # of each part
STEPS = 3


def recording(seed, *, side):
  """Returns events that no other seed has; times are whole milliseconds."""
  rng = np.random.default_rng(seed)
  events = np.zeros(30 + seed % 7, EVENT)
  events['t'] = np.sort(rng.integers(0, 500, len(events))) * 1000
  events['x'], events['y'] = rng.integers(0, side, (2, len(events)))
  events['p'] = rng.integers(0, 2, len(events))
  return events


def write_npy(path, events):
  """As tonic's form of DVS128 Gesture: columns x, y, p and t in ms."""
  columns = [events['x'], events['y'], events['p'], events['t'] // 1000]
  np.save(path, np.stack(columns, 1).astype(np.int64).reshape(-1, 4))


def write_bin(path, events):
  """As N-MNIST: x, y, then the polarity in one bit and the time in 23."""
  p, t = events['p'].astype(int) << 7, events['t']
  rows = [events['x'], events['y'], p | t >> 16, t >> 8 & 255, t & 255]
  path.write_bytes(np.stack(rows, 1).astype(np.uint8).tobytes())


WRITERS = {
  'cifar10_dvs': aedat4.write,
  'dvs_gesture': write_npy,
  'nmnist': write_bin,
}
SIDES = {'cifar10_dvs': 128, 'dvs_gesture': 128, 'nmnist': 34}


def path_of(name, part, label, number):
  """Returns where a recording lies below `data.dir`."""
  if name == 'cifar10_dvs':
    kind = get_spec(name).class_names[label]
    return f'CIFAR10DVS/{kind}/cifar10_{kind}_{number}.aedat4'
  if name == 'dvs_gesture':
    return f'DVSGesture/ibmGesture{part}/user{number:02}_led/{label}.npy'
  return f'NMNIST/{part}/{label}/{number:05}.bin'


def of_cifar10_dvs(directory, *, label=3, number=4):
  """Returns the path of one recording of CIFAR10-DVS."""
  return directory / path_of('cifar10_dvs', '', label, number)


def write(directory: pathlib.Path, name: str) -> dict[str, np.ndarray]:
  """Writes a small data set; returns {relative path: its events}.

  In an order in which nobody should read it: the last one first.
  """
  parts = ('',) if name == 'cifar10_dvs' else ('Train', 'Test')
  written = {}
  for part in parts:
    for label in range(get_spec(name).num_classes):
      for number in range(1, PER_CLASS + 1):
        events = recording(len(written), side=SIDES[name])
        written[path_of(name, part, label, number)] = events
  for path, events in reversed(written.items()):
    (directory / path).parent.mkdir(parents=True, exist_ok=True)
    WRITERS[name](directory / path, events)
  return written


def expect_few(monkeypatch) -> None:
  """Makes the data sets content with as many recordings as `write` writes."""
  for name in NAMES:
    module = importlib.import_module(f'mpbn_jax.datasets.events.{name}')
    count = PER_CLASS * get_spec(name).num_classes
    for part, source in module.COLLECTIONS.items():
      few = dataclasses.replace(source, count=count)
      monkeypatch.setitem(module.COLLECTIONS, part, few)


def settings(directory, name, **data):
  """Returns `config.data`."""
  return {**OFF, 'name': name, 'dir': str(directory), **data}


def load(directory, name, *, num_steps=STEPS, **data):
  """Returns the `Dataset`."""
  return load_dataset(settings(directory, name, **data), num_steps=num_steps)


def prepare(directory, name, **data):
  """Does as --mode=prepare."""
  module = importlib.import_module(f'mpbn_jax.datasets.events.{name}')
  config = settings(directory, name, **data)
  module.prepare(get_spec(name), config, num_steps=STEPS)


def remove_recordings(directory):
  """Leaves the frames alone."""
  for folder in ('CIFAR10DVS', 'DVSGesture', 'NMNIST'):
    shutil.rmtree(directory / folder, ignore_errors=True)


def files(directory):
  """Returns the relative paths of all files but the locks."""
  return {
    str(path.relative_to(directory))
    for path in directory.rglob('*')
    if path.is_file() and path.suffix != '.lock'
  }
