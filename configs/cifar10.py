"""Spiking ResNet20 with MPBN on CIFAR-10, trained as in the paper's text.

    python main.py --config=configs/cifar10.py

The paper reports 94.28 % for T = 4 (Tables 1, 2 and 6). `configs/paper.py` has
other architectures and T, and the choices of the reference implementation.
"""

from mpbn_jax.configs import default


def get_config():
  """Returns the configuration."""
  config = default.get_config()
  config.num_epochs = 400

  config.model.name = 'resnet20'
  config.model.width = 64
  config.model.num_steps = 4
  config.model.num_classes = 10

  config.data.name = 'cifar10'
  config.data.batch_size = 128
  config.data.last_batch = 'keep'
  config.data.shift = 4
  config.data.flip = True
  config.data.cutout = 16

  config.optimizer.learning_rate = 0.1
  config.optimizer.weight_decay = 1e-4
  config.optimizer.decay_every = 'epoch'
  return config
