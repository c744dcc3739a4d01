"""A small spiking CNN on digits seen by an event camera, without a download.

    python main.py --config=configs/event_digits.py

Seeds 0, 1 and 2 reach 94.43, 94.15 and 94.71 % on 359 test digits, in less than
a minute on 2 cores.
"""

from mpbn_jax.configs import default


def get_config():
  """Returns the configuration."""
  config = default.get_config()
  config.num_epochs = 30

  config.model.name = 'spiking_cnn'
  config.model.width = 16
  config.model.num_steps = 3  # T frames, one per step

  config.data.name = 'event_digits'
  config.data.batch_size = 32
  config.data.shift = 1

  config.optimizer.learning_rate = 0.1
  config.optimizer.weight_decay = 5e-4
  return config
