"""Event frames, one per time step.

An event camera has no shutter: each pixel independently emits an event when it
becomes brighter (polarity 1) or darker (polarity 0). A recording is a
structured array with the fields t, x, y and p, in an order that depends on the
data set. Pure NumPy.
"""

import functools
import logging

import numpy as np

from mpbn_jax.errors import InputError, unknown

_log = logging.getLogger('mpbn_jax')
FRAMINGS = ('count', 'time')
MOST = 255  # largest count of events per pixel, frame and polarity


def check_framing(framing: str) -> None:
  """Raises InputError for an unknown framing."""
  if framing not in FRAMINGS:
    raise unknown('data.framing', framing, FRAMINGS)


def to_frames(
  events: np.ndarray,
  *,
  num_steps: int,
  sensor: tuple[int, int],
  name: str,
  framing: str = 'count',
  size: tuple[int, int] | None = None,
) -> np.ndarray:
  """Returns the number of events per pixel, uint8 [T, H, W, 2].

  The last axis is the polarity. Counts saturate at 255: uint8 takes a quarter
  of the bytes of float32 on disk and in transfers to the device, and a pixel
  with more events in a frame is defective.

  A `size` smaller than the sensor keeps the pixels that nearest-neighbour
  interpolation of the frames would select (row floor(i * sensor height /
  height) for row i, like PyTorch's `interpolate(mode='nearest')`); the events
  of other pixels are dropped.

  Args:
    events: structured [N], fields t (integers in any unit), x, y, p (0 or 1).
    num_steps: T, the number of frames.
    sensor: (height, width) of the camera in pixels.
    name: name of the recording, for messages.
    framing: with 'count', each frame holds N // T events in temporal order (at
      least one, as long as there are any), and the last one also the remainder.
      With 'time', all frames have equal duration, and the last event is in the
      last frame.
    size: (H, W) of the frames, at most the sensor's; None uses the sensor's.

  Raises:
    InputError: an event lies outside the sensor, or its polarity or time is
      invalid.
  """
  check_framing(framing)
  height, width = size or sensor
  shape = (num_steps, height, width, 2)
  if not len(events):
    _log.warning('%s holds no events: its frames are empty', name)
    return np.zeros(shape, np.uint8)
  for field in 'txyp':
    if events[field].dtype.kind not in 'iub':
      raise InputError(
        f'expected events with whole numbers as {field}, got '
        f'{events[field].dtype} in {name}: scale (times) and round them'
      )
  x, y, p = (events[field].astype(np.intp) for field in 'xyp')
  for field, values, end in (('x', x, sensor[1]), ('y', y, sensor[0])):
    _check(field, values, end, f'{sensor[1]}x{sensor[0]} pixels', name)
  _check('p', p, 2, 'two polarities', name)
  by = _by_count if framing == 'count' else _by_time
  steps = by(events['t'], num_steps, name)
  # Maps sensor pixels to frame pixels; -1 for dropped ones.
  pixels = _nearest(sensor, (height, width))[y * sensor[1] + x]
  indices = ((steps * (height * width)) + pixels) * 2 + p
  counts = np.bincount(indices[pixels >= 0], minlength=np.prod(shape))
  return np.minimum(counts, MOST, out=counts).astype(np.uint8).reshape(shape)


def _check(field, values, end, sensor, name):
  for value in (values.min(), values.max()):
    if not 0 <= value < end:
      raise InputError(
        f'expected events with {field} from 0 to {end - 1}, for a sensor of '
        f'{sensor}, got {field} = {value} in {name}: the file is damaged or '
        'from another sensor'
      )


def _by_count(times, num_steps, name):
  """Returns the frame of each event, for frames with equal event counts."""
  del name
  each = max(len(times) // num_steps, 1)
  ends = np.minimum(np.arange(1, num_steps + 1) * each, len(times))
  ends[-1] = len(times)
  steps = np.repeat(np.arange(num_steps), np.diff(ends, prepend=0))
  if (times[1:] >= times[:-1]).all():  # nearly always true and cheap to check
    return steps
  unsorted = np.empty_like(steps)
  unsorted[np.argsort(times, kind='stable')] = steps
  return unsorted


def _by_time(times, num_steps, name):
  """Returns the frame of each event, for frames of equal duration."""
  first, last = int(times.min()), int(times.max())
  most = np.iinfo(np.int64).max // num_steps
  if last - first > most:
    raise InputError(
      f'expected time stamps that are at most {most:,} apart, got {first} and '
      f'{last} in {name}: the file is damaged'
    )
  elapsed = (times - times.min()).astype(np.int64)
  return np.minimum(elapsed * num_steps // max(last - first, 1), num_steps - 1)


@functools.lru_cache(maxsize=8)
def _nearest(sensor, size):
  """Returns the frame pixel of each sensor pixel, intp [height * width]."""
  if any(new > old for new, old in zip(size, sensor, strict=True)):
    raise InputError(
      f'expected frames of at most {sensor} pixels, the size of the sensor, '
      f'got {size}'
    )
  rows, columns = (
    np.arange(new) * old // new for new, old in zip(size, sensor, strict=True)
  )
  pixels = np.full(sensor, -1, np.intp)
  pixels[np.ix_(rows, columns)] = np.arange(size[0] * size[1]).reshape(size)
  return pixels.ravel()
