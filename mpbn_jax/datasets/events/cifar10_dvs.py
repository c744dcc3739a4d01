"""CIFAR10-DVS: CIFAR-10 seen by an event camera (Li et al., 2017).

10,000 recordings of 128x128 pixels, 1,000 of each class. There is no official
split; ours uses 100 recordings of each class, drawn with a fixed seed, for
testing.
"""

import functools

from mpbn_jax.datasets.base import Spec
from mpbn_jax.datasets.cifar import CIFAR10
from mpbn_jax.datasets.events import cache
from mpbn_jax.datasets.events.recordings import Collection
from mpbn_jax.datasets.splits import split_stratified

SPLIT_SEED = 0
SHARES = (0.9, 0.1)
COLLECTIONS = {'all': Collection('CIFAR10DVS', count=10_000)}
SPEC = Spec(
  name='cifar10_dvs',
  image_shape=(48, 48, 2),  # resized from 128x128; the channels are polarities
  class_names=CIFAR10.class_names,
  max_value=1,  # frames count events, and stay counts
  mean=(0.0, 0.0),
  std=(1.0, 1.0),
  frames=True,
)


def _split(recordings):
  every = recordings['all']
  train, test = split_stratified(every.labels, shares=SHARES, seed=SPLIT_SEED)
  return {'train': every.select(train), 'test': every.select(test)}


load = functools.partial(cache.load, collections=COLLECTIONS, split=_split)
prepare = functools.partial(
  cache.prepare, collections=COLLECTIONS, split=_split
)
