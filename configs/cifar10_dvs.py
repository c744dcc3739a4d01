"""Spiking ResNet20 with MPBN on CIFAR10-DVS, trained as in the paper's text.

    python main.py --config=configs/cifar10_dvs.py

The paper reports 78.70 % for T = 10 (Table 5), and 74.40 % for ResNet19.
"""

from mpbn_jax.configs import default


def get_config():
  """Returns the configuration."""
  config = default.get_config()
  config.num_epochs = 400

  config.model.name = 'resnet20'
  config.model.width = 64
  config.model.num_steps = 10  # T frames, one per step
  config.model.num_classes = 10

  config.data.name = 'cifar10_dvs'
  config.data.batch_size = 128
  config.data.last_batch = 'keep'
  config.data.flip = True
  config.data.roll = 5

  config.optimizer.learning_rate = 0.01
  config.optimizer.weight_decay = 1e-4
  config.optimizer.decay_every = 'epoch'
  return config
