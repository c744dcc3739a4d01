"""Recordings and frames of events that are refused, or named, when loaded."""

import event_files
import numpy as np
import pytest

from mpbn_jax import InputError
from mpbn_jax.datasets.events.frames import to_frames
from mpbn_jax.datasets.events.tonic_readers import check_columns


@pytest.mark.parametrize('array', ['images', 'labels'])
def test_frames_of_another_type_on_the_disk_are_made_anew(
  array, tmp_path, monkeypatch, caplog
):
  event_files.expect_few(monkeypatch)
  event_files.write(tmp_path, 'nmnist')
  before = event_files.load(tmp_path, 'nmnist').splits['test']
  (file,) = tmp_path.glob(f'event_frames/*/test_{array}.npy')
  images = before.images.copy()  # the file below it is written anew
  np.save(file, np.load(file).astype(np.int16))
  after = event_files.load(tmp_path, 'nmnist').splits['test']
  assert 'is damaged: making its frames again' in caplog.text
  np.testing.assert_array_equal(after.images, images)
  np.testing.assert_array_equal(after.labels, before.labels)


@pytest.mark.parametrize(
  ('name', 'old', 'new'),
  [
    ('dvs_gesture', 'ibmGestureTrain/user03_led/7.npy', '07.npy'),
    ('dvs_gesture', 'ibmGestureTrain/user03_led/7.npy', '1_0.npy'),
    ('nmnist', 'Train/7', '07'),
    ('cifar10_dvs', 'cat', 'Cat'),
  ],
)
def test_names_that_only_look_like_a_class_are_refused(
  name, old, new, tmp_path, monkeypatch
):
  event_files.expect_few(monkeypatch)
  event_files.write(tmp_path, name)
  (source,) = tmp_path.glob(f'*/{old}')
  source.rename(source.with_name(new))
  with pytest.raises(InputError, match='which belongs to another class'):
    event_files.load(tmp_path, name)


def test_more_recordings_than_the_archive_has_are_named(
  tmp_path, monkeypatch, caplog
):
  event_files.expect_few(monkeypatch)
  event_files.write(tmp_path, 'nmnist')
  folder = tmp_path / 'NMNIST' / 'Train' / '3'
  copy = (folder / '00001.bin').read_bytes()
  (folder / '00001 (1).bin').write_bytes(copy)
  event_files.load(tmp_path, 'nmnist')
  assert "101 recordings of 'nmnist', 1 more than the archive" in caplog.text


EVENTS = np.array([[3, 4, 1, 10], [5, 6, 0, 20]], float)


@pytest.mark.parametrize(
  ('column', 'value', 'message'),
  [
    (0, np.nan, 'NaN'),
    (3, np.inf, 'infinity'),
    (1, 3.5, 'are not pixels'),
    (0, -1, 'are not pixels'),
    (0, 2**16 + 3, 'are not pixels'),
    (2, 7, 'polarities other than 0 and 1'),
    (2, 0.5, 'polarities other than 0 and 1'),
  ],
)
def test_numbers_that_tonic_would_cut_off_are_refused(column, value, message):
  check_columns(EVENTS)
  bad = EVENTS.copy()
  bad[1, column] = value
  with pytest.raises(ValueError, match=message):
    check_columns(bad)
  with pytest.raises(ValueError, match=r'float64 \[2, 3\]'):
    check_columns(EVENTS[:, :3])


@pytest.mark.parametrize('field', 'txyp')
def test_events_with_broken_numbers_are_refused(field):
  kinds = dict.fromkeys('txyp', 'i8') | {field: 'f8'}
  events = np.ones(5, list(kinds.items()))
  with pytest.raises(InputError, match=f'whole numbers as {field}, got float'):
    to_frames(events, num_steps=2, sensor=(4, 4), name='a', framing='time')
