"""A small spiking ResNet20 on handwriting over photographs, in minutes.

python main.py --config=configs/photo_digits.py

--config.model.membrane_norm=none trains the baseline without MPBN.
docs/data.md explains what makes the images hard.
"""

from mpbn_jax.configs import default


def get_config():
  """Returns the configuration."""
  config = default.get_config()
  config.num_epochs = 20

  config.model.name = 'resnet20'
  config.model.width = 8
  config.model.num_steps = 2

  config.data.name = 'photo_digits'
  config.data.batch_size = 64
  config.data.train_size = 8000

  config.optimizer.learning_rate = 0.3
  config.optimizer.warmup_epochs = 1.0
  # Without clipping, some seeds stay at chance for epochs at this rate. After
  # 10 epochs, seeds still differ by how early they start to learn.
  config.optimizer.gradient_clip = 1.0
  config.optimizer.weight_decay = 5e-4
  return config
