"""What MPBN brings: its norms, an affine map and a learned threshold.

    python main.py --mode=reproduce --config=configs/studies/mpbn.py
    python main.py --mode=reproduce --config=configs/studies/mpbn.py:full

The second trains the network of the paper's width for as many steps as its
recipe on CIFAR: for a GPU.
"""

from mpbn_jax.configs import photo_digits
from mpbn_jax.errors import unknown
from mpbn_jax.studies import Study

ARMS = {
  'baseline': {'membrane_norm': 'none'},
  'learned v_th': {'membrane_norm': 'none', 'learn_v_th': True},
  'affine': {'membrane_norm': 'affine'},
  'mpbn_channel': {'membrane_norm': 'mpbn_channel'},
  'mpbn_element': {'membrane_norm': 'mpbn_element'},
}
STEPS = (2, 1, 4)
SCALES = ('small', 'full')


def get_study(scale: str = 'small') -> Study:
  """Returns the study at a scale, 'small' (2 CPU cores) or 'full'."""
  if scale not in SCALES:
    raise unknown('scale', scale, SCALES)
  arms, compared_with = {}, {}
  for num_steps in STEPS:
    for name, settings in ARMS.items():
      config = photo_digits.get_config()
      config.num_epochs = 10
      if scale == 'full':
        config.model.width = 64
        config.num_epochs = 200
        config.data.train_size = 0
        config.data.batch_size = 128
      config.model.num_steps = num_steps
      config.model.update(settings)
      arms[f'{name}, T = {num_steps}'] = config
      if name != 'baseline':
        compared_with[f'{name}, T = {num_steps}'] = f'baseline, T = {num_steps}'
  return Study(
    name='mpbn' if scale == 'small' else 'mpbn_full',
    question='What does normalizing the membrane potential bring?',
    arms=arms,
    compared_with=compared_with,
    grid={'optimizer.learning_rate': (0.1, 0.3, 0.6)},
    reach=0.6,
    notes=(
      'ResNet20 on `photo_digits`: accuracies on the test split in percent, '
      'mean ± standard deviation over seeds. Each arm chose its learning rate '
      'on the validation split, with a seed that is not reported.'
    ),
  )
