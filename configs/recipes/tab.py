"""Temporal accumulated batch normalization of a ResNet19 on CIFAR-100.

    python main.py --config=configs/recipes/tab.py

Jiang et al., ICLR 2024, with the settings of their code: a kept fraction of 0.9
and the triangle surrogate. Their ResNet19 has two linear layers with dropout at
its end, this one the readout of all networks here. Weight decay acts on kernels
alone here, on all parameters there.
"""

from mpbn_jax.configs import cifar100


def get_config():
  """Returns the configuration."""
  config = cifar100.get_config()
  config.num_epochs = 200

  config.model.name = 'resnet19'
  config.model.width = 128
  config.model.num_steps = 4
  config.model.tau = 0.9
  config.model.v_th = 1.0
  config.model.surrogate = 'triangle'
  config.model.conv_norm = 'tab'
  config.model.membrane_norm = 'none'

  config.data.batch_size = 64
  config.data.cutout = 0

  config.optimizer.learning_rate = 0.02
  config.optimizer.weight_decay = 5e-4
  return config
