"""What MPBN brings: its norms, an affine map and a learned threshold.

    python main.py --mode=reproduce --config=configs/studies/mpbn.py
    python main.py --mode=reproduce --config=configs/studies/mpbn.py:wide
    python main.py --mode=reproduce --config=configs/studies/mpbn.py:full

The others train the network of the paper's width on all images, for a GPU: for
30 epochs, at the learning rate that the small ones chose, and for as many steps
as the paper's recipe on CIFAR, with a grid of learning rates.
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
RATES = (0.1, 0.3, 0.6)
EPOCHS = {'wide': 30, 'full': 200}
# {scale: (suffix of the study's name, question)}
SCALES = {
  'small': ('', 'What does normalizing the membrane potential bring?'),
  'wide': ('_wide', 'What does MPBN bring a wide network that trains longer?'),
  'full': ('_full', 'What does MPBN bring at the scale of the paper?'),
}
CHOICE = {
  True: (
    'Each arm chose its learning rate on the validation split, with a seed '
    'that is not reported.'
  ),
  False: (
    'All arms have a learning rate of 0.3, which all of the small study chose; '
    'it was not chosen again for this network.'
  ),
}


def get_study(scale: str = 'small') -> Study:
  """Returns the study at a scale, 'small' (2 CPU cores), 'wide' or 'full'."""
  if scale not in SCALES:
    raise unknown('scale', scale, SCALES)
  suffix, question = SCALES[scale]
  arms, compared_with = {}, {}
  grid = {} if scale == 'wide' else {'optimizer.learning_rate': RATES}
  for num_steps in STEPS:
    for name, settings in ARMS.items():
      config = photo_digits.get_config()
      config.num_epochs = 10
      if scale != 'small':
        config.model.width = 64
        config.num_epochs = EPOCHS[scale]
        config.data.train_size = 0
        config.data.batch_size = 128
      config.model.num_steps = num_steps
      config.model.update(settings)
      arms[f'{name}, T = {num_steps}'] = config
      if name != 'baseline':
        compared_with[f'{name}, T = {num_steps}'] = f'baseline, T = {num_steps}'
  return Study(
    name=f'mpbn{suffix}',
    question=question,
    arms=arms,
    compared_with=compared_with,
    seeds=range(3 if scale == 'wide' else 5),
    grid=grid,
    reach=0.6,
    notes=(
      'ResNet20 on `photo_digits`: accuracies on the test split in percent, '
      f'mean ± standard deviation over seeds. {CHOICE[bool(grid)]}'
    ),
  )
