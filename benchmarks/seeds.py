"""How do several seeds of one network train fastest on one device?

    python benchmarks/seeds.py --seeds=5 --batch=64 --steps=2 --width=8
    python benchmarks/seeds.py --seeds=5 --batch=128 --steps=2 --width=64 \
        --precision=tf32    # on a GPU

A training step of each seed of a spiking ResNet with MPBN: one after the other
('in turn'), one after the other in one program ('lax.map'), all in one program
that treats them as one more dimension ('vmap'), and each in a process of its
own, all at once ('processes'). All take turns, with the same images and initial
parameters for every seed: these change no time.
"""

import functools
import os
import tempfile

import measure

WAYS = ('in turn', 'lax.map', 'vmap', 'processes')


def arguments():
  parser = measure.parser(__doc__, rounds=7)
  parser.add_argument('--seeds', type=int, default=5)
  parser.add_argument(
    '--serve', action='store_true', help='be one of the processes'
  )
  options = parser.parse_args()
  if options.seeds < 2:
    parser.error(f'--seeds: expected at least 2, got {options.seeds}')
  if options.peers:
    parser.error('--peers: peers are measured by train_step.py')
  return options


def training(options):
  """Returns the function that trains one seed."""
  import networks

  network = networks.model(**measure.shape(options))
  return networks.training(network, *measure.data(options.batch))


def in_one_program(transform, options):
  """Returns a function that trains all seeds in one compiled program."""
  import jax
  import jax.numpy as jnp
  import networks

  from mpbn_jax import memory

  network = networks.model(**measure.shape(options))
  images, labels = measure.data(options.batch)

  def stack(leaf):
    return jnp.stack([leaf] * options.seeds)

  step = networks.step_of(network)
  state = [jax.tree.map(stack, networks.initial(network, images))]
  x, y = stack(images), stack(labels)
  jitted = jax.jit(
    transform(step),
    donate_argnums=0,
    compiler_options=memory.compiler_options(),
  )

  def run():
    state[0] = jitted(state[0], x, y)
    return functools.partial(jax.block_until_ready, state[0])

  return run


def together(functions):
  """Returns a function that runs several, and waits for all of them."""

  def run():
    waits = [function() for function in functions]

    def wait():
      for each in waits:
        each()

    return wait

  return run


def ways(names, options):
  """Returns {way: function}."""
  import jax

  def mapped(step):
    return lambda *stacked: jax.lax.map(lambda one: step(*one), stacked)

  def process():
    return measure.elsewhere(__file__, *measure.flags(options), '--serve')

  seeds = range(options.seeds)
  makers = {
    'in turn': lambda: together([training(options) for _ in seeds]),
    'lax.map': lambda: in_one_program(mapped, options),
    'vmap': lambda: in_one_program(jax.vmap, options),
    'processes': lambda: together([process() for _ in seeds]),
  }
  return {name: makers[name]() for name in names}


def main():
  options = arguments()
  if options.serve:
    measure.serve(training(options))
    return
  names = measure.chosen(options.only, WAYS, base='in turn')
  settings = measure.settings(options) | {'seeds': options.seeds}
  print(f'training step of all seeds, 32x32x3, {settings}')
  # Programs share a GPU's memory, and compile the same step once.
  os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'
  with tempfile.TemporaryDirectory() as cache:
    os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', cache)
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
    found = ways(names, options)
    seconds = measure.in_turns(
      found, rounds=options.rounds, repeats=options.repeats
    )
  print(f'{"ms":>16} {"ms per seed":>12}   x in turn')
  results = {}
  for name in names:
    value, low, high = measure.ratio(seconds[name], seconds['in turn'])
    median = 1e3 * measure.medians(seconds)[name]
    results[name] = {'ms': median, 'to_in_turn': [value, low, high]}
    print(
      f'{name:<9} {median:6.1f} {median / options.seeds:12.2f} '
      f'{value:11.2f} [{low:.2f}, {high:.2f}]'
    )
  measure.record(__file__, settings, results)


if __name__ == '__main__':
  main()
