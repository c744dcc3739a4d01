"""The `digits`: real handwriting that comes with scikit-learn.

1,797 grey images of 8x8 pixels with values 0 to 16, the test part of the UCI
"Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998); no
download is needed. There is no official split; ours is stratified and fixed:
60 % training, 20 % validation, 20 % test.
"""

from collections.abc import Mapping

import numpy as np

from mpbn_jax.datasets.base import Spec, Split
from mpbn_jax.datasets.splits import split_stratified

SPLIT_SEED = 0
SHARES = (0.6, 0.2, 0.2)
SPEC = Spec(
  name='digits',
  image_shape=(8, 8, 1),
  class_names=tuple('0123456789'),
  max_value=16,
  # Of the training part: `images[train].mean() / 16`, `.std() / 16`.
  mean=(0.3045,),
  std=(0.3760,),
)


def load(spec: Spec, config: Mapping, *, num_steps: int) -> dict[str, Split]:
  """Returns the splits."""
  del spec, config, num_steps  # there is only one variant
  # Takes a second to import; only these data sets need it.
  from sklearn.datasets import load_digits

  source = load_digits()
  images = source.images.astype(np.uint8)[..., None]
  labels = source.target.astype(np.int32)
  parts = split_stratified(labels, shares=SHARES, seed=SPLIT_SEED)
  names = ('train', 'validation', 'test')
  return {
    name: Split(images[part], labels[part])
    for name, part in zip(names, parts, strict=True)
  }
