"""A trained network, fine-tuned on other classes: even and odd digits.

python main.py
python main.py --config=docs/examples/fine_tuning.py
"""

import numpy as np
from sklearn.datasets import load_digits

from mpbn_jax.configs import digits
from mpbn_jax.datasets import from_arrays, get_spec

source = load_digits()
images = source.images[..., None].astype(np.uint8)  # [N, 8, 8, 1], 0 to 16
labels = source.target % 2
before = get_spec('digits')

from_arrays(
  'parity',
  train=(images[:1400], labels[:1400]),
  test=(images[1400:], labels[1400:]),
  class_names=('even', 'odd'),
  # The network knows images that are normalized with these.
  max_value=before.max_value,
  mean=before.mean,
  std=before.std,
)


def get_config():
  config = digits.get_config()
  config.init_from = 'runs/digits'  # all but its head, which has ten outputs
  config.data.name = 'parity'
  config.model.num_classes = 2
  config.num_epochs = 5
  config.optimizer.learning_rate = 0.02
  return config
