"""Temporal Efficient Training of a ResNet19 on CIFAR-100.

    python main.py --config=configs/recipes/tet.py

Deng et al., ICLR 2022 (2202.11946), with the settings of their code: Adam,
tdBN, the triangle surrogate, and a regularizer that draws the logits of all
steps to 1.
"""

from mpbn_jax.configs import cifar100


def get_config():
  """Returns the configuration."""
  config = cifar100.get_config()
  config.num_epochs = 150

  config.model.name = 'resnet19'
  config.model.width = 128
  config.model.num_steps = 4
  config.model.tau = 0.5
  config.model.v_th = 1.0
  config.model.surrogate = 'triangle'
  config.model.conv_norm = 'tdbn'
  config.model.membrane_norm = 'none'

  config.data.cutout = 0

  config.optimizer.name = 'adamw'  # without decay: Adam
  config.optimizer.weight_decay = 0.0
  config.optimizer.learning_rate = 1e-3

  config.loss.name = 'tet'
  config.loss.regularizer = 1e-3
  config.loss.regularizer_target = 1.0
  return config
