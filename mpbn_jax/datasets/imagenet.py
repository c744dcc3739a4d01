"""What is ImageNet? ILSVRC 2012, 1000 classes (Russakovsky et al., 2015)."""

from mpbn_jax.datasets.base import Spec

SPEC = Spec(
  name='imagenet',
  image_shape=(224, 224, 3),
  # Labels count the sorted WordNet identifiers.
  class_names=tuple(str(label) for label in range(1000)),
  max_value=255,
  # Of the training images; the constants that the whole field uses.
  mean=(0.485, 0.456, 0.406),
  std=(0.229, 0.224, 0.225),
)
