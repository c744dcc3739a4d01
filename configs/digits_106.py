"""106 spiking layers with PSP-BN alone on digits, in minutes on a CPU.

python main.py --config=configs/digits_106.py

Seeds 0 to 7 reach a test accuracy of 96.97 % on average, with a standard
deviation of 1.06 and a minimum of 95.54 %; a run takes 270 to 300 s on one core
(jax 0.10.2). The surrogate gradient is `atan`, which is nonzero everywhere:
with the window of `rect` these layers learn slowly.
"""

from mpbn_jax.configs import digits


def get_config():
  """Returns the configuration."""
  config = digits.get_config()
  config.num_epochs = 60

  config.model.name = 'preact_resnet'
  config.model.depth = 106
  config.model.width = 8
  config.model.num_steps = 2
  config.model.surrogate = 'atan'
  config.model.conv_norm = 'none'
  config.model.membrane_norm = 'none'
  config.model.spike_norm = 'psp_bn'

  config.optimizer.learning_rate = 0.1
  # With 51 blocks, the gradients of some batches are many times larger than
  # usual.
  config.optimizer.gradient_clip = 1.0

  config.log.checkpoint_every_epochs = 10

  config.evaluation.fold = 'all'  # there are no thresholds to fold
  return config
