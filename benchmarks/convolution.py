"""Time of each product of the convolution, in matmuls of the same FLOPs.

For the layers of spiking ResNet20 (32 images = B * T) and for few channels,
times the forward, the input gradient and the kernel gradient of

  plain: `lax.conv_general_dilated` and its autodiff,
  ours: `mpbn_jax.ops.convolution`,

outside and inside `lax.scan`, and prints each as a multiple of the floor: one
square matmul of the same FLOPs, timed in the same run. 1.0 is ideal; a layer
with few channels cannot reach it, because it moves more bytes per FLOP. The
scan also reads its slices and writes its results, about one copy of each.

  python benchmarks/convolution.py [--rounds=7] [--only=32x32]
"""

import argparse
import pathlib
import statistics
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from mpbn_jax.ops import convolution_cpu, convolution_plain

# images, map, kernel, stride, C_in, C_out; padding keeps the map at stride 1.
LAYERS = (
  # ResNet20, width 64
  (32, 32, 3, 1, 3, 64),
  (32, 32, 3, 1, 64, 64),
  (32, 16, 3, 1, 64, 64),
  (32, 16, 3, 2, 64, 128),
  (32, 8, 1, 1, 64, 128),
  (32, 8, 3, 1, 128, 128),
  (32, 8, 3, 2, 128, 256),
  (32, 4, 3, 1, 256, 256),
  (32, 4, 3, 2, 256, 512),
  (32, 2, 3, 1, 512, 512),
  # ResNet20, width 16
  (32, 32, 3, 1, 16, 16),
  (32, 16, 3, 2, 16, 32),
  (32, 8, 3, 1, 32, 32),
  (32, 4, 3, 1, 64, 64),
  (32, 2, 3, 1, 128, 128),
  # few channels
  (128, 32, 3, 1, 3, 8),
  (128, 32, 3, 1, 8, 8),
  (512, 8, 3, 1, 3, 8),
  (512, 8, 3, 1, 8, 8),
  # ResNet18 on ImageNet: its first layer and a shortcut
  (8, 64, 7, 2, 3, 64),
  (32, 16, 1, 2, 64, 128),
)
PRODUCTS = {
  'forward': (convolution_plain.forward, convolution_cpu.forward),
  'input': (
    convolution_plain.input_gradient,
    convolution_cpu.input_gradient,
  ),
  'kernel': (
    convolution_plain.kernel_gradient,
    convolution_cpu.kernel_gradient,
  ),
}
SCAN_STEPS = 2
# Some of the plain products take seconds inside a loop.
SLOW_SECONDS, SLOW_ROUNDS = 0.5, 1


def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--only', default='', help='part of a layer as printed')
  flags = parser.parse_args(argv)
  device = jax.devices()[0]
  print(
    f'JAX {jax.__version__}, {jax.device_count()} x {device.device_kind} '
    f'({device.platform}), float32, median of {flags.rounds} rounds'
  )
  print(
    'multiples of the floor: plain -> ours | inside lax.scan: plain -> ours'
  )
  names = ''.join(f'{name:>32}' for name in PRODUCTS)
  print(f'{"layer":28}{"floor ms":>9}{"GFLOP/s":>9}{names}')
  for layer in LAYERS:
    if flags.only in _name(layer):
      print(_row(layer, flags.rounds), flush=True)


def _name(layer):
  images, side, kernel, stride, c_in, c_out = layer
  return f'{images} {side}x{side} k{kernel} s{stride} {c_in} -> {c_out}'


def _row(layer, rounds):
  flops, candidates = _candidates(layer)
  medians = _medians(candidates, rounds)
  floor = medians['floor']
  cells = ''
  for name in PRODUCTS:
    plain, ours, plain_scan, ours_scan = (
      medians[name, way, place] / floor
      for place in ('alone', 'scan')
      for way in ('plain', 'ours')
    )
    cells += (
      f'{plain:8.1f} -> {ours:4.1f} |{plain_scan:7.1f} -> {ours_scan:4.1f}'
    )
  rate = flops / floor / 1e9
  return f'{_name(layer):28}{floor * 1e3:9.2f}{rate:9.0f}{cells}'


def _candidates(layer):
  """Returns the FLOPs of one product, and what to time by name."""
  images, side, kernel_side, stride, c_in, c_out = layer
  padding = ((kernel_side // 2,) * 2,) * 2
  static = {'strides': (stride, stride), 'padding': padding}
  random = np.random.default_rng(0)

  def normal(*shape):
    return jnp.asarray(random.normal(size=shape), jnp.float32)

  x = normal(images, side, side, c_in)
  kernel = normal(kernel_side, kernel_side, c_in, c_out)
  y_shape = jax.eval_shape(
    partial(convolution_plain.forward, **static), x, kernel
  ).shape
  cotangent = normal(*y_shape)
  flops = 2 * kernel_side**2 * c_in * cotangent.size
  square = normal(*(round((flops / 2) ** (1 / 3)),) * 2)
  candidates = {'floor': (jax.jit(jnp.matmul), (square, square), 1)}
  for name, ways in PRODUCTS.items():
    arguments = (x, kernel) if name == 'forward' else (cotangent, x, kernel)
    stacked = [jnp.stack([a] * SCAN_STEPS) for a in arguments]
    for way, function in zip(('plain', 'ours'), ways, strict=True):
      function = partial(function, **static)
      alone = (jax.jit(function), arguments, 1)
      scan = (jax.jit(partial(_scan, function)), stacked, SCAN_STEPS)
      candidates[name, way, 'alone'] = alone
      candidates[name, way, 'scan'] = scan
  return flops, candidates


def _scan(function, *stacked):
  return lax.scan(lambda carry, x: (carry, function(*x)), None, stacked)[1]


def _medians(candidates, rounds):
  """Returns median seconds per call; rounds interleave the candidates."""
  seconds = {name: [] for name in candidates}
  slow = set()
  for turn in range(-2, rounds):  # two turns to compile and to warm up
    for name, (function, arguments, calls) in candidates.items():
      if name in slow and turn >= SLOW_ROUNDS:
        continue
      start = time.perf_counter()
      jax.block_until_ready(function(*arguments))
      elapsed = time.perf_counter() - start
      if turn >= 0:
        seconds[name].append(elapsed / calls)
        if elapsed > SLOW_SECONDS:
          slow.add(name)
  return {name: statistics.median(times) for name, times in seconds.items()}


if __name__ == '__main__':
  main()
