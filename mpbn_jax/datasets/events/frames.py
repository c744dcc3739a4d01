"""How do the events of a camera become frames, one a time step?

An event camera has no shutter: each pixel reports by itself, as an event,
that it got brighter (polarity 1) or darker (polarity 0). A recording is a
structured array with the fields t, x, y and p. Fields
are taken by name: each data set has another order of them. Pure NumPy.
"""

import functools
import logging

import numpy as np

from mpbn_jax.errors import InputError, unknown

_log = logging.getLogger('mpbn_jax')
FRAMINGS = ('count', 'time')
MOST = 255  # events of one polarity that a pixel of a frame can count


def check_framing(framing: str) -> None:
  """Raises InputError for a name that is in no registry."""
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
  """Returns how many events each pixel had, uint8 [T, H, W, 2].

  The last axis is the polarity. Counts above 255 become 255: uint8 is a
  quarter of the bytes on disk and on the way to the device, and a pixel with
  more events than that in a frame is a hot one.

  A smaller `size` keeps the pixels that nearest-neighbour interpolation of the
  summed frames takes, row floor(i * sensor height / height) for row i, as
  PyTorch's `interpolate(mode='nearest')`; the events of the others are lost.

  Args:
    events: structured [N], fields t (integers of any unit), x, y, p (0 or 1).
    num_steps: T, the number of frames.
    sensor: (height, width) in pixels of what the events come from.
    name: of the recording, for messages.
    framing: 'count': in the order of time, every frame holds N // T events (but
      at least one, while there are some), the last one the remainder, too.
      'time': frames of equal duration; the last event belongs to the last one.
    size: (H, W) of the frames, no side longer than the sensor's; None: the
      sensor's.

  Raises:
    InputError: an event outside the sensor, of another polarity, or of a time
      that cannot be.
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
  # Of every pixel of the sensor, the one of the frames; negative: none.
  pixels = _nearest(sensor, (height, width))[y * sensor[1] + x]
  indices = ((steps * (height * width)) + pixels) * 2 + p
  counts = np.bincount(indices[pixels >= 0], minlength=np.prod(shape))
  return np.minimum(counts, MOST, out=counts).astype(np.uint8).reshape(shape)


def _check(field, values, end, sensor, name):
  for value in (values.min(), values.max()):
    if not 0 <= value < end:
      raise InputError(
        f'expected events with {field} of 0 to {end - 1}, of a sensor of '
        f'{sensor}, got {field} = {value} in {name}: the file is damaged or '
        'of another sensor'
      )


def _by_count(times, num_steps, name):
  """Returns the frame of each event, of equally many."""
  del name
  each = max(len(times) // num_steps, 1)
  ends = np.minimum(np.arange(1, num_steps + 1) * each, len(times))
  ends[-1] = len(times)
  steps = np.repeat(np.arange(num_steps), np.diff(ends, prepend=0))
  if (times[1:] >= times[:-1]).all():  # nearly always, and quick to see
    return steps
  unsorted = np.empty_like(steps)
  unsorted[np.argsort(times, kind='stable')] = steps
  return unsorted


def _by_time(times, num_steps, name):
  """Returns the frame of each event, of equal duration."""
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
  """Returns where each pixel of the sensor goes, intp [height * width]."""
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
