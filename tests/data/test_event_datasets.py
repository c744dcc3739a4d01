"""Do recordings on the disk become the frames that a network trains on?"""

import dataclasses
import errno
import functools
import importlib
import os
import re
import resource
import shutil
import subprocess
import sys

import aedat4
import event_files as fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from mpbn_jax import InputError
from mpbn_jax.datasets import (
  cifar10_dvs,
  downloads,
  event_cache,
  get_spec,
  preparation,
)
from mpbn_jax.datasets.batches import TrainingBatches, evaluation_batches
from mpbn_jax.datasets.events import to_frames
from mpbn_jax.datasets.recordings import Recordings
from mpbn_jax.training import build_network

FRAMES = 'event_frames'
COUNTS = {
  name: {part: source.count for part, source in module.SOURCES.items()}
  for name in fakes.NAMES
  if (module := importlib.import_module(f'mpbn_jax.datasets.{name}'))
}


@pytest.fixture(autouse=True)
def _few(monkeypatch):
  fakes.expect_few(monkeypatch)


@pytest.fixture
def dvs(tmp_path):
  """Returns `data.dir` with the recordings of a small CIFAR10-DVS."""
  fakes.write(tmp_path, 'cifar10_dvs')
  return tmp_path


def _written(directory, *, label=3, number=4):
  """Returns the path of one recording of CIFAR10-DVS."""
  return directory / fakes.path_of('cifar10_dvs', '', label, number)


def _frames_of(events, name, **options):
  side = fakes.SIDES[name]
  return to_frames(
    events,
    num_steps=fakes.STEPS,
    sensor=(side, side),
    size=get_spec(name).image_shape[:2],
    name='written',
    **options,
  )


# ---- recordings to batches


@pytest.mark.parametrize('framing', ['count', 'time'])
@pytest.mark.parametrize('name', ['dvs_gesture', 'nmnist'])
def test_splits_are_the_official_parts_in_order(name, framing, tmp_path):
  written = fakes.write(tmp_path, name)
  dataset = fakes.load(tmp_path, name, framing=framing)
  assert set(dataset.splits) == {'train', 'test'}
  for split, part in (('train', 'Train'), ('test', 'Test')):
    expected = [
      (_frames_of(written[path], name, framing=framing), label)
      for label in range(dataset.spec.num_classes)
      for number in range(1, fakes.PER_CLASS + 1)
      if (path := fakes.path_of(name, part, label, number))
    ]
    images, labels = zip(*expected, strict=True)
    np.testing.assert_array_equal(dataset.splits[split].images, images)
    np.testing.assert_array_equal(dataset.splits[split].labels, labels)
    assert dataset.splits[split].images.dtype == np.uint8
    assert dataset.splits[split].labels.dtype == np.int32


@pytest.mark.parametrize('framing', ['count', 'time'])
def test_cifar10_dvs_is_split_by_the_numbers_of_its_files(framing, tmp_path):
  written = fakes.write(tmp_path, 'cifar10_dvs')
  splits = fakes.load(tmp_path, 'cifar10_dvs', framing=framing).splits
  paths = [
    fakes.path_of('cifar10_dvs', '', label, number)  # 2 comes before 10
    for label in range(10)
    for number in range(1, fakes.PER_CLASS + 1)
  ]
  labels = np.repeat(np.arange(10), fakes.PER_CLASS)
  train, test = _parts(labels)
  for name, part in (('train', train), ('test', test)):
    np.testing.assert_array_equal(splits[name].labels, labels[part])
    np.testing.assert_array_equal(
      splits[name].images,
      [
        _frames_of(written[paths[i]], 'cifar10_dvs', framing=framing)
        for i in part
      ],
    )


def _parts(labels):
  """Returns the indices of the parts of CIFAR10-DVS with these labels."""

  class Reader:
    targets = labels

  every = Recordings(Reader, np.arange(len(labels)))
  parts = cifar10_dvs._split({'all': every})
  return parts['train'].positions, parts['test'].positions


def test_cifar10_dvs_has_100_test_recordings_of_each_class():
  labels = np.repeat(np.arange(10), 1000)
  train, test = _parts(labels)
  assert (np.bincount(labels[train]) == 900).all()
  assert (np.bincount(labels[test]) == 100).all()
  both = np.sort(np.concatenate([train, test]))
  np.testing.assert_array_equal(both, np.arange(10_000))
  # Any other rule or seed draws others.
  assert test[:5].tolist() == [3, 7, 21, 29, 66]


