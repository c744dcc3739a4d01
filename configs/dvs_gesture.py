"""Spiking ResNet20 with MPBN on DVS128 Gesture, as on CIFAR10-DVS.

    python main.py --config=configs/dvs_gesture.py

Not one of the paper's experiments. No flip: it turns a right hand into a left.
"""

from mpbn_jax.configs import cifar10_dvs


def get_config():
  """Returns the configuration."""
  config = cifar10_dvs.get_config()
  config.model.num_classes = 11
  config.data.name = 'dvs_gesture'
  config.data.batch_size = 32
  config.data.flip = False
  return config
