"""A small spiking CNN on scikit-learn's handwritten digits, in a minute.

python main.py --config=configs/digits.py --workdir=runs/digits
"""

from mpbn_jax.configs import default


def get_config():
  """Returns the configuration."""
  config = default.get_config()
  config.num_epochs = 40

  config.model.name = 'spiking_cnn'
  config.model.width = 32

  config.data.name = 'digits'
  config.data.batch_size = 64
  config.data.shift = 1

  config.optimizer.learning_rate = 0.2
  config.optimizer.weight_decay = 5e-4
  return config
