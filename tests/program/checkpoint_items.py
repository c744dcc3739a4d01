"""Small checkpoints that tests write, compare and damage."""

import numpy as np

from mpbn_jax.checkpoint import Checkpoints


def tree(value):
  return {
    'params': {'kernel': np.full((3, 4), value, np.float32)},
    'step': np.int32(value),
  }


def write(directory, accuracies):
  """Saves a checkpoint for each {step: validation accuracy}."""
  checkpoints = Checkpoints(directory)
  for step, accuracy in accuracies.items():
    checkpoints.save(step, tree(step), validation_accuracy=accuracy)
  return directory


def value_of(restored):
  step, found = restored
  np.testing.assert_array_equal(
    found['params']['kernel'], tree(step)['params']['kernel']
  )
  return step


def damage(path):
  """Flips a bit in the largest file of a checkpoint."""
  files = [file for file in path.rglob('*') if file.is_file()]
  file = max(files, key=lambda file: (file.stat().st_size, str(file)))
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(content)
