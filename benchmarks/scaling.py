"""How do time, memory and collectives of a training step grow?

    python benchmarks/scaling.py --over=steps --width=16 --batch=32
    python benchmarks/scaling.py --over=batch --name=autodiff
    python benchmarks/scaling.py --over=devices --network=resnet19 --width=8

Each point runs alone in a process of its own, with a warm compilation cache
(`train_step.py --alone`); on a GPU all run in this one, and the memory is what
XLA plans. Prints a line a + b * value fitted to time and to memory, and the
exponent of the last doubling beyond the first point: at most 1 where growth is
at most linear.

Over devices, nothing is timed: the step is compiled for virtual devices of the
CPU, with global batch statistics and with one group for each device, and the
collectives in its text are counted. `--batch` is the global batch.
"""

import argparse
import collections
import math
import os
import tempfile

import jax
import measure
import numpy as np
import train_step

VALUES = {
  'steps': (1, 2, 4, 8, 16),
  'batch': (8, 16, 32, 64, 128),
  'width': (8, 16, 32, 64),
  'devices': (2, 4, 8),
}


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--over', choices=VALUES, default='steps')
  parser.add_argument('--name', choices=train_step.OURS, default='MPBN')
  parser.add_argument('--batch', type=int, default=32)
  parser.add_argument('--steps', type=int, default=2)
  parser.add_argument('--width', type=int, default=16)
  parser.add_argument('--network', default='resnet20', help='or resnet19')
  parser.add_argument(
    '--precision', default='float32', choices=measure.PRECISIONS
  )
  parser.add_argument(
    '--values', help='comma-separated; at least three to fit a line'
  )
  options = parser.parse_args()
  settings = dict(vars(options))
  values = VALUES[options.over]
  if options.values:
    values = tuple(int(value) for value in options.values.split(','))
  if len(values) < 3 and options.over != 'devices':
    parser.error(f'--values: expected at least three, got {values}')
  print(f'training step, 32x32x3, {settings}')
  if options.over == 'devices':
    measure.record(__file__, settings, _collectives(values, options))
    return
  print(f'{options.over:>6} {"ms":>8} {"peak MiB":>9}')
  points = []
  with tempfile.TemporaryDirectory() as cache:
    os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', cache)
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
    for value in values:
      setattr(options, options.over, value)
      found = _point(options)
      points.append((value, 1e3 * found['seconds'], found['peak']))
      print(f'{value:6d} {points[-1][1]:8.0f} {points[-1][2]:9.0f}', flush=True)
  measured, *columns = np.array(points).T
  results = {'points': points}
  for name, column in zip(('ms', 'MiB'), columns, strict=True):
    slope, start = np.polyfit(measured, column, 1)
    growth = (column[-1] - column[0]) / (column[-2] - column[0])
    linear = (values[-1] - values[0]) / (values[-2] - values[0])
    exponent = math.log(growth) / math.log(linear)
    results[name] = {'start': start, 'slope': slope, 'exponent': exponent}
    print(
      f'{name}: {start:.0f} + {slope:.1f} * {options.over}, exponent '
      f'{exponent:.2f}'
    )
  measure.record(__file__, settings, results)


def _collectives(numbers, options):
  """Prints the collectives of a step for each number of devices."""
  # They need the path that `measure` sets.
  import collectives
  import networks

  jax.config.update('jax_num_cpu_devices', max(numbers))
  print('devices groups collectives      KiB  KiB, all but the largest')
  points = []
  for devices in numbers:
    for groups in (1, devices):
      network = networks.model(
        **measure.shape(options),
        **train_step.OURS[options.name],
        stats_groups=groups,
      )
      step = collectives.compiled_step(
        network, *measure.data(options.batch), devices=devices
      )
      found = collectives.collectives(step.as_text())
      sizes = sorted(one.size / 2**10 for one in found)
      kinds = collections.Counter(one.kind for one in found)
      points.append((devices, groups, dict(kinds), sum(sizes)))
      print(
        f'{devices:7d} {groups:6d} {len(found):11d} {sum(sizes):8.1f} '
        f'{sum(sizes[:-1]):8.1f}  {dict(kinds)}',
        flush=True,
      )
  return {'points': points}


def _point(options):
  if jax.default_backend() == 'cpu':
    for _ in range(2):  # the second finds the compilation cache
      found = measure.in_a_process(
        train_step.__file__, f'--alone={options.name}', *measure.flags(options)
      )
    return found
  found = train_step.alone(options.name, options)
  return found | {'peak': found['planned']}


if __name__ == '__main__':
  main()
