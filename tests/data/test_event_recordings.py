"""Recordings of events that are missing, misplaced or damaged."""

import errno
import os
import re
import sys

import event_files as fakes
import pytest

from mpbn_jax import InputError

pytestmark = pytest.mark.usefixtures('few_recordings')


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
  fakes.of_cifar10_dvs(dvs).unlink()
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
    rf'of the 1[01] classes of .*, got {new}\S*, which belongs to another '
    'class: move it',
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


def test_missing_package_says_what_to_install(dvs, monkeypatch):
  for module in ('tonic', 'mpbn_jax.datasets.events.tonic_readers'):
    monkeypatch.delitem(sys.modules, module, raising=False)
  monkeypatch.delattr('mpbn_jax.datasets.events.tonic_readers', raising=False)
  monkeypatch.setitem(sys.modules, 'tonic', None)
  monkeypatch.setitem(sys.modules, 'tonic.datasets', None)
  with pytest.raises(InputError, match=r'got no tonic.*mpbn_jax\[events\]'):
    fakes.load(dvs, 'cifar10_dvs')


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
  path = fakes.of_cifar10_dvs(dvs)
  path.write_bytes(damage(path.read_bytes()))
  before = fakes.files(dvs)
  with pytest.raises(InputError) as caught:
    fakes.load(dvs, 'cifar10_dvs')
  assert f'expected to read {path}, got ' in str(caught.value)
  assert '\n' not in str(caught.value)
  assert fakes.files(dvs) == before


def test_npy_that_cannot_be_read_is_named(tmp_path):
  fakes.write(tmp_path, 'dvs_gesture')
  path = tmp_path / fakes.path_of('dvs_gesture', 'Test', 2, 3)
  path.write_bytes(path.read_bytes()[:-9])
  with pytest.raises(InputError, match=f'expected to read {path}, got '):
    fakes.load(tmp_path, 'dvs_gesture')


@pytest.mark.parametrize('size', [1, 2, 5 * 7 - 1])
def test_truncated_bin_is_named(size, tmp_path):
  fakes.write(tmp_path, 'nmnist')
  path = tmp_path / fakes.path_of('nmnist', 'Test', 2, 3)
  path.write_bytes(path.read_bytes()[:size])
  message = f'expected to read {path}, got it is truncated: {size} bytes'
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


def test_unknown_framing_is_refused_before_anything_is_read(tmp_path):
  with pytest.raises(InputError, match="data.framing 'counts': expected one"):
    fakes.load(tmp_path, 'nmnist', framing='counts')
