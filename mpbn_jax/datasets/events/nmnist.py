"""N-MNIST: MNIST seen by a moving event camera (Orchard et al., 2015).

60,000 training and 10,000 test recordings of 34x34 pixels, split as in MNIST.
The camera makes three saccades of 0.1 s in front of each digit.
"""

import functools

from mpbn_jax.datasets.base import Spec
from mpbn_jax.datasets.events import cache
from mpbn_jax.datasets.events.recordings import Collection

COLLECTIONS = {
  'train': Collection('NMNIST', count=60_000, options={'train': True}),
  'test': Collection('NMNIST', count=10_000, options={'train': False}),
}
SPEC = Spec(
  name='nmnist',
  image_shape=(34, 34, 2),
  class_names=tuple('0123456789'),
  max_value=1,  # frames count events, and stay counts
  mean=(0.0, 0.0),
  std=(1.0, 1.0),
  frames=True,
)

load = functools.partial(cache.load, collections=COLLECTIONS)
prepare = functools.partial(cache.prepare, collections=COLLECTIONS)
