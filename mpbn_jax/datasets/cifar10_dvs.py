"""What is CIFAR10-DVS? CIFAR-10 seen by an event camera (Li et al., 2017)."""

from mpbn_jax.datasets.base import Spec
from mpbn_jax.datasets.cifar import CIFAR10

SPEC = Spec(
  name='cifar10_dvs',
  image_shape=(48, 48, 2),  # resized from 128x128; the channels are polarities
  class_names=CIFAR10.class_names,
  max_value=1,  # frames count events, and stay counts
  mean=(0.0, 0.0),
  std=(1.0, 1.0),
  frames=True,
)
