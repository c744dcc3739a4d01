"""MP-Init and a threshold-robust surrogate for a ResNet19 on CIFAR-100.

    python main.py --config=configs/recipes/mp_init.py

Kook et al., WACV 2026 (2511.08708), with the settings of their code. Their
neurons multiply the input by 1 - tau = 0.5, so their threshold of 1 is one of 2
here. They learn one threshold and one tau per layer and emit spikes as high as
the threshold; here, thresholds are learned per channel and spikes are 1. Weight
decay acts on kernels alone here, on all parameters there.
"""

from mpbn_jax.configs import cifar100


def get_config():
  """Returns the configuration."""
  config = cifar100.get_config()
  config.num_epochs = 200

  config.model.name = 'resnet19'
  config.model.width = 64
  config.model.num_steps = 4
  config.model.tau = 0.5
  config.model.v_th = 2.0
  config.model.learn_tau = True
  config.model.learn_v_th = True
  config.model.surrogate = 'rect'
  config.model.surrogate_unit = 'v_th'
  config.model.reset = 'soft'
  config.model.start = 'mean'
  config.model.membrane_norm = 'none'

  config.data.batch_size = 64
  config.data.cutout = 0

  config.optimizer.learning_rate = 0.02
  config.optimizer.weight_decay = 5e-4
  return config