@pytest.mark.parametrize('name', fakes.NAMES)
def test_batches_come_from_the_disk(name, tmp_path):
  fakes.write(tmp_path, name)
  dataset = fakes.load(tmp_path, name, roll=2)
  assert isinstance(dataset.splits['train'].images, np.memmap)
  batches = TrainingBatches(dataset, batch_size=16, seed=0)
  shape = (fakes.STEPS, *dataset.spec.image_shape)
  image = batches.batch(1)['image']
  assert type(image) is np.ndarray
  assert image.shape == (16, *shape)
  for batch in evaluation_batches(dataset, 'test', batch_size=7):
    assert batch['image'].shape == (7, *shape)


@pytest.mark.parametrize('name', fakes.NAMES)
def test_hidden_files_are_no_recordings(name, tmp_path):
  fakes.write(tmp_path, name)
  expected = fakes.load(tmp_path, name).splits['train'].labels
  path = tmp_path / fakes.path_of(name, 'Train', 3, 4)
  (path.parent / '.DS_Store').write_bytes(b'of a Macintosh')
  path.with_name(f'._{path.name}').write_bytes(b'of a Macintosh')
  (path.parent / '.hidden').mkdir()
  (path.parent / '.hidden' / path.name).write_bytes(b'of a Macintosh')
  again = fakes.load(tmp_path, name, num_steps=2).splits['train'].labels
  np.testing.assert_array_equal(again, expected)


def test_data_sets_have_as_many_recordings_as_their_archives():
  assert COUNTS == {
    'cifar10_dvs': {'all': 10_000},
    'dvs_gesture': {'train': 1077, 'test': 264},
    'nmnist': {'train': 60_000, 'test': 10_000},
  }


@pytest.mark.parametrize('name', [*fakes.NAMES, 'event_digits'])
def test_configuration_is_of_a_network_for_its_frames(name):
  config = importlib.import_module(f'configs.{name}').get_config()
  assert config.data.name == name
  model, spec, _ = build_network(config)
  x = jnp.zeros((1, *spec.example_shape(config.model.num_steps)))
  init = functools.partial(model.init_with_output, train=False)
  logits, _ = jax.eval_shape(init, jax.random.key(0), x)
  assert logits.shape == (1, spec.num_classes)


def test_command_trains_on_recordings(tmp_path, capsys):
  fakes.write(tmp_path, 'nmnist')
  where = ('--config.data.name=nmnist', f'--config.data.dir={tmp_path}')
  assert runs.run(tmp_path / 'run', *where) == 0
  out = capsys.readouterr().out
  assert 'nmnist: 200 recordings become frames' in out
  assert re.search(r'spikes that differ +0 of [1-9]', out)


# ---- the frames on the disk


def test_frames_are_made_once(dvs, capsys):
  first = fakes.load(dvs, 'cifar10_dvs').splits
  out = capsys.readouterr().out
  assert '100 recordings become frames, 1 MB, in ' in out
  fakes.remove_recordings(dvs)
  again = fakes.load(dvs, 'cifar10_dvs').splits
  assert capsys.readouterr().out == ''
  for part, split in first.items():
    np.testing.assert_array_equal(split.images, again[part].images)
    np.testing.assert_array_equal(split.labels, again[part].labels)


def test_other_parameters_make_other_frames(dvs):
  fakes.load(dvs, 'cifar10_dvs')
  fakes.load(dvs, 'cifar10_dvs', framing='time')
  other = fakes.load(dvs, 'cifar10_dvs', num_steps=5)
  assert other.example_shape == (5, 48, 48, 2)
  assert {path.name for path in (dvs / FRAMES).glob('[!.]*')} == {
    'cifar10_dvs-3-count-48x48-v2',
    'cifar10_dvs-3-time-48x48-v2',
    'cifar10_dvs-5-count-48x48-v2',
  }


def test_processes_make_the_same_frames_and_pass_warnings_on(dvs, caplog):
  aedat4.write(_written(dvs), fakes.recording(0, side=128)[:0])
  one = fakes.load(dvs, 'cifar10_dvs', workers=1).splits
  alone = caplog.messages[:]
  caplog.clear()
  (path,) = (dvs / FRAMES).glob('[!.]*')
  path.rename(dvs / 'moved')
  two = fakes.load(dvs, 'cifar10_dvs', workers=2).splits
  assert caplog.messages == alone
  assert len(alone) == 1
  for part, split in one.items():
    np.testing.assert_array_equal(split.images, two[part].images)


