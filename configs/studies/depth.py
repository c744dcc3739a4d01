"""Norms of pre-activation ResNets with 22, 58 and 106 layers.

    python main.py --mode=reproduce --config=configs/studies/depth.py

Each norm is tried with the initial kernels of He et al. as they are ('plain'),
and with the last scale of every residual branch divided by the number of blocks
of a stage ('damped').
"""

from mpbn_jax.configs import digits_106
from mpbn_jax.studies import Study

DEPTHS = (22, 58, 106)
# {arm: (conv_norm, membrane_norm, spike_norm)}
NORMS = {
  'none': ('none', 'none', 'none'),
  'affine': ('none', 'affine', 'none'),
  'bn': ('bn', 'none', 'none'),
  'tdbn': ('tdbn', 'none', 'none'),
  'psp_bn': ('none', 'none', 'psp_bn'),
}
BRANCHES = ('plain', 'damped')


def arm(norm: str, branches: str, depth: int):
  """Returns the configuration of an arm."""
  config = digits_106.get_config()
  config.num_epochs = 20
  config.log.checkpoint_every_epochs = 2
  config.optimizer.warmup_epochs = 1.0
  config.evaluation.fold = 'thresholds'
  config.model.depth = depth
  config.model.kernel_init = 'fan_in'
  conv, membrane, spike = NORMS[norm]
  config.model.conv_norm = conv
  config.model.membrane_norm = membrane
  config.model.spike_norm = spike
  blocks = (depth - 4) // 6
  config.model.last_scale = 1.0 if branches == 'plain' else 1 / blocks
  return config


def get_study() -> Study:
  """Returns the study."""
  arms = {
    f'{norm}, {branches}, {depth} layers': arm(norm, branches, depth)
    for depth in DEPTHS
    for branches in BRANCHES
    for norm in NORMS
  }
  compared_with = {
    name: f'none, {name.split(", ", 1)[1]}'
    for name in arms
    if not name.startswith('none')
  }
  return Study(
    name='depth',
    question=(
      'How do norms and damped branches compare in networks of 22 to 106 '
      'layers?'
    ),
    arms=arms,
    compared_with=compared_with,
    seeds=range(3),
    grid={'optimizer.learning_rate': (0.03, 0.1, 0.3, 1.0)},
    notes=(
      'Pre-activation ResNets on `digits`, width 8, T = 2, 20 epochs, '
      'gradients clipped at 1: accuracies on the test split in percent, mean ± '
      'standard deviation over seeds; a guess is right in 10 %. Each arm chose '
      'its learning rate on the validation split, with a seed that is not '
      'reported.'
    ),
  )
