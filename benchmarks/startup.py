"""How long does it take to import, to compile and to reach the first step?

    python benchmarks/startup.py

Runs `configs/digits.py` in processes of their own, with an empty compilation
cache and then with what the run before left in it.
"""

import argparse
import json
import os
import statistics
import tempfile
import time

import measure


def alone(start):
  """Prints the seconds from the start of the process, as JSON."""
  from mpbn_jax import command_line, sharding, train_step, training

  imported = time.time() - start
  config = command_line.parse(['--config=configs/digits.py']).config
  experiment = training.build(config)
  init = train_step.make_init(experiment)
  step = train_step.make_train_step(experiment)
  train_step.check_trainable(experiment, init=init, step=step)
  traced = time.time() - start
  state = init(train_step.init_key(experiment))
  batch = sharding.shard_batch(experiment.batches.batch(0), experiment.mesh)
  _, loss = step(state, batch)
  float(loss)
  first = time.time() - start
  print(json.dumps({'imported': imported, 'traced': traced, 'first': first}))


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--alone', type=float, help='when the process started')
  options = parser.parse_args()
  if options.alone:
    alone(options.alone)
    return
  with tempfile.TemporaryDirectory() as cache:
    os.environ['JAX_COMPILATION_CACHE_DIR'] = cache
    found = [
      measure.in_a_process(__file__, f'--alone={time.time()}')
      for _ in range(1 + options.rounds)
    ]
  cold, warm = found[0], found[1:]
  results = {'cold': cold}
  results['warm'] = {
    key: statistics.median(one[key] for one in warm) for key in cold
  }
  print('seconds from the start of the process, configs/digits.py')
  print(f'{"imported":>14} {"traced":>8} {"first step":>10}')
  for name, one in results.items():
    print(
      f'{name:<5} {one["imported"]:8.1f} {one["traced"]:8.1f} '
      f'{one["first"]:10.1f}'
    )
  measure.record(__file__, {'rounds': options.rounds}, results)


if __name__ == '__main__':
  main()
