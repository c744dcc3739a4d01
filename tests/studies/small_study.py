"""A study of two small arms."""

from mpbn_jax.configs import digits
from mpbn_jax.studies import Study

NORMS = ('none', 'mpbn_channel')
RATES = (0.05, 0.1)


def get_study(grid: str = ''):
  """Returns the study; with 'grid', its arms choose their learning rate."""
  arms = {}
  for norm in NORMS:
    arms[norm] = config = digits.get_config()
    config.model.membrane_norm = norm
    config.model.width = 2
    config.model.num_steps = 2
    config.model.unroll = False
    config.num_epochs = 2
    config.log.tensorboard = False
    config.data.train_size = 128
  return Study(
    name='small',
    question='Does it run?',
    arms=arms,
    compared_with={'mpbn_channel': 'none'},
    seeds=(0, 1),
    grid={'optimizer.learning_rate': RATES} if grid else {},
  )
