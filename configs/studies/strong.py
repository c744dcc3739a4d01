"""What later work adds to MPBN: every part alone, and all together.

python main.py --mode=reproduce --config=configs/studies/strong.py
"""

from mpbn_jax.configs import strong
from mpbn_jax.studies import Study


def get_study() -> Study:
  """Returns the study."""
  arms = {strong.PLAIN: strong.get_config(strong.PLAIN)}
  arms |= {part: strong.get_config(part) for part in strong.PARTS}
  arms['strong'] = strong.get_config()
  for config in arms.values():
    config.num_epochs = 10
  others = [arm for arm in arms if arm != strong.PLAIN]
  return Study(
    name='strong',
    question='What does later work add to MPBN?',
    arms=arms,
    compared_with=dict.fromkeys(others, strong.PLAIN),
    seeds=range(5),
    grid={'optimizer.learning_rate': (0.1, 0.3)},
    notes=(
      'ResNet20 with MPBN on `photo_digits`, T = 2: accuracies on the test '
      'split in percent, mean ± standard deviation over seeds. `strong` has '
      'all parts. Each arm chose its learning rate on the validation split, '
      'with a seed that is not reported.'
    ),
  )
