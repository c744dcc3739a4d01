"""The `event_digits`: what an event camera sees of the `digits`."""

import zlib

import numpy as np
import pytest
from mpbn_jax.configs.default import get_config
from sklearn.datasets import load_digits

from mpbn_jax import InputError
from mpbn_jax.datasets import load_dataset
from mpbn_jax.datasets.embedded import event_digits

OFF = get_config().data.to_dict()
END = 3 * event_digits.SACCADE


def _load(name='event_digits', num_steps=3, **data):
  return load_dataset({**OFF, 'name': name, **data}, num_steps=num_steps)


def _record(indices, *, centred=False):
  indices = np.array(indices)
  offsets = event_digits.offsets(indices) * (not centred)
  return event_digits.record(load_digits().images[indices], offsets=offsets)


def test_examples_are_those_of_the_digits_and_split_alike():
  frames, digits = _load(), _load('digits')
  assert frames.splits.keys() == digits.splits.keys()
  for part, split in frames.splits.items():
    np.testing.assert_array_equal(split.labels, digits.splits[part].labels)
    assert split.images.shape == (len(split.labels), 3, 16, 16, 2)
    assert split.images.dtype == np.uint8
    assert split.images.any((1, 2, 3, 4)).all()


@pytest.mark.parametrize(
  ('framing', 'checksum'), [('count', 660880253), ('time', 2328126661)]
)
def test_frames_are_the_same_in_any_process(framing, checksum):
  splits = _load(framing=framing).splits
  found = 0
  for part in ('train', 'validation', 'test'):
    found = zlib.crc32(np.ascontiguousarray(splits[part].images), found)
  assert found == checksum


def test_recording_does_not_depend_on_the_others():
  together = _record(range(300))
  for index in (0, 7, 255, 256, 299):
    (alone,) = _record([index])
    np.testing.assert_array_equal(alone, together[index])


def test_events_come_in_time_and_on_the_sensor():
  for events in _record(range(40)):
    assert 300 < len(events) < 2000
    assert (np.diff(events['t']) >= 0).all()
    assert events['t'].min() >= 0
    assert events['t'].max() < END
    for axis in 'xy':
      assert events[axis].min() >= 0
      assert events[axis].max() < event_digits.SIDE


def _events_of_a_slow_camera(picture):
  """Follows each pixel alone; returns {(x, y): [(t, p), ...]}."""
  step = event_digits.SACCADE // event_digits.MOMENTS
  threshold = round(event_digits.THRESHOLD * 2**16)
  levels = [
    event_digits.log_brightness(picture[None], position)[0]
    for position in event_digits.positions()
  ]
  events = {}
  for y, x in np.ndindex(levels[0].shape):
    reference = int(levels[0][y, x])
    for index in range(len(levels) - 1):
      begin, end = int(levels[index][y, x]), int(levels[index + 1][y, x])
      while abs(end - reference) >= threshold:
        brighter = end > reference
        reference += threshold if brighter else -threshold
        share = abs(reference - begin) * step // abs(end - begin)
        events.setdefault((x, y), []).append((index * step + share, brighter))
  return events


@pytest.mark.parametrize('index', [0, 5, 1234])
def test_events_are_those_of_a_slow_camera(index):
  (events,) = _record([index], centred=True)
  found = {}
  for x, y, t, p in events.tolist():
    found.setdefault((x, y), []).append((t, p))
  assert found == _events_of_a_slow_camera(load_digits().images[index])


def test_events_tell_the_brightness_to_within_the_threshold():
  picture = load_digits().images[:1]
  levels = [
    event_digits.log_brightness(picture, position)[0] / 2**16
    for position in event_digits.positions()
  ]
  (events,) = _record([0], centred=True)
  for index, level in enumerate(levels):
    seen = events[events['t'] < index * (END // (len(levels) - 1))]
    change = np.zeros(level.shape)
    signs = np.where(seen['p'], 1, -1) * event_digits.THRESHOLD
    np.add.at(change, (seen['y'], seen['x']), signs)
    error = np.abs(levels[0] + change - level).max()
    assert error < 1.001 * event_digits.THRESHOLD  # whole units of it


def test_first_saccade_brightens_what_the_digit_moves_onto():
  picture = np.zeros((1, 8, 8))
  picture[0, 3:5, 3:5] = 16
  (events,) = event_digits.record(picture, offsets=np.zeros((1, 2), int))
  first = events[events['t'] < event_digits.SACCADE]
  brighter, darker = first[first['p']], first[~first['p']]
  assert brighter['y'].mean() > darker['y'].mean() + 1  # it moves down
  assert brighter['x'].mean() > darker['x'].mean() + 0.5  # and to the right


def test_picture_without_a_digit_makes_no_events():
  blank = np.full((2, 8, 8), 0)
  (one, other) = event_digits.record(blank, offsets=np.zeros((2, 2), int))
  assert len(one) == len(other) == 0


def test_offset_moves_the_events():
  picture = load_digits().images[:1]
  centre, moved = (
    event_digits.record(picture, offsets=np.array([offset]))[0]
    for offset in ((0, 0), (1, -1))
  )
  centre = centre[(centre['y'] < 15) & (centre['x'] > 0)]
  np.testing.assert_array_equal(centre['y'] + 1, moved['y'])
  np.testing.assert_array_equal(centre['x'] - 1, moved['x'])
  np.testing.assert_array_equal(centre['t'], moved['t'])


def test_offsets_are_drawn_in_their_whole_range():
  offsets = event_digits.offsets(np.arange(300))
  assert len(np.unique(offsets, axis=0)) == 9
  np.testing.assert_array_equal(offsets[7], event_digits.offsets([7])[0])


def test_unknown_framing_is_refused():
  with pytest.raises(InputError, match="data.framing 'counts': expected one"):
    _load(framing='counts')
