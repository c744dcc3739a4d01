"""MPBN with what later work found to help, each part switchable.

    python main.py --config=configs/strong.py
    python main.py --config=configs/strong.py:ema+tet

The first has all parts, the second two of them, and `strong.py:plain` has none.
The network and data are those of configs/photo_digits.py; docs/results.md says
what each part brings there.
"""

from mpbn_jax.configs import photo_digits
from mpbn_jax.errors import unknown

# {part: its keys}
PARTS = {
  # A loss at every step, and a regularizer of the logits (2202.11946).
  'tet': {'loss.name': 'tet', 'loss.regularizer': 1e-3},
  # The mean over T teaches every step; see `losses.distilled`.
  'distillation': {'loss.distillation': 0.3},
  'smoothing': {'loss.label_smoothing': 0.1},
  # The average of the weights over about 200 updates is what is evaluated.
  'ema': {'optimizer.ema': 0.995},
  # Two random operations on every image (1909.13719).
  'rand_augment': {'data.rand_augment': 2},
  # Neurons start at a running mean (2511.08708).
  'mp_init': {'model.start': 'mean'},
  # One kept fraction per layer is learned (2007.05785).
  'learned_tau': {'model.learn_tau': True},
}
PLAIN = 'plain'


def get_config(parts: str = '+'.join(PARTS)):
  """Returns the configuration.

  Args:
    parts: keys of `PARTS` with '+' between them, or 'plain' for none.
  """
  config = photo_digits.get_config()
  for part in parts.split('+') if parts != PLAIN else []:
    if part not in PARTS:
      raise unknown('part of strong.py', part, [*PARTS, PLAIN])
    config.update_from_flattened_dict(PARTS[part])
  return config
