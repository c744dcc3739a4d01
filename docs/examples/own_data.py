"""A data set of your own, from NumPy arrays.

python main.py --config=docs/examples/own_data.py
"""

import numpy as np
from sklearn.datasets import load_digits

from mpbn_jax.configs import digits
from mpbn_jax.datasets import from_arrays

# Yours may come from np.load.
source = load_digits()
images = source.images[..., None].astype(np.uint8)  # [N, 8, 8, 1], 0 to 16

from_arrays(
  'my_digits',
  train=(images[:1400], source.target[:1400]),
  test=(images[1400:], source.target[1400:]),
  class_names=tuple('0123456789'),
  max_value=16,
)


def get_config():
  config = digits.get_config()
  config.data.name = 'my_digits'
  return config
