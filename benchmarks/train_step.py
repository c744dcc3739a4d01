"""How long does a training step take, and how much memory?

    python benchmarks/train_step.py --batch=16 --steps=4 --width=64 --peers
    python benchmarks/train_step.py --batch=128 --steps=2 --width=16 --peers
    python benchmarks/train_step.py --memory --peers
    python benchmarks/train_step.py --network=resnet19 --precision=bfloat16 \
        --batch=128 --width=128 --repeats=10 --peers    # on a GPU

A spiking ResNet with MPBN and without ('plain'), with MPBN and JAX's own
backward pass ('autodiff') or recomputed parts ('keep products', 'keep spikes',
'remat': the attributes of the network), next to SpikingJelly and to an eager
PyTorch network of the same shape, each in its own process. All take turns.
`--only` can also name 'compiled pytorch', the same network under torch.compile.
The floor is one square matmul of the step's FLOPs in the same run. With
--memory each runs alone in a process of its own, with a warm compilation cache;
on a GPU, the peak is that of its memory.
"""

import importlib
import json
import os
import tempfile

import measure

OURS = {
  'MPBN': {},
  'plain': {'norm': False},
  'autodiff': {'autodiff': True},
  'keep products': {'keep': 'products'},
  'keep spikes': {'keep': 'spikes'},
  'remat': {'remat': True},
}
PEERS = ('spikingjelly', 'pytorch')
COMPILED = 'compiled pytorch'  # takes a minute to compile


def arguments():
  parser = measure.parser(__doc__, rounds=7)
  parser.add_argument('--memory', action='store_true')
  parser.add_argument('--alone', help='run this one, print JSON')
  return parser.parse_args()


def steps(names, options):
  """Returns {name: function} of training steps."""
  images, labels = measure.data(options.batch)
  shape = measure.shape(options)
  found = {}
  for name in names:
    # Of JAX and PyTorch only what is needed: their imports take memory.
    if name in OURS:
      import networks

      network = networks.model(**shape, **OURS[name])
      found[name] = networks.training(network, images, labels)
    elif options.alone:
      import peers

      found[name] = peers.functions(name, images, labels, **shape)['train']
    else:
      import peers

      found[name] = peers.elsewhere(name, 'train', options)
  return found


def alone(name, options):
  """Runs six steps of one; returns its peak memory in MiB, and its time."""
  module = importlib.import_module('networks' if name in OURS else 'peers')
  imported = measure.peak_memory()
  functions = steps([name], options)
  seconds = measure.in_turns(functions, rounds=4, warm_up=2)
  peak = measure.peak_memory()  # before XLA is asked for its plan
  return {
    'imported': imported,
    'peak': peak,
    'device_peak': module.device_peak(),
    'planned': functions[name].planned() if name in OURS else None,
    'seconds': min(seconds[name]),
  }


def memory(names, options):
  """Prints the peak memory of each; returns it by name."""
  results = {}
  with tempfile.TemporaryDirectory() as cache:
    os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', cache)
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
    print(f'{"peak MiB":>26} {"imports":>8} {"step ms":>8}')
    for name in names:
      for _ in range(2 if name in OURS else 1):  # the second finds the cache
        found = measure.in_a_process(
          __file__, f'--alone={name}', *measure.flags(options)
        )
      results[name] = found
      peak = found['device_peak'] or found['peak']
      print(
        f'{name:<16} {peak:9.0f} {found["imported"]:8.0f} '
        f'{1e3 * found["seconds"]:8.0f}'
      )
  return results


def times(names, options):
  """Prints the median of each and ratios; returns seconds by name."""
  import networks

  functions = steps(names, options)
  network = networks.model(**measure.shape(options))
  flops = 3 * networks.flops(network, measure.data(options.batch)[0])
  functions['floor'], own = networks.floor(flops, precision=options.precision)
  seconds = measure.in_turns(
    functions, rounds=options.rounds, repeats=options.repeats
  )
  seconds['floor'] = [s * flops / own for s in seconds['floor']]
  print(f'{"ms":>24} {"images/s":>9} {"TFLOP/s":>8} {"x floor":>8}  x MPBN')
  results = {}
  for name in functions:
    value, low, high = measure.ratio(seconds[name], seconds['MPBN'])
    to_floor, _, _ = measure.ratio(seconds[name], seconds['floor'])
    median = 1e3 * measure.medians(seconds)[name]
    results[name] = {
      'ms': median,
      'flops': flops,
      'to_floor': to_floor,
      'to_ours': [value, low, high],
    }
    print(
      f'{name:<16} {median:7.1f} {1e3 * options.batch / median:9.0f} '
      f'{flops / median / 1e9:8.2f} {to_floor:8.2f} {value:8.2f} '
      f'[{low:.2f}, {high:.2f}]'
    )
  return results


def main():
  options = arguments()
  if options.alone:
    print(json.dumps(alone(options.alone, options)))
    return
  names = [*OURS, *(PEERS if options.peers else ())]
  if options.only:
    names = measure.chosen(options.only, [*OURS, *PEERS, COMPILED], base='MPBN')
  settings = measure.settings(options)
  print(f'training step, 32x32x3, {settings}')
  results = (memory if options.memory else times)(names, options)
  measure.record(__file__, settings | {'memory': options.memory}, results)


if __name__ == '__main__':
  main()