@pytest.mark.parametrize('size', [0, 60, 5000])
def test_truncated_frames_are_made_anew(size, dvs, caplog):
  first = fakes.load(dvs, 'cifar10_dvs').splits
  expected = {part: np.array(split.images) for part, split in first.items()}
  (path,) = (dvs / FRAMES).glob('*/train_images.npy')
  # Another file: mapped memory of a truncated one ends the process.
  content = path.read_bytes()
  path.unlink()
  path.write_bytes(content[:size])
  again = fakes.load(dvs, 'cifar10_dvs').splits
  assert len(caplog.messages) == 1
  assert f'{path.parent} is damaged: its frames are made anew' in caplog.text
  for part, split in again.items():
    np.testing.assert_array_equal(split.images, expected[part])


def test_damaged_frames_without_recordings_are_an_error(dvs, monkeypatch):
  fakes.load(dvs, 'cifar10_dvs')
  (path,) = (dvs / FRAMES).glob('*/test_labels.npy')
  path.unlink()
  fakes.remove_recordings(dvs)
  with pytest.raises(
    InputError,
    match=f"{path.parent} is damaged; expected 100 recordings of 'cifar10_dvs'",
  ):
    fakes.load(dvs, 'cifar10_dvs')
  message = f'{path.parent} is damaged; expected CIFAR10DVS.zip, got no down'
  monkeypatch.setattr(downloads, 'download', lambda url, path: 'no connection')
  with pytest.raises(InputError, match=message):
    fakes.prepare(dvs, 'cifar10_dvs')


def test_frames_of_other_recordings_are_made_anew(tmp_path, caplog):
  fakes.write(tmp_path, 'dvs_gesture')
  first = len(fakes.load(tmp_path, 'dvs_gesture').splits['train'])
  user = tmp_path / 'DVSGesture' / 'ibmGestureTrain' / 'user01_led'
  shutil.copytree(user, user.with_name('user11_led'))
  again = len(fakes.load(tmp_path, 'dvs_gesture').splits['train'])
  assert (first, again) == (110, 121)
  copies, message = caplog.messages
  assert '11 more than the archive' in copies
  (path,) = (tmp_path / FRAMES).glob('[!.]*')
  assert message == (
    f'{path} is of 220 recordings, not 231: its frames are made anew'
  )
  # They stay where recordings are removed, one by one or all.
  shutil.rmtree(user)
  shutil.rmtree(user.with_name('user11_led'))
  assert len(fakes.load(tmp_path, 'dvs_gesture').splits['train']) == 121


def test_frames_of_too_few_recordings_are_refused(dvs, monkeypatch):
  fakes.load(dvs, 'cifar10_dvs')
  fakes.remove_recordings(dvs)
  more = dataclasses.replace(cifar10_dvs.SOURCES['all'], count=101)
  monkeypatch.setitem(cifar10_dvs.SOURCES, 'all', more)
  with pytest.raises(InputError, match='is of 100 recordings, not 101; expec'):
    fakes.load(dvs, 'cifar10_dvs')


def test_what_a_killed_process_left_is_not_taken_for_frames(dvs):
  whole = fakes.load(dvs, 'cifar10_dvs').splits['train'].images
  (path,) = (dvs / FRAMES).glob('[!.]*')
  half = path.with_name(f'{path.name}.incomplete')
  path.rename(half)
  (half / 'test_images.npy').unlink()
  again = fakes.load(dvs, 'cifar10_dvs').splits['train'].images
  np.testing.assert_array_equal(again, whole)
  assert not half.exists()


LOAD = """
import logging, sys
logging.basicConfig(format='%(message)s', stream=sys.stdout)
sys.path[:0] = ['tests/data', '.']
import event_files, pytest
event_files.expect_few(pytest.MonkeyPatch())
print('starts', flush=True)
splits = event_files.load(sys.argv[1], 'cifar10_dvs').splits
print('sum', splits['train'].images.sum())
"""


