"""Images, and the operations on them as torchvision calls Pillow."""

import functools

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_images

from mpbn_jax.datasets.image_operations import FILL


def _pillow_affine(matrix):
  def operation(image, magnitude, fill=FILL):
    return image.transform(
      image.size,
      Image.Transform.AFFINE,
      matrix(magnitude, *image.size),
      Image.Resampling.NEAREST,
      fillcolor=fill,
    )

  return operation


def _pillow_enhance(kind):
  return lambda image, magnitude: kind(image).enhance(1 + magnitude)


# (image, magnitude) -> image
PILLOW = {
  'ShearX': _pillow_affine(lambda m, w, h: (1, m, 0, 0, 1, 0)),
  'ShearY': _pillow_affine(lambda m, w, h: (1, 0, 0, m, 1, 0)),
  'TranslateX': _pillow_affine(lambda m, w, h: (1, 0, -int(m * w), 0, 1, 0)),
  'TranslateY': _pillow_affine(lambda m, w, h: (1, 0, 0, 0, 1, -int(m * h))),
  'Rotate': lambda image, m: image.rotate(m, fillcolor=FILL),
  'AutoContrast': lambda image, _: ImageOps.autocontrast(image),
  'Invert': lambda image, _: ImageOps.invert(image),
  'Equalize': lambda image, _: ImageOps.equalize(image),
  'Solarize': ImageOps.solarize,
  'Posterize': ImageOps.posterize,
  'Contrast': _pillow_enhance(ImageEnhance.Contrast),
  'Color': _pillow_enhance(ImageEnhance.Color),
  'Brightness': _pillow_enhance(ImageEnhance.Brightness),
  'Sharpness': _pillow_enhance(ImageEnhance.Sharpness),
}


def with_pillow(name, images, magnitude):
  changed = [PILLOW[name](Image.fromarray(x), magnitude) for x in images]
  return np.stack([np.asarray(image) for image in changed])


@functools.cache
def natural(count=48):
  """32x32 pieces of two photographs, at three scales."""
  pieces = [
    photograph[top :: 2**scale, left :: 2**scale][:32, :32]
    for photograph in load_sample_images().images
    for scale in range(3)
    for top in range(0, 300, 100)
    for left in range(0, 500, 150)
  ]
  return np.stack(pieces)[:: len(pieces) // count][:count]


@functools.cache
def random_images(shape=(24, 32, 32, 3)):
  return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def sparse():
  """Images of few values, where histograms have gaps and steps of 0."""
  rng = np.random.default_rng(1)
  noise = rng.integers(0, 256, (24, 32, 32, 3), np.uint8)
  shares = np.linspace(0, 1, 24)[:, None, None, None]
  return np.where(rng.random(noise.shape) < shares, noise, 7).astype(np.uint8)


def flat():
  """One image of each grey."""
  grey = np.arange(256, dtype=np.uint8)[:, None, None, None]
  return np.broadcast_to(grey, (256, 4, 4, 3)).copy()


IMAGES = {
  'natural': natural,
  'random': random_images,
  'sparse': sparse,
  'flat': flat,
  'narrow': lambda: random_images() // 128 + 100,
  'oblong': lambda: random_images((4, 17, 23, 3)),
  'tiny': lambda: random_images((4, 2, 2, 3)),
}
