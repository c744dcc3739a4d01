"""MPBN on digits seen by an event camera.

python main.py --mode=reproduce --config=configs/studies/events.py
"""

from mpbn_jax.configs import event_digits
from mpbn_jax.studies import Study


def get_study() -> Study:
  """Returns the study."""
  arms = {}
  for norm in ('none', 'mpbn_channel', 'mpbn_element'):
    name = 'baseline' if norm == 'none' else norm
    arms[name] = config = event_digits.get_config()
    config.model.membrane_norm = norm
  return Study(
    name='events',
    question='What does MPBN bring on event data?',
    arms=arms,
    compared_with=dict.fromkeys(('mpbn_channel', 'mpbn_element'), 'baseline'),
    seeds=range(5),
    tuning_seeds=(1000, 1001, 1002),
    grid={'optimizer.learning_rate': (0.05, 0.1, 0.2)},
    notes=(
      'A small CNN on `event_digits`, T = 3: accuracies on the test split '
      '(359 digits) in percent, mean ± standard deviation over seeds. Each arm '
      'chose its learning rate on the validation split, with seeds that are '
      'not reported.'
    ),
  )
