"""How do time, memory and collectives of a training step grow?

    python benchmarks/scaling.py --over=steps --width=16 --batch=32
    python benchmarks/scaling.py --over=batch --name=autodiff
    python benchmarks/scaling.py --over=devices --network=resnet19 --width=8

Each point runs alone in a process of its own, with a warm compilation cache
(`train_step.py --alone`). All points take turns, `--rounds` times; a point is
the median of its rounds. On a GPU all run in this process, and the memory is
what XLA plans. Prints a line a + b * value fitted to time and to memory, and
the exponent of the last doubling beyond the first point, with its 95 %
bootstrap interval: growth is more than linear where that lies above 1.

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
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument(
    '--values', help='comma-separated; at least three to fit a line'
  )
  options = parser.parse_args()
  settings = dict(vars(options))
  values = VALUES[options.over]
  if options.values:
    values = tuple(int(value) for value in options.values.split(','))
  if options.rounds < 1:
    parser.error(f'--rounds: expected at least 1, got {options.rounds}')
  if len(values) < 3 and options.over != 'devices':
    parser.error(f'--values: expected at least three, got {values}')
  print(f'training step, 32x32x3, {settings}')
  if options.over == 'devices':
    measure.record(__file__, settings, _collectives(values, options))
    return
  measured = []
  with tempfile.TemporaryDirectory() as cache:
    os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', cache)
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
    # The first round fills the compilation cache.
    for turn in range(-1, options.rounds):
      points = [_point(value, options) for value in values]
      if turn >= 0:
        measured.append(points)
        print(f'round {turn + 1} of {options.rounds}', flush=True)
  measure.record(
    __file__, settings, _growth(values, np.array(measured), options)
  )


def _growth(values, measured, options):
  """Prints medians, lines and exponents of measured [rounds, values, 2]."""
  medians = np.median(measured, 0)
  print(f'{options.over:>6} {"ms":>8} {"peak MiB":>9}')
  for value, (ms, mebibytes) in zip(values, medians, strict=True):
    print(f'{value:6d} {ms:8.0f} {mebibytes:9.0f}')
  results = {'points': [(v, *m) for v, m in zip(values, medians, strict=True)]}
  drawn = measure.resampled(measured)
  for index, name in enumerate(('ms', 'MiB')):
    slope, start = np.polyfit(values, medians[:, index], 1)
    exponent = float(_exponent(values, medians[:, index]))
    low, high = measure.interval(_exponent(values, drawn[..., index]))
    results[name] = {
      'start': start,
      'slope': slope,
      'exponent': exponent,
      'interval': (low, high),
    }
    print(
      f'{name}: {start:.0f} + {slope:.1f} * {options.over}, exponent '
      f'{exponent:.3f} [{low:.3f}, {high:.3f}]'
    )
  return results


def _exponent(values, measured):
  """Returns exponents of the last step of measured [..., values]."""
  growth = (measured[..., -1] - measured[..., 0]) / (
    measured[..., -2] - measured[..., 0]
  )
  linear = (values[-1] - values[0]) / (values[-2] - values[0])
  return np.log(growth) / math.log(linear)


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


def _point(value, options):
  """Returns (ms, peak MiB) of a value."""
  setattr(options, options.over, value)
  if jax.default_backend() == 'cpu':
    found = measure.in_a_process(
      train_step.__file__, f'--alone={options.name}', *measure.flags(options)
    )
    return 1e3 * found['seconds'], found['peak']
  found = train_step.alone(options.name, options)
  return 1e3 * found['seconds'], found['planned']


if __name__ == '__main__':
  main()
