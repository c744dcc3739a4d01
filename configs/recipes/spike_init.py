"""A pre-activation ResNet of 106 layers without normalization on CIFAR-10.

    python main.py --config=configs/recipes/spike_init.py

SpikeInit (Shi and Yu, ICML 2026), with the settings of their code for their
deep networks. Their neurons multiply the input by 1 - tau = 0.5, so their
threshold of 0.5 is one of 1 here. Their surrogate is a piecewise exponential
whose slope follows the potentials; here it is a sigmoid with the slope of the
first step. Weight decay acts on kernels alone here, on all parameters there.
"""

from mpbn_jax.configs import cifar10


def get_config():
  """Returns the configuration."""
  config = cifar10.get_config()
  config.num_epochs = 300

  config.model.name = 'preact_resnet'
  config.model.depth = 106
  config.model.width = 16
  config.model.tau = 0.5
  config.model.v_th = 1.0
  config.model.detach_reset = True
  config.model.surrogate = 'sigmoid'
  config.model.conv_norm = 'none'
  config.model.membrane_norm = 'affine'
  config.model.kernel_init = 'spike_init'
  config.model.last_scale = 0.0

  config.data.batch_size = 256
  config.data.auto_augment = True

  config.optimizer.learning_rate = 0.1
  config.optimizer.weight_decay = 2e-4
  return config
