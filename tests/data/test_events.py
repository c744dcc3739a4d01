"""Frames: a camera's events, each counted once and in its place."""

import logging

import numpy as np
import pytest
import tonic
from hypothesis import given, settings
from hypothesis import strategies as st

from mpbn_jax import InputError
from mpbn_jax.datasets.events.frames import FRAMINGS, to_frames

SENSOR = (11, 7)  # height, width
EVENT = np.dtype([('x', '<i2'), ('y', '<i2'), ('t', '<i8'), ('p', '?')])


def random_events(count, *, sensor=SENSOR, seed=0, dtype=EVENT):
  rng = np.random.default_rng(seed)
  events = np.zeros(count, dtype)
  events['t'] = np.sort(rng.integers(0, 10**6, count))
  events['y'] = rng.integers(0, sensor[0], count)
  events['x'] = rng.integers(0, sensor[1], count)
  events['p'] = rng.integers(0, 2, count)
  return events


def frames_of(events, *, num_steps=3, sensor=SENSOR, **options):
  return to_frames(
    events, num_steps=num_steps, sensor=sensor, name='one.bin', **options
  )


def reference(events, *, num_steps, framing, sensor=SENSOR, size=None):
  """Adds events one by one, then resizes as PyTorch's nearest does."""
  frames = np.zeros((num_steps, *sensor, 2), int)
  first, last = int(events['t'].min()), int(events['t'].max())
  each = max(len(events) // num_steps, 1)
  for i, event in enumerate(events):
    if framing == 'count':
      step = i // each
    elif last == first:
      step = 0
    else:
      step = (int(event['t']) - first) * num_steps // (last - first)
    step = min(step, num_steps - 1)
    frames[step, event['y'], event['x'], int(event['p'])] += 1
  for axis, (new, old) in enumerate(
    zip(size or sensor, sensor, strict=True), 1
  ):
    scale = np.float32(old) / np.float32(new)
    sampled = [int(np.floor(np.float32(i) * scale)) for i in range(new)]
    frames = frames.take(sampled, axis)
  return frames.clip(max=255)


@settings(max_examples=60, deadline=None)
@given(
  st.integers(1, 40),
  st.integers(1, 9),
  st.sampled_from(FRAMINGS),
  st.tuples(st.integers(1, SENSOR[0]), st.integers(1, SENSOR[1])),
  st.integers(0, 9),
)
def test_frames_are_those_of_a_slow_loop(count, steps, framing, size, seed):
  events = random_events(count, seed=seed)
  frames = frames_of(events, num_steps=steps, framing=framing, size=size)
  assert frames.dtype == np.uint8
  np.testing.assert_array_equal(
    frames, reference(events, num_steps=steps, framing=framing, size=size)
  )


@pytest.mark.parametrize('size', [48, 64, 128])
@pytest.mark.parametrize('framing', FRAMINGS)
def test_resizing_takes_the_pixels_that_nearest_interpolation_takes(
  size, framing
):
  sensor = (128, 128)
  options = dict(num_steps=2, sensor=sensor, framing=framing, size=(size, size))
  events = random_events(20_000, sensor=sensor)
  frames = frames_of(events, **options)
  assert frames.shape == (2, size, size, 2)
  np.testing.assert_array_equal(frames, reference(events, **options))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 9), st.sampled_from(FRAMINGS))
def test_no_event_is_lost(count, num_steps, framing):
  events = random_events(count)
  frames = frames_of(events, num_steps=num_steps, framing=framing)
  assert frames.sum() == count
  assert frames[..., 1].sum() == events['p'].sum()


def test_frames_hold_equally_many_events_and_the_last_one_the_remainder():
  frames = frames_of(random_events(23), num_steps=5)
  assert frames.sum((1, 2, 3)).tolist() == [4, 4, 4, 4, 7]


def test_fewer_events_than_frames_come_one_in_each():
  frames = frames_of(random_events(3), num_steps=5)
  assert frames.sum((1, 2, 3)).tolist() == [1, 1, 1, 0, 0]


def test_frames_of_equal_time_hold_the_events_of_that_time():
  events = random_events(6)
  events['t'] = [100, 101, 149, 150, 151, 200]
  frames = frames_of(events, num_steps=2, framing='time')
  assert frames.sum((1, 2, 3)).tolist() == [3, 3]


