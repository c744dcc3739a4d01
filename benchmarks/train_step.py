"""How long does a training step take, and how much memory?

    python benchmarks/train_step.py --batch=16 --steps=4 --width=64 --peers
    python benchmarks/train_step.py --batch=128 --steps=2 --width=16 --peers
    python benchmarks/train_step.py --memory --peers

Spiking ResNet20 with MPBN and without ('plain'), with MPBN and JAX's own
backward pass ('autodiff') or recomputed blocks ('remat'), next to SpikingJelly
and to an eager PyTorch network of the same shape, which take turns. The floor
is one square matmul of the step's FLOPs in the same run. With --memory each
runs alone in a process of its own, with a warm compilation cache.
"""

import importlib
import json
import os
import tempfile
import time

import measure

OURS = {
  'MPBN': {},
  'plain': {'norm': False},
  'autodiff': {'autodiff': True},
  'remat': {'remat': True},
}
PEERS = ('spikingjelly', 'pytorch')


def arguments():
  parser = measure.parser(__doc__, rounds=7)
  parser.add_argument('--memory', action='store_true')
  parser.add_argument('--alone', help='run this one, print JSON')
  return parser.parse_args()


def steps(names, options):
  """Returns {name: function} of training steps."""
  shape = dict(num_steps=options.steps, width=options.width)
  found = {}
  if any(name in OURS for name in names):
    import networks

    images, labels = networks.data(options.batch)
    for name in [name for name in names if name in OURS]:
      network = networks.model(**shape, **OURS[name])
      found[name] = networks.training(network, images, labels)
  for name in [name for name in names if name in PEERS]:
    import networks
    import peers

    images, labels = networks.data(options.batch)
    found[name] = peers.functions(name, images, labels, **shape)['train']
  return found


def alone(name, options):
  """Runs three steps of one; prints its peak memory and time as JSON."""
  importlib.import_module('networks' if name in OURS else 'peers')
  imported = measure.peak_memory()
  (step,) = _alone(name, options).values()
  times = []
  for _ in range(3):
    start = time.perf_counter()
    step()
    times.append(time.perf_counter() - start)
  result = {
    'imported': imported,
    'peak': measure.peak_memory(),
    'seconds': sorted(times)[1],
  }
  print(json.dumps(result))


def _alone(name, options):
  if name in OURS:
    return steps([name], options)
  # Not a byte of JAX beside the peer.
  import numpy as np
  import peers

  rng = np.random.default_rng(0)
  images = rng.normal(size=(options.batch, 32, 32, 3)).astype(np.float32)
  labels = rng.integers(0, 10, options.batch)
  shape = dict(num_steps=options.steps, width=options.width)
  return {name: peers.functions(name, images, labels, **shape)['train']}


def memory(names, options):
  """Prints the peak memory of each; returns it by name."""
  shape = [f'--{k}={getattr(options, k)}' for k in ('batch', 'steps', 'width')]
  results = {}
  with tempfile.TemporaryDirectory() as cache:
    os.environ['JAX_COMPILATION_CACHE_DIR'] = cache
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
    print(f'{"peak MiB":>26} {"imports":>8} {"step ms":>8}')
    for name in names:
      for _ in range(2 if name in OURS else 1):  # the second finds the cache
        found = measure.in_a_process(__file__, f'--alone={name}', *shape)
      results[name] = found
      print(
        f'{name:<16} {found["peak"]:9.0f} {found["imported"]:8.0f} '
        f'{1e3 * found["seconds"]:8.0f}'
      )
  return results


def times(names, options):
  """Prints the median of each and ratios; returns seconds by name."""
  import networks

  functions = steps(names, options)
  images, _ = networks.data(options.batch)
  network = networks.model(num_steps=options.steps, width=options.width)
  variables = networks.initial(network, images)
  flops = networks.forward(network, variables, images)[1]['flops']
  functions['floor'] = networks.floor(3 * flops)
  seconds = measure.in_turns(functions, rounds=options.rounds)
  print(f'{"ms":>22} {"x floor":>8}   x MPBN [95 %]')
  results = {}
  for name in functions:
    value, low, high = measure.ratio(seconds[name], seconds['MPBN'])
    to_floor, _, _ = measure.ratio(seconds[name], seconds['floor'])
    median = 1e3 * measure.medians(seconds)[name]
    results[name] = {
      'ms': median,
      'to_floor': to_floor,
      'to_ours': [value, low, high],
    }
    print(
      f'{name:<14} {median:7.0f} {to_floor:8.2f} {value:8.2f} '
      f'[{low:.2f}, {high:.2f}]'
    )
  return results


def main():
  options = arguments()
  if options.alone:
    alone(options.alone, options)
    return
  names = [*OURS, *(PEERS if options.peers else ())]
  names = measure.chosen(options.only, names, base='MPBN')
  settings = measure.settings(options)
  print(f'training step of ResNet20, 32x32x3, float32, {settings}')
  results = (memory if options.memory else times)(names, options)
  measure.record(__file__, settings | {'memory': options.memory}, results)


if __name__ == '__main__':
  main()
