"""Spiking ResNet18 with MPBN on ImageNet, trained as in the paper's text.

    python main.py --config=configs/imagenet.py

The paper reports 63.14 % for T = 4 (Table 4), and 64.71 % for ResNet34.
`mpbn_jax/datasets/imagenet/sources.py` says where to put the images.
"""

from mpbn_jax.configs import default


def get_config():
  """Returns the configuration."""
  config = default.get_config()
  config.num_epochs = 320

  config.model.name = 'resnet18'
  config.model.width = 64
  config.model.num_steps = 4
  config.model.num_classes = 1000

  config.data.name = 'imagenet'
  config.data.batch_size = 128
  config.data.resized_crop = True
  config.data.flip = True

  config.optimizer.learning_rate = 0.1
  config.optimizer.weight_decay = 1e-4
  config.optimizer.decay_every = 'epoch'
  return config
