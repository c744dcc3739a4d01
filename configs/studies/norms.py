"""Norms after the convolution, of the spikes, and MP-Init, beside MPBN.

python main.py --mode=reproduce --config=configs/studies/norms.py
"""

from mpbn_jax.configs import photo_digits
from mpbn_jax.studies import Study

BASELINE = 'bn'
# {arm: keys of config.model that differ from bn after the convolution alone}
ARMS = {
  BASELINE: {},
  'none': {'conv_norm': 'none'},
  'tdbn': {'conv_norm': 'tdbn'},
  'bntt': {'conv_norm': 'bntt'},
  'tebn': {'conv_norm': 'tebn'},
  'tab': {'conv_norm': 'tab'},
  'psp_bn': {'conv_norm': 'none', 'spike_norm': 'psp_bn'},
  'psp_bn_step': {'conv_norm': 'none', 'spike_norm': 'psp_bn_step'},
  'psp_ln': {'conv_norm': 'none', 'spike_norm': 'psp_ln'},
  'neunorm': {'spike_norm': 'neunorm'},
  'MP-Init': {'start': 'mean'},
  'MP-Init, learned v_th': {
    'start': 'mean',
    'learn_v_th': True,
    'surrogate_unit': 'v_th',
    # In units of the first v_th, 0.5: the window of the other arms. With 1, all
    # seeds stay at chance (docs/results.md).
    'surrogate_parameter': 2.0,
  },
  'mpbn_channel': {'membrane_norm': 'mpbn_channel'},
  'tdbn and mpbn_channel': {
    'conv_norm': 'tdbn',
    'membrane_norm': 'mpbn_channel',
  },
}


def get_study() -> Study:
  """Returns the study."""
  arms = {}
  for name, settings in ARMS.items():
    arms[name] = config = photo_digits.get_config()
    config.num_epochs = 10
    config.model.membrane_norm = 'none'
    config.model.update(settings)
  return Study(
    name='norms',
    question='How do the norms of spiking networks compare?',
    arms=arms,
    compared_with=dict.fromkeys([arm for arm in ARMS if arm != BASELINE], 'bn'),
    seeds=range(3),
    grid={'optimizer.learning_rate': (0.1, 0.3)},
    notes=(
      'ResNet20 on `photo_digits`, T = 2: accuracies on the test split in '
      'percent, mean ± standard deviation over seeds. Each arm chose its '
      'learning rate on the validation split, with a seed that is not '
      'reported. PSP-BN and PSP-LN stand in place of the norm after the '
      'convolution, the others beside it.'
    ),
  )
