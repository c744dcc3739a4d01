"""Twenty steps of a small ResNet20 computed in float64, on any devices.

As one of several processes, started by test_double.py:
python tests/program/double.py COUNT INDEX PORT
"""

import json
import pathlib
import sys
import types
from collections.abc import Callable

import jax
import jax.numpy as jnp

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import runs

from mpbn_jax import sharding, train_step, training
from mpbn_jax.models import network

STEPS, DEVICES = 20, 4
RESNET = (
  '--config.model.name=resnet20',
  '--config.data.batch_size=32',
  '--config.optimizer.learning_rate=0.02',
)


def widen(set_attribute: Callable) -> None:
  """Makes float64 of float32 in the modules of the package.

  Args:
    set_attribute: as the builtin `setattr`.
  """
  wide = types.SimpleNamespace(**{**vars(jnp), 'float32': jnp.float64})
  for name, module in list(sys.modules.items()):
    if name.startswith('mpbn_jax.') and getattr(module, 'jnp', None) is jnp:
      set_attribute(module, 'jnp', wide)
  set_attribute(network, 'DTYPES', ('float64',))


def results(mesh: jax.sharding.Mesh) -> dict:
  """Returns the losses and, at the end, every number of the variables."""
  config = runs.config(*RESNET)
  config.model.dtype = 'float64'
  experiment = training.build(config, mesh=mesh)
  step = train_step.make_train_step(experiment)
  state, losses = train_step.init_state(experiment), []
  for i in range(STEPS):
    batch = sharding.shard_batch(experiment.batches.batch(i), mesh)
    state, loss = step(state, batch)
    losses.append(float(loss))
  leaves = jax.device_get(jax.tree.leaves(state.raw_variables))
  return {
    'losses': losses,
    'dtypes': sorted({str(leaf.dtype) for leaf in leaves}),
    'variables': [float(x) for leaf in leaves for x in leaf.flat],
  }


if __name__ == '__main__':
  count, index, port = map(int, sys.argv[1:])
  jax.config.update('jax_enable_x64', True)
  jax.config.update('jax_num_cpu_devices', DEVICES // count)
  jax.distributed.initialize(f'127.0.0.1:{port}', count, index)
  widen(setattr)
  found = results(sharding.make_mesh())
  # All have the same; the test reads the pipe of the first.
  if index == 0:
    print(json.dumps(found))