def test_of_two_processes_one_waits_and_takes_what_the_other_made(dvs):
  path = event_cache.place(
    cifar10_dvs.SPEC, fakes.settings(dvs, 'cifar10_dvs'), num_steps=fakes.STEPS
  )
  with preparation.exclusive(path, what='the frames'):
    processes = [
      subprocess.Popen(
        [sys.executable, '-c', LOAD, str(dvs)],
        cwd=runs.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
      )
      for _ in range(2)
    ]
    for process in processes:
      assert process.stdout.readline() == 'starts\n'
      assert 'another process prepares it, waiting' in process.stdout.readline()
  outputs = [process.communicate(timeout=100)[0] for process in processes]
  assert sum('become frames' in out for out in outputs) == 1, outputs
  sums = {out.splitlines()[-1] for out in outputs}
  expected = fakes.load(dvs, 'cifar10_dvs').splits['train'].images.sum()
  assert sums == {f'sum {expected}'}


# ---- bad input


@pytest.mark.parametrize('name', fakes.NAMES)
def test_absent_recordings_say_what_to_do_at_once(name, tmp_path):
  with pytest.raises(InputError) as caught:
    fakes.load(tmp_path, name)
  message = str(caught.value)
  assert f'recordings of {name!r}' in message
  assert (
    f'run python main.py --mode=prepare --config.data.name={name} '
    f'--config.data.dir={tmp_path} --config.model.num_steps=3 '
    '--config.data.framing=count (without'
  ) in message
  assert f'into {tmp_path}' in message
  assert '\n' not in message
  assert fakes.files(tmp_path) == set()


def test_incomplete_recordings_are_not_taken_for_the_data_set(dvs):
  _written(dvs).unlink()
  with pytest.raises(InputError, match='100 recordings .* got 99: remove that'):
    fakes.load(dvs, 'cifar10_dvs')


@pytest.mark.parametrize(
  ('name', 'old', 'new'),
  [
    ('cifar10_dvs', 'bird', 'birds'),
    ('nmnist', 'Train/3', 'Train/x'),
    ('nmnist', 'Test/9', 'Test/10'),
    ('dvs_gesture', 'ibmGestureTrain/user03_led/10.npy', '{}/11.npy'),
    ('dvs_gesture', 'ibmGestureTest/user01_led/3.npy', '{}/-1.npy'),
    ('dvs_gesture', 'ibmGestureTest/user01_led/3.npy', '{}/copy.npy'),
  ],
)
def test_recording_of_no_class_is_named(name, old, new, tmp_path):
  fakes.write(tmp_path, name)
  (root,) = tmp_path.iterdir()
  new = root / new.format(old.rpartition('/')[0])
  (root / old).rename(new)
  with pytest.raises(InputError) as caught:
    fakes.load(tmp_path, name)
  assert re.search(
    rf'of the 1[01] classes of .*, got {new}\S*, which is of another: move it',
    str(caught.value),
  )


def test_directory_that_may_not_be_read_is_not_taken_for_an_empty_one(
  tmp_path, monkeypatch
):
  fakes.write(tmp_path, 'nmnist')
  secret = str(tmp_path / 'NMNIST' / 'Train' / '3')
  scandir = os.scandir

  def forbidden(path):  # who runs the tests may be allowed everything
    if os.fspath(path) == secret:
      raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), secret)
    return scandir(path)

  monkeypatch.setattr(os, 'scandir', forbidden)
  with pytest.raises(InputError, match=rf'got {secret} \(Permission denied\)'):
    fakes.load(tmp_path, 'nmnist')


def _with_broken_text(content):
  at = content.index(b'outInfo')
  return content[:at] + b'\xc3' + content[at + 1 :]


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize(
  'damage',
  [
    lambda content: b'',
    lambda content: content[:10],
    lambda content: content[:300],
    lambda content: content[:-5],
    lambda content: b'<html>404 Not Found</html>' * 20,
    lambda content: b'#!AER-DAT4.0\r\n' + bytes(2000),
    # The library that reads it would end the whole process.
    _with_broken_text,
  ],
)
def test_aedat4_that_does_not_parse_is_named(damage, dvs):
  path = _written(dvs)
  path.write_bytes(damage(path.read_bytes()))
  before = fakes.files(dvs)
  with pytest.raises(InputError) as caught:
    fakes.load(dvs, 'cifar10_dvs')
  assert f'got {path}, which cannot be read (' in str(caught.value)
  assert '\n' not in str(caught.value)
  assert fakes.files(dvs) == before


