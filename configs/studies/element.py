"""Whether MPBN per element suffers from the few values in its statistics.

python main.py --mode=reproduce --config=configs/studies/element.py

A statistic per element has one value of each image; one per channel has H * W.
"""

from mpbn_jax.configs import photo_digits
from mpbn_jax.studies import Study

NORMS = ('mpbn_channel', 'mpbn_element')
BATCH_SIZES = (16, 64, 256)


def get_study() -> Study:
  """Returns the study."""
  arms, compared_with = {}, {}
  for batch_size in BATCH_SIZES:
    for norm in NORMS:
      name = f'{norm}, batches of {batch_size}'
      arms[name] = config = photo_digits.get_config()
      config.num_epochs = 10
      config.model.membrane_norm = norm
      config.data.batch_size = batch_size
    compared_with[name] = f'mpbn_channel, batches of {batch_size}'
  return Study(
    name='element',
    question='Does MPBN per element suffer from small batches?',
    arms=arms,
    compared_with=compared_with,
    seeds=range(3),
    grid={'optimizer.learning_rate': (0.1, 0.3)},
    notes=(
      'ResNet20 on `photo_digits`, T = 2, 10 epochs whatever the batch size: '
      'accuracies on the test split in percent, mean ± standard deviation over '
      'seeds. Each arm chose its learning rate on the validation split, with a '
      'seed that is not reported.'
    ),
  )
