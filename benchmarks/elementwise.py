"""How do neurons and norms compare with the bytes that they must move?

    python benchmarks/elementwise.py --batch=16 --steps=4 --width=64

A layer of LIF neurons with MPBN, and a batch normalization, on [B, T, 32, 32,
C] and on the smaller maps of the later stages; forward in training, and
backward. The floor is the time in which XLA copies as many bytes as must be
read and written: every operand and result once. Statistics need their operand
once more before the first result, which the floor leaves out.
"""

import functools

import jax
import jax.numpy as jnp
import measure
import numpy as np

from mpbn_jax import LIF, memory
from mpbn_jax.norm import BatchNorm

# Arrays as large as the currents that each must read or write.
ARRAYS = {
  'LIF forward': 3,  # currents; spikes, potentials
  'LIF backward': 4,  # spikes, potentials, gradient; gradient
  'BN forward': 2,
  'BN backward': 3,  # input, gradient; gradient
}


def functions(shape):
  """Returns {name: function} for currents of a shape."""
  rng = np.random.default_rng(0)
  x, g = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2))
  layer = LIF(norm='mpbn_channel')
  variables = layer.init(jax.random.key(0), x[:1], train=False)
  norm = BatchNorm()
  ones = jnp.ones(shape[-1:])
  affine = {'scale': ones, 'bias': 0 * ones}
  stats = {'mean': 0 * ones, 'var': ones, 'eps': jnp.float32(1e-5)}

  def lif(params, x):
    return layer.apply(
      {**variables, 'params': params}, x, train=True, mutable=['batch_stats']
    )

  def bn(params, x):
    return norm(params, stats, x, momentum=0.1)

  found = {}
  for name, function, params in (
    ('LIF', lif, variables['params']),
    ('BN', bn, affine),
  ):
    # What the backward pass reads comes from the forward pass.
    forward = jax.jit(functools.partial(jax.vjp, function, has_aux=True))
    _, pull, _ = forward(params, x)
    backward = jax.jit(lambda pull, g: pull(g))
    found[f'{name} forward'] = _waiting(forward, params, x)
    found[f'{name} backward'] = _waiting(backward, pull, g)
  found['copy'] = _waiting(jax.jit(lambda x: 2 * x), x)
  return found


def _waiting(function, *arguments):
  def run():
    return functools.partial(jax.block_until_ready, function(*arguments))

  return run


def main():
  options = measure.parser(__doc__, rounds=15).parse_args()
  memory.reuse_pages()
  print(f'{"layer":>22} {"operation":>13} {"ms":>7} {"GB/s":>6} {"x floor":>8}')
  results = {}
  for side, channels in ((32, 1), (16, 1), (8, 2), (4, 4)):
    width = options.width * channels
    shape = (options.batch, options.steps, side, side, width)
    seconds = measure.in_turns(
      functions(shape), rounds=options.rounds, repeats=options.repeats
    )
    size = 4 * np.prod(shape)
    copy = measure.medians(seconds)['copy'] / 2  # of one array
    for name in seconds:
      median, arrays = measure.medians(seconds)[name], ARRAYS.get(name, 2)
      where = f'{side}x{side}x{width}'
      floor = median / (arrays * copy)
      results[f'{where} {name}'] = {'ms': 1e3 * median, 'to_floor': floor}
      rate = arrays * size / median / 1e9
      print(
        f'{where:>22} {name:>13} {1e3 * median:7.2f} {rate:6.1f} {floor:8.2f}'
      )
  measure.record(__file__, measure.settings(options), results)


if __name__ == '__main__':
  main()