def test_npy_that_cannot_be_read_is_named(tmp_path):
  fakes.write(tmp_path, 'dvs_gesture')
  path = tmp_path / fakes.path_of('dvs_gesture', 'Test', 2, 3)
  path.write_bytes(path.read_bytes()[:-9])
  with pytest.raises(InputError, match=f'got {path}, which cannot be read'):
    fakes.load(tmp_path, 'dvs_gesture')


@pytest.mark.parametrize('size', [1, 2, 5 * 7 - 1])
def test_truncated_bin_is_named(size, tmp_path):
  fakes.write(tmp_path, 'nmnist')
  path = tmp_path / fakes.path_of('nmnist', 'Test', 2, 3)
  path.write_bytes(path.read_bytes()[:size])
  message = f'got {path}, which cannot be read .it is truncated: {size} bytes'
  with pytest.raises(InputError, match=message):
    fakes.load(tmp_path, 'nmnist')


@pytest.mark.parametrize('name', fakes.NAMES)
def test_recording_without_events_is_empty_and_named(name, tmp_path, caplog):
  fakes.write(tmp_path, name)
  # Any will do: of CIFAR10-DVS, one that is drawn for training.
  path = tmp_path / fakes.path_of(name, 'Train', 0, 1)
  fakes.WRITERS[name](path, fakes.recording(0, side=34)[:0])
  images = fakes.load(tmp_path, name).splits['train'].images
  assert caplog.messages == [f'{path} holds no events: its frames are empty']
  assert not images[0].any()
  assert images[1].any()


@pytest.mark.parametrize('name', fakes.NAMES)
def test_events_outside_the_sensor_are_named(name, tmp_path):
  fakes.write(tmp_path, name)
  path = tmp_path / fakes.path_of(name, 'Test', 5, 2)
  side = fakes.SIDES[name]
  events = fakes.recording(0, side=side)
  events['x'][7] = side
  fakes.WRITERS[name](path, events)
  message = f'sensor of {side}x{side} pixels, got x = {side} in {path}'
  with pytest.raises(InputError, match=message):
    fakes.load(tmp_path, name)
  assert not any('frames' in file for file in fakes.files(tmp_path))


def test_full_disk_is_seen_before_the_frames_are_made(dvs, monkeypatch, capsys):
  usage = preparation.shutil.disk_usage
  monkeypatch.setattr(
    preparation.shutil,
    'disk_usage',
    lambda path: usage(path)._replace(free=10**6),
  )
  before = fakes.files(dvs)
  with pytest.raises(
    InputError, match='for 1,382,400 bytes .* 1,000,000 bytes free'
  ):
    fakes.load(dvs, 'cifar10_dvs')
  assert capsys.readouterr().out == ''
  assert fakes.files(dvs) == before


@pytest.mark.parametrize('workers', [1, 2])
def test_full_disk_leaves_nothing_that_is_taken_for_frames(workers, dvs):
  before = fakes.files(dvs)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  # As a full disk: the system refuses to write, in the middle of a file.
  resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
  try:
    with pytest.raises(
      InputError, match='1,382,400 bytes .* bytes free: make room'
    ):
      fakes.load(dvs, 'cifar10_dvs', workers=workers)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert fakes.files(dvs) == before
  assert len(fakes.load(dvs, 'cifar10_dvs').splits['train'].images) == 90


def test_disk_that_is_full_only_at_the_end_leaves_nothing_either(
  dvs, monkeypatch
):
  before = fakes.files(dvs)

  def runs_full(descriptor):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(preparation.os, 'fsync', runs_full)
  with pytest.raises(InputError, match="'No space left on device' .* MB free"):
    fakes.load(dvs, 'cifar10_dvs')
  assert fakes.files(dvs) == before


def test_process_that_is_ended_from_outside_says_where(dvs, monkeypatch):
  monkeypatch.setattr(event_cache, '_Worker', _Ended)
  with pytest.raises(InputError, match='was ended from outside.*workers=1'):
    fakes.load(dvs, 'cifar10_dvs', workers=2)
  assert not any('frames' in file for file in fakes.files(dvs))


class _Ended:
  @staticmethod
  def start(recordings, options):
    pass

  @staticmethod
  def run(task):
    os._exit(1)


def test_unknown_framing_is_refused_before_anything_is_read(tmp_path):
  with pytest.raises(InputError, match="data.framing 'counts': expected one"):
    fakes.load(tmp_path, 'nmnist', framing='counts')
