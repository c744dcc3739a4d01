"""The `event_digits`: the `digits` as a simulated event camera sees them.

scikit-learn's 1,797 digits move across a sensor of 16x16 pixels along a
triangle of three saccades of 0.1 s each, as in N-MNIST; no download is needed.
A camera model turns the movement into events:

    L[t] = log(DARK + brightness[t])
    A pixel emits an event whenever L differs from its reference by THRESHOLD,
    and the reference follows. Polarity is 1 for brighter, 0 for darker. L is
    interpolated linearly between two moments, which gives the time of an event
    in microseconds.

Brightness, L and time are integers in fixed units, so that every machine
produces the same events. The data set's seed and the index of a digit determine
its small offset from the centre. The split is that of the `digits`.
"""

import functools
import itertools
from collections.abc import Mapping

import numpy as np

from mpbn_jax.datasets.base import Spec, Split
from mpbn_jax.datasets.embedded import digits
from mpbn_jax.datasets.events.frames import check_framing, to_frames
from mpbn_jax.datasets.splits import split_stratified

SEED = 0
SIDE = 16  # side of the sensor, in pixels
SCALE = 1.5  # sensor pixels per digit pixel
OFF_CENTRE = 1  # largest offset of a digit, in pixels, in both directions
# Corners of the path in pixels (down, right); it ends where it began.
CORNERS = ((-1.5, -1.5), (1.5, 0.0), (-1.5, 1.5), (-1.5, -1.5))
SACCADE = 100_000  # microseconds from one corner to the next
MOMENTS = 12  # moments per saccade at which brightness is computed
DARK = 0.15  # brightness of the background; the brightest pen adds 1
THRESHOLD = 0.3  # threshold of the change in log brightness
EVENT = np.dtype([('x', '<i2'), ('y', '<i2'), ('t', '<i8'), ('p', '?')])

SPEC = Spec(
  name='event_digits',
  image_shape=(SIDE, SIDE, 2),
  class_names=digits.SPEC.class_names,
  max_value=1,  # frames count events, and stay counts
  mean=(0.0, 0.0),
  std=(1.0, 1.0),
  frames=True,
)

_WEIGHT = 64  # units of an interpolation's weight
_BRIGHT = digits.SPEC.max_value * _WEIGHT**2  # units of brightness 1.0
_LOG = 2**16  # units of log brightness
_THRESHOLD = round(THRESHOLD * _LOG)
_STEP = SACCADE // MOMENTS  # microseconds
_BLOCK = 256  # recordings simulated at once: their arrays stay in the cache


def load(spec: Spec, config: Mapping, *, num_steps: int) -> dict[str, Split]:
  """Returns the splits; takes seconds, so nothing is stored on disk."""
  check_framing(config['framing'])
  pictures, labels = digits.read()
  recordings = record(pictures, offsets=offsets(np.arange(len(pictures))))
  frames = np.stack(
    [
      to_frames(
        events,
        num_steps=num_steps,
        sensor=spec.image_shape[:2],
        framing=config['framing'],
        name=f'{spec.name} {index}',
      )
      for index, events in enumerate(recordings)
    ]
  )
  parts = split_stratified(labels, shares=digits.SHARES, seed=digits.SPLIT_SEED)
  names = ('train', 'validation', 'test')
  return {
    name: Split(frames[part], labels[part])
    for name, part in zip(names, parts, strict=True)
  }


def offsets(indices: np.ndarray) -> np.ndarray:
  """Returns the offsets of these digits, int [N, 2] (down, right)."""
  draws = [
    np.random.default_rng([SEED, index]).integers(
      -OFF_CENTRE, OFF_CENTRE + 1, 2
    )
    for index in indices
  ]
  return np.array(draws)


def record(pictures: np.ndarray, *, offsets: np.ndarray) -> list[np.ndarray]:
  """Returns the events of each picture, arrays of `EVENT` sorted by time.

  Args:
    pictures: integers 0 to 16, [N, 8, 8].
    offsets: offsets of their centres in pixels, int [N, 2].
  """
  return [
    events
    for start in range(0, len(pictures), _BLOCK)
    for events in _record_block(
      pictures[start : start + _BLOCK], offsets[start : start + _BLOCK]
    )
  ]