@pytest.mark.parametrize('framing', FRAMINGS)
def test_order_of_the_events_in_the_file_changes_nothing(framing):
  events = random_events(200)
  events['t'] = np.arange(200)
  shuffled = np.random.default_rng(0).permutation(events)
  np.testing.assert_array_equal(
    frames_of(shuffled, framing=framing), frames_of(events, framing=framing)
  )


def test_events_of_one_moment_keep_the_order_of_the_file():
  events = random_events(4)
  events['t'] = [5, 9, 9, 1]
  events['x'], events['y'], events['p'] = [1, 2, 3, 0], 0, 0
  frames = frames_of(events, num_steps=4)
  assert frames[:, 0, :4, 0].argmax(1).tolist() == [0, 1, 2, 3]


def test_time_that_cannot_be_is_named():
  events = random_events(9, dtype=tonic.datasets.CIFAR10DVS.dtype)
  events['t'][-1] = 2**63 + 5
  with pytest.raises(
    InputError, match=f' apart, got .* and {2**63 + 5} in one.bin: the file'
  ):
    frames_of(events, framing='time')
  assert frames_of(events, framing='count').sum() == 9


@pytest.mark.parametrize('framing', FRAMINGS)
def test_events_of_one_moment_are_all_there(framing):
  events = random_events(6)
  events['t'] = 7
  assert frames_of(events, framing=framing).sum() == 6


@pytest.mark.parametrize('framing', FRAMINGS)
@pytest.mark.parametrize(
  'dtype',
  [
    tonic.datasets.CIFAR10DVS.dtype,
    tonic.datasets.DVSGesture.dtype,
    tonic.datasets.NMNIST.dtype,
  ],
)
def test_order_and_type_of_the_fields_change_nothing(dtype, framing):
  np.testing.assert_array_equal(
    frames_of(random_events(500, dtype=dtype), framing=framing),
    frames_of(random_events(500), framing=framing),
  )


def test_frames_are_tonics():
  events = random_events(3000)
  events['t'] = np.linspace(0, 3 * 10**5, 3000)  # tonic rounds the duration
  sensor = (*SENSOR[::-1], 2)

  def tonics(**bins):
    frames = tonic.transforms.ToFrame(sensor_size=sensor, **bins)(events)
    return np.moveaxis(frames, 1, -1)

  by_count = tonics(n_event_bins=3)
  np.testing.assert_array_equal(frames_of(events, framing='count'), by_count)
  # tonic drops the last event.
  by_time = tonics(n_time_bins=3)
  last = events[-1]
  by_time[-1, last['y'], last['x'], int(last['p'])] += 1
  np.testing.assert_array_equal(frames_of(events, framing='time'), by_time)


def test_counts_above_255_become_255():
  events = np.zeros(1000, EVENT)
  frames = frames_of(events, num_steps=2)
  assert frames[:, 0, 0, 0].tolist() == [255, 255]


@pytest.mark.parametrize(
  ('field', 'value', 'message'),
  [
    (
      'x',
      7,
      'x from 0 to 6, for a sensor of 7x11 pixels, got x = 7 in one.bin',
    ),
    ('x', -1, 'x from 0 to 6, .* got x = -1 in one.bin'),
    ('y', 11, 'y from 0 to 10, .* got y = 11 in one.bin'),
    (
      'p',
      2,
      'p from 0 to 1, for a sensor of two polarities, got p = 2 in one.bin',
    ),
    ('p', -1, 'p from 0 to 1, .* got p = -1 in one.bin'),
  ],
)
def test_event_outside_the_sensor_is_refused(field, value, message):
  events = random_events(5, dtype=np.dtype([(name, 'i4') for name in 'txyp']))
  events[field][3] = value
  with pytest.raises(InputError, match=message):
    frames_of(events)


@pytest.mark.parametrize('framing', FRAMINGS)
def test_recording_without_events_gives_empty_frames_and_a_warning(
  framing, caplog
):
  with caplog.at_level(logging.WARNING, 'mpbn_jax'):
    frames = frames_of(random_events(0), framing=framing, size=(5, 4))
  assert frames.shape == (3, 5, 4, 2)
  assert not frames.any()
  assert caplog.messages == ['one.bin holds no events: its frames are empty']


def test_unknown_framing_lists_the_known_ones():
  with pytest.raises(InputError, match="'counts': expected one of count, time"):
    frames_of(random_events(5), framing='counts')


def test_frames_larger_than_the_sensor_are_refused():
  with pytest.raises(InputError, match=r'at most \(11, 7\).*got \(12, 7\)'):
    frames_of(random_events(5), size=(12, 7))
