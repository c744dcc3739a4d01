"""DVS128 Gesture: hand gestures seen by an event camera (Amir et al., 2017).

11 gestures of 29 people on a sensor of 128x128 pixels, one file per gesture as
tonic publishes them. In the official split, 23 people are for training and the
other 6 for testing.
"""

import functools

from mpbn_jax.datasets.base import Spec
from mpbn_jax.datasets.events import cache
from mpbn_jax.datasets.events.recordings import Collection

COLLECTIONS = {
  # The numbers of recordings in tonic's archives.
  'train': Collection('DVSGesture', count=1077, options={'train': True}),
  'test': Collection('DVSGesture', count=264, options={'train': False}),
}
SPEC = Spec(
  name='dvs_gesture',
  # Every second row and column of 128x128: a quarter of the memory and time.
  image_shape=(64, 64, 2),
  class_names=(
    'hand_clapping',
    'right_hand_wave',
    'left_hand_wave',
    'right_arm_clockwise',
    'right_arm_counter_clockwise',
    'left_arm_clockwise',
    'left_arm_counter_clockwise',
    'arm_roll',
    'air_drums',
    'air_guitar',
    'other_gestures',
  ),
  max_value=1,  # frames count events, and stay counts
  mean=(0.0, 0.0),
  std=(1.0, 1.0),
  frames=True,
)

load = functools.partial(cache.load, collections=COLLECTIONS)
prepare = functools.partial(cache.prepare, collections=COLLECTIONS)
