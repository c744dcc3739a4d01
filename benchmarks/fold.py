"""How long does it take to fold a network of full size?

    python benchmarks/fold.py --network=resnet19 --width=128

Includes compilation, without a cache; then again, compiled.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import measure

from mpbn_jax import build_model, fold, fold_all, readers_of_spikes


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--network', default='resnet19')
  parser.add_argument('--width', type=int, default=128)
  options = parser.parse_args()
  settings = vars(options)
  jax.config.update('jax_enable_compilation_cache', False)
  model = build_model({'name': options.network, 'width': options.width})
  x = jnp.zeros((1, 32, 32, 3))
  variables = jax.jit(lambda key: model.init(key, x, train=False))(
    jax.random.key(0)
  )

  def into_thresholds():
    return fold(variables)

  def into_everything():
    readers = readers_of_spikes(model, variables, x)
    return fold_all(variables, readers=readers)

  print(f'{options.network}, width {options.width}: seconds to fold')
  print(f'{"first":>24} {"again":>7}')
  results = {}
  for name, function in (
    ('thresholds', into_thresholds),
    ('kernels too', into_everything),
  ):
    seconds = []
    for _ in range(2):
      start = time.perf_counter()
      jax.block_until_ready(function())
      seconds.append(time.perf_counter() - start)
    results[name] = seconds
    print(f'{name:<15} {seconds[0]:8.2f} {seconds[1]:7.2f}')
  measure.record(__file__, settings, results)


if __name__ == '__main__':
  main()
