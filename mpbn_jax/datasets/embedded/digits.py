"""The `digits`: real handwriting that comes with scikit-learn.

1,797 grey images of 8x8 pixels with values 0 to 16, the test part of the UCI
"Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998); no
download is needed. There is no official split; ours is stratified and fixed:
60 % training, 20 % validation, 20 % test.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path

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
  images, labels = read()
  images = images[..., None]
  parts = split_stratified(labels, shares=SHARES, seed=SPLIT_SEED)
  names = ('train', 'validation', 'test')
  return {
    name: Split(images[part], labels[part])
    for name, part in zip(names, parts, strict=True)
  }


def read() -> tuple[np.ndarray, np.ndarray]:
  """Returns (images [1797, 8, 8] of uint8, labels [1797]).

  Example:
    >>> images, labels = read()
    >>> images.shape, labels[:3].tolist()
    ((1797, 8, 8), [0, 1, 2])
  """
  # Its file is read where it lies: importing scikit-learn takes a second.
  path = _folder() / 'datasets' / 'data' / 'digits.csv.gz'
  if path.exists():
    rows = np.loadtxt(path, delimiter=',', dtype=np.uint8)
    images, labels = rows[:, :-1], rows[:, -1]
  else:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
  return images.reshape(-1, 8, 8).astype(np.uint8), labels.astype(np.int32)


def _folder() -> Path:
  """Returns where scikit-learn is installed."""
  spec = importlib.util.find_spec('sklearn')
  if spec is None or spec.origin is None:
    raise ModuleNotFoundError(
      'the digits come with scikit-learn, which is not installed: '
      'pip install scikit-learn'
    )
  return Path(spec.origin).parent
