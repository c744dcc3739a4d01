"""Random resized crops, the augmentation of Inception.

Like torchvision's RandomResizedCrop: a rectangle of 8 to 100 % of the image,
3/4 to 4/3 times as wide as high, or after ten failed attempts the largest
central one with such an aspect; resized bilinearly with Pillow's antialiasing.
"""

import numpy as np
from PIL import Image

from mpbn_jax.datasets.augment import Augmentation, rectangles

AREA = (0.08, 1.0)
ASPECT = (3 / 4, 4 / 3)


def random_resized_crop() -> Augmentation:
  """Crops a random part of an image and resizes it to the whole image's size.

  Draws a key for each image; `rectangle` derives the part from the key once the
  size of the image is known.
  """
  return Augmentation(
    name='resized_crop',
    draw=lambda rng, count: rng.integers(0, 2**63, count),
    apply=apply,
    at_read=True,
  )


def rectangle(key: int, *, height: int, width: int) -> tuple[int, ...]:
  """Returns (top, left, height, width) of the part of an image to crop.

  A pure function of the key and the size.
  """
  rng = np.random.default_rng(key)
  found = rectangles(
    rng, 1, height=height, width=width, area=AREA, aspect=ASPECT
  )[0]
  if found.any():
    return tuple(found.tolist())
  narrow, wide = ASPECT
  high = min(height, round(width / narrow))
  across = min(width, round(height * wide))
  return (height - high) // 2, (width - across) // 2, high, across


def crop(
  image: Image.Image, box: tuple[int, ...], *, size: tuple[int, int]
) -> Image.Image:
  """Returns a part of an image, resized to size (height, width).

  Args:
    image: image of any mode.
    box: top, left, height and width of the part.
    size: size of the result.
  """
  top, left, height, width = box
  part = image.crop((left, top, left + width, top + height))
  return part.resize(size[::-1], Image.Resampling.BILINEAR)


def apply(images: np.ndarray, keys: np.ndarray) -> np.ndarray:
  """Returns the parts given by the keys, resized to the images' size.

  All frames and channels of an example are cropped alike.

  Args:
    images: uint8 [B, ..., H, W, C].
    keys: [B].
  """
  height, width, channels = images.shape[-3:]
  result = np.empty_like(images)
  for example, key, cropped in zip(images, keys, result, strict=True):
    box = rectangle(key, height=height, width=width)
    frames = example.reshape((-1, height, width, channels))
    targets = cropped.reshape(frames.shape)
    for frame, target in zip(frames, targets, strict=True):
      for channel in range(channels):
        plane = Image.fromarray(frame[..., channel])
        target[..., channel] = crop(plane, box, size=(height, width))
  return result
