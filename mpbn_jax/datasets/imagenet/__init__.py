"""ImageNet: ILSVRC 2012 with 1,000 classes (Russakovsky et al., 2015).

There are 1,281,167 training images. As in every paper, the 50,000 validation
images serve as the test split, because the labels of the official test images
are not public. `sources.py` says where the images are expected.

In training, `data.resized_crop` uses a random part of each image. Without it,
and in evaluation, the shorter side is resized to 256 pixels (bilinear and
antialiased, like torchvision's Resize) and the central 224x224 pixels are used.
"""

import concurrent.futures
import os
import pathlib
from collections.abc import Mapping

from mpbn_jax.datasets.base import Spec
from mpbn_jax.datasets.encoded import EncodedImages
from mpbn_jax.datasets.imagenet import sources
from mpbn_jax.datasets.imagenet.classes import CLASSES

SPEC = Spec(
  name='imagenet',
  image_shape=(224, 224, 3),
  class_names=CLASSES,
  max_value=255,
  # The commonly used constants of the training images.
  mean=(0.485, 0.456, 0.406),
  std=(0.229, 0.224, 0.225),
)


def load(
  spec: Spec, config: Mapping, *, num_steps: int
) -> dict[str, EncodedImages]:
  """Returns the splits, whose images are decoded on reading.

  Args:
    spec: `SPEC`, or one with fewer classes or smaller images.
    config: `config.data`; reads dir, workers and on_bad_image.
    num_steps: unused, as an image is shown at every step.

  Raises:
    InputError: there are no images, or they have other classes.
  """
  del num_steps
  pool = concurrent.futures.ThreadPoolExecutor(
    config['workers'] or _cores(), thread_name_prefix='decode'
  )
  found = sources.find(
    pathlib.Path(config['dir']).expanduser(), spec.class_names, pool=pool
  )
  return {
    name: EncodedImages(
      source,
      shape=spec.image_shape,
      pool=pool,
      on_bad_image=config['on_bad_image'],
    )
    for name, source in found.items()
  }


def prepare(spec: Spec, config: Mapping, *, num_steps: int) -> None:
  """Prints what was found: ImageNet cannot be downloaded without an account.

  Raises:
    InputError: as `load`.
  """
  for name, split in load(spec, config, num_steps=num_steps).items():
    print(f'{name}: {len(split):,} images of {spec.num_classes} classes')


def _cores():
  """Returns the number of cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):  # Linux
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
