"""How fast would training be on 8 to 1,024 TPU chips, on paper?

    python benchmarks/scale_model.py
    python benchmarks/scale_model.py --cases=ResNet19/CIFAR --batch=4

Nothing is measured. Collectives and FLOPs are counted in the compiled training
step, for virtual devices of a CPU (`collectives.py`); what chips and links do
in a second is published, and the rest is assumed:

    compute = FLOPs of a chip's part of the batch / (utilization * peak)
    all-reduce = max(hops * latency of a hop, 2 * bytes / bandwidth of a chip)
    step = compute + sum of the all-reduces,  efficiency = compute / step

An all-reduce crosses each axis of the torus twice, half its length each time:
hops = sum of the sides. No all-reduce overlaps with computing, which is so for
statistics, and pessimistic for gradients. `docs/scale_model.md` explains it.
"""

import argparse
import collections
import dataclasses

import jax
import measure

CHIPS = (8, 64, 256, 1024)
DEVICES = 2  # of the compiled program; counts are the same for 4 and 8
CHIPS_PER_HOST = 4  # of a slice of several hosts
COMPILED_BATCH = 8  # of both devices: FLOPs per image hardly depend on it


@dataclasses.dataclass(frozen=True)
class Tpu:
  """Published figures of a kind of TPU.

  Attributes:
    peak: bfloat16 FLOP/s of a chip.
    bandwidth: bytes/s that a chip sends to all its neighbours together.
    torus: {number of chips: sides of the torus}.
  """

  peak: float
  bandwidth: float
  torus: dict[int, tuple[int, ...]]


_CUBES = {8: (2, 2, 2), 64: (4, 4, 4), 256: (4, 8, 8), 1024: (8, 8, 16)}
_SQUARES = {8: (2, 4), 64: (8, 8), 256: (16, 16)}  # a pod has 256 chips
TPUS = {
  'v4': Tpu(2.75e14, 3e11, _CUBES),
  'v5e': Tpu(1.97e14, 2e11, _SQUARES),
  'v5p': Tpu(4.59e14, 6e11, _CUBES),
}


@dataclasses.dataclass(frozen=True)
class Case:
  """A network and its data.

  Attributes:
    settings: arguments of `networks.model`.
    side: side of an image.
    batch: images of each chip in a step.
  """

  settings: dict
  side: int
  batch: int


CASES = {
  'ResNet19/CIFAR': Case(
    {'network': 'resnet19', 'num_steps': 2, 'width': 128}, 32, 128
  ),
  'ResNet34/ImageNet': Case(
    {'network': 'resnet34', 'num_steps': 4, 'width': 64, 'num_classes': 1000},
    224,
    32,
  ),
}


def count(case, *, groups):
  """Returns (FLOPs of a step per image, sizes of its all-reduces in bytes)."""
  # They need the path that `measure` sets.
  import collectives
  import networks

  network = networks.model(
    **case.settings, precision='bfloat16', stats_groups=groups
  )
  images = (COMPILED_BATCH, case.side, case.side, 3)
  step = collectives.compiled_step(
    network,
    jax.ShapeDtypeStruct(images, 'float32'),
    jax.ShapeDtypeStruct(images[:1], 'int32'),
    devices=DEVICES,
  )
  found = collectives.collectives(step.as_text())
  assert {one.kind for one in found} == {'all-reduce'}, found
  flops = step.cost_analysis()['flops'] * DEVICES / COMPILED_BATCH
  return flops, [one.size for one in found]


def step_time(flops, sizes, *, tpu, chips, options):
  """Returns (seconds of computing, seconds of all all-reduces)."""
  least = sum(tpu.torus[chips]) * options.hop_us * 1e-6
  compute = flops / (options.utilization * tpu.peak)
  waits = (max(least, 2 * size / tpu.bandwidth) for size in sizes)
  return compute, sum(waits)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--utilization', type=float, default=0.35)
  parser.add_argument('--hop_us', type=float, default=1.0)
  parser.add_argument('--cases', default=','.join(CASES))
  parser.add_argument('--batch', type=int, help='images of each chip')
  options = parser.parse_args()
  jax.config.update('jax_num_cpu_devices', DEVICES)
  print(
    f'nothing is measured; assumed: {options.utilization:.0%} of the peak, '
    f'{options.hop_us} us per hop'
  )
  results = {}
  for name in options.cases.split(','):
    case = CASES[name]
    if options.batch:
      case = dataclasses.replace(case, batch=options.batch)
    results[name] = _print_case(case, name, options)
  measure.record(__file__, vars(options), results)


def _print_case(case, name, options):
  counted = {
    'global': count(case, groups=1),
    'groups': count(case, groups=DEVICES),
  }
  print(f'\n{name}, {case.settings}, {case.batch} images per chip')
  for statistics, (flops, sizes) in counted.items():
    print(
      f'{statistics}: {len(sizes)} all-reduces, {sum(sizes) / 2**20:.2f} MiB, '
      f'{(sum(sizes) - max(sizes)) / 2**20:.2f} without the largest; '
      f'{flops / 1e9:.1f} GFLOPs per image'
    )
  print(
    'TPU chips  statistics  compute ms  all-reduce ms  step ms  efficiency  '
    'images/s  per host  MB/s'
  )
  rows = []
  for kind, tpu in TPUS.items():
    for chips in CHIPS:
      for statistics, (flops, sizes) in counted.items():
        if chips in tpu.torus:
          rows.append(
            _print_row(kind, chips, statistics, flops, sizes, case, options)
          )
  sizes = {
    name: collections.Counter(sizes) for name, (_, sizes) in counted.items()
  }
  return {
    'sizes': {name: sorted(s.items()) for name, s in sizes.items()},
    'rows': rows,
  }


def _print_row(kind, chips, statistics, flops, sizes, case, options):
  tpu = TPUS[kind]
  compute, wait = step_time(
    flops * case.batch, sizes, tpu=tpu, chips=chips, options=options
  )
  step = compute + wait
  rate = chips * case.batch / step
  of_host = rate / (chips // CHIPS_PER_HOST)
  megabytes = of_host * case.side**2 * 3 / 1e6
  print(
    f'{kind:<3} {chips:5d}  {statistics:<10} {1e3 * compute:11.2f} '
    f'{1e3 * wait:14.2f} {1e3 * step:8.2f} {compute / step:11.1%} {rate:9,.0f} '
    f'{of_host:9,.0f} {megabytes:5,.0f}'
  )
  return [kind, chips, statistics, compute, wait, rate, of_host]


if __name__ == '__main__':
  main()
