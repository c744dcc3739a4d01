"""A narrow spiking VGG16 with MPBN on N-MNIST.

    python main.py --config=configs/nmnist.py

Not one of the paper's experiments.
"""

from mpbn_jax.configs import default


def get_config():
  """Returns the configuration."""
  config = default.get_config()
  config.num_epochs = 20

  config.model.name = 'vgg16'
  config.model.width = 16
  config.model.num_steps = 10  # T frames, one per step
  config.model.num_classes = 10

  config.data.name = 'nmnist'
  config.data.shift = 2

  config.optimizer.learning_rate = 0.1
  return config
