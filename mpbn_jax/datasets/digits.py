"""What are the `digits`? Real handwriting that comes with scikit-learn.

1,797 grey images of 8x8 pixels with values 0 to 16: the test part of the UCI
"Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998). No
download. No official split: a fixed stratified one, 60 % train, 20 %
validation, 20 % test, the same for every training seed.
"""

import functools

import numpy as np

from mpbn_jax.datasets import augment
from mpbn_jax.datasets.base import Dataset, Split, split_stratified

SPLIT_SEED = 0
SHARES = (0.6, 0.2, 0.2)
# Of the training part, values / 16; computed by
# `images[train].mean() / 16, images[train].std() / 16` with the split above.
MEAN = (0.3045,)
STD = (0.3760,)


def load(*, shift: int = 1) -> Dataset:
  """Returns the data set; `shift`: largest random shift, in pixels."""
  # Takes a second to import, and only this data set needs it.
  from sklearn.datasets import load_digits

  source = load_digits()
  images = source.images.astype(np.uint8)[..., None]
  labels = source.target.astype(np.int32)
  parts = split_stratified(labels, shares=SHARES, seed=SPLIT_SEED)
  return Dataset(
    name='digits',
    class_names=tuple(str(name) for name in source.target_names),
    max_value=16,
    mean=MEAN,
    std=STD,
    splits={
      name: Split(images[part], labels[part])
      for name, part in zip(('train', 'validation', 'test'), parts, strict=True)
    },
    draw=functools.partial(_draw, shift),
    augment=augment.shift,
  )


def _draw(shift, rng, count):
  return augment.draw_shifts(rng, count=count, pixels=shift)