def _record_block(pictures, offsets):
  moments = [log_brightness(pictures, position) for position in positions()]
  shape = moments[0].shape
  reference = moments[0].ravel().copy()
  changes = []
  for index, pair in enumerate(itertools.pairwise(moments)):
    begin, end = (moment.ravel() for moment in pair)
    pixels, times, signs = _crossings(begin, end, reference)
    changes.append((pixels, index * _STEP + times, signs > 0))
  pixels, times, polarities = map(np.concatenate, zip(*changes, strict=True))
  recordings, y, x = np.unravel_index(pixels, shape)
  y, x = y + offsets[recordings, 0], x + offsets[recordings, 1]
  seen = np.flatnonzero((y >= 0) & (y < SIDE) & (x >= 0) & (x < SIDE))
  order = seen[np.lexsort((times[seen], recordings[seen]))]  # ties stay
  events = np.empty(len(order), EVENT)
  for name, values in (('x', x), ('y', y), ('t', times), ('p', polarities)):
    events[name] = values[order]
  begins = np.arange(1, len(pictures))
  return np.split(events, np.searchsorted(recordings[order], begins))


def _crossings(begin, end, reference):
  """Returns (pixels, times, signs) of the events while L changes to `end`.

  Updates `reference`. The arguments are [N * SIDE * SIDE], in units.
  """
  distance = end - reference
  pixels = np.flatnonzero(np.abs(distance) >= _THRESHOLD)
  counts = np.abs(distance[pixels]) // _THRESHOLD
  signs = np.sign(distance[pixels])
  # One row per event, numbered from 1 within its pixel.
  rows = np.repeat(np.arange(len(pixels)), counts)
  numbers = np.arange(len(rows)) - (np.cumsum(counts) - counts)[rows] + 1
  pixels, signs = pixels[rows], signs[rows]
  levels = reference[pixels] + signs * numbers * _THRESHOLD
  change = (end - begin)[pixels]
  times = (levels - begin[pixels]) * _STEP // change
  np.add.at(reference, pixels, signs * _THRESHOLD)
  return pixels, times, signs


def positions() -> np.ndarray:
  """Returns the path of a digit, float [1 + 3 * MOMENTS, 2] in pixels."""
  corners = np.array(CORNERS)
  shares = np.arange(1, MOMENTS + 1)[:, None] / MOMENTS
  pieces = [
    begin + shares * (end - begin)
    for begin, end in zip(corners[:-1], corners[1:], strict=True)
  ]
  return np.concatenate([corners[:1], *pieces])


def log_brightness(pictures: np.ndarray, position: np.ndarray) -> np.ndarray:
  """Returns L of every pixel in units of 2**-16, int32 [N, SIDE, SIDE].

  Args:
    pictures: integers 0 to 16, [N, 8, 8].
    position: offset of their centre from the sensor's, in pixels (down, right).
  """
  rows, columns = (_weights(offset) for offset in position)
  # Small integers are exact in float64 in any order of summation.
  brightness = rows @ pictures.astype(np.float64) @ columns.T
  return _logarithms()[brightness.astype(np.int32)]


def _weights(offset):
  """Returns the quadratic B-spline, [SIDE, 8], in units of 1 / _WEIGHT."""
  pixels = (np.arange(SIDE) - (SIDE - 1) / 2 - offset) / SCALE
  distance = np.abs(pixels[:, None] - (np.arange(8) - 3.5))
  near = 0.75 - distance**2
  far = 0.5 * np.maximum(1.5 - distance, 0) ** 2
  return np.rint(_WEIGHT * np.where(distance < 0.5, near, far))


@functools.cache
def _logarithms():
  # Because the weights are rounded, brightness can exceed 1.
  brightness = np.arange(2 * _BRIGHT) / _BRIGHT
  return np.rint(_LOG * np.log(DARK + brightness)).astype(np.int32)
