"""One of several hosts: two steps, the test set, the fold.

Started by test_hosts.py: python tests/program/host.py COUNT INDEX PORT
"""

import dataclasses
import json
import pathlib
import sys

import jax

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from two_layers import TwoLayers

from mpbn_jax import (
  MODELS,
  evaluation,
  report,
  sharding,
  train_step,
  training,
)
from mpbn_jax.configs import digits


def results(mesh: jax.sharding.Mesh) -> dict:
  """Returns losses of training, and what is measured on the test set."""
  MODELS['two_layers'] = TwoLayers
  config = digits.get_config()
  config.model.update({'name': 'two_layers', 'width': 2, 'num_steps': 1})
  config.data.batch_size = config.evaluation.batch_size = 100
  config.data.mixup = 0.4
  experiment = training.build(config, mesh=mesh)
  step = train_step.make_train_step(experiment)
  state = train_step.init_state(experiment)
  losses = []
  for i in range(2):
    batch = sharding.shard_batch(experiment.batches.batch(i), mesh)
    state, loss = step(state, batch)
    losses.append(float(loss))
  variables = state.variables
  folded = report.fold_network(experiment, variables)
  return {
    'losses': losses,
    'scores': evaluation.evaluate(experiment, variables, split='test'),
    'change': dataclasses.asdict(
      evaluation.compare(experiment, variables, folded, split='test')
    ),
  }


if __name__ == '__main__':
  count, index, port = map(int, sys.argv[1:])
  jax.config.update('jax_num_cpu_devices', 2 // count)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)
  jax.distributed.initialize(f'127.0.0.1:{port}', count, index)
  print(json.dumps(results(sharding.make_mesh())))
