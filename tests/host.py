"""What does one of several hosts compute? Two steps, then the test set.

Started by test_hosts.py: python tests/host.py COUNT INDEX PORT
"""

import pathlib
import sys

import jax

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from configs import digits
from mpbn_jax import evaluate, sharding, train


def results(mesh: jax.sharding.Mesh) -> list[float]:
  """Returns two losses of training, loss and accuracy of the test."""
  config = digits.get_config()
  config.model.width, config.model.num_steps = 2, 1
  config.data.batch_size = config.evaluation.batch_size = 100
  config.data.mixup = 0.4
  experiment = train.build(config, mesh=mesh)
  step = train.make_train_step(experiment)
  state = train.init_state(experiment)
  metrics = train.saved_items(state, mesh)['window']
  found = []
  for i in range(2):
    batch = sharding.shard_batch(experiment.batches.batch(i), mesh)
    state, metrics, loss = step(state, metrics, batch)
    found.append(float(loss))
  scores = evaluate.evaluate(experiment, state.variables, split='test')
  return [*found, scores['loss'], scores['accuracy']]


if __name__ == '__main__':
  count, index, port = map(int, sys.argv[1:])
  jax.config.update('jax_num_cpu_devices', 2 // count)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)
  jax.distributed.initialize(f'127.0.0.1:{port}', count, index)
  print('results', *results(sharding.make_mesh()))
