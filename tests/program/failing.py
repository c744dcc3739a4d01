"""A configuration whose second process fails in its ninth batch.

Used by test_job_errors.py. FAILING says how: 'hang', 'input' or 'bug'.
"""

import os
import time

import jax

from mpbn_jax import InputError
from mpbn_jax.configs import digits
from mpbn_jax.datasets.batches import TrainingBatches

_batch = TrainingBatches.batch


def _failing(self, step):
  if step == 8 and jax.process_index() == 1:
    how = os.environ['FAILING']
    if how == 'hang':
      time.sleep(1e6)
    raise InputError('bad image') if how == 'input' else RuntimeError('bug')
  return _batch(self, step)


def get_config():
  """Returns the configuration of digits."""
  TrainingBatches.batch = _failing
  return digits.get_config()
