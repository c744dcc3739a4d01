"""Convolutions of bfloat16 numbers with sums of float32, as Pallas kernels.

XLA's convolutions of bfloat16 round their results to bfloat16. Each kernel here
is a product of matrices whose rows are gathered while it runs (an implicit
GEMM).
"""

import importlib
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mpbn_jax.ops import split

_SIDES = (128, 64, 32, 16)
# Multiprocessors of an H100 or H200, over which work is spread.
_PROCESSORS = 132


class Tiles(NamedTuple):
  """Shape of the product that a program computes at a time, and its resources.

  Attributes:
    rows: rows of the result.
    columns: columns of the result.
    depth: length of the sums that the tensor cores compute. These round
      towards 0, so that longer ones have a bias; sums of them are rounded to
      nearest.
    warps: warps of a program.
    stages: how many steps ahead data are loaded.
  """

  rows: int
  columns: int
  depth: int
  warps: int
  stages: int


# The fastest that were tried on an H200 of those without spilled registers and
# within the shared memory of an A100 (160 KiB).
_FORWARD = {
  1: Tiles(128, 64, 64, warps=4, stages=2),
  3: Tiles(64, 128, 32, warps=4, stages=3),
}
_GRADIENT = Tiles(128, 128, 32, warps=8, stages=3)


def available() -> bool:
  """Whether this JAX can run them, on one GPU.

  The Triton backend of Pallas is deprecated since JAX 0.11, and a later JAX may
  not have it. XLA does not distribute kernels over devices.
  """
  try:
    importlib.import_module('jax.experimental.pallas.triton')
  except ImportError:
    return False
  return jax.device_count() == 1


def supported(
  x_shape: Sequence[int],
  kernel_shape: Sequence[int],
  padding: Sequence[Sequence[int]],
) -> bool:
  """Whether channels fill tiles, and 32-bit numbers can index all elements.

  A program that is exported for any batch size has no such number.
  """
  n, *sides, _ = x_shape
  channels = kernel_shape[2:]
  if not isinstance(n, int) or any(c % _SIDES[-1] for c in channels):
    return False
  for side, zeros in zip(sides, padding, strict=True):
    n *= side + sum(zeros)
  return n * max(channels) < 2**31


def forward(
  xs: Sequence[jax.Array],
  kernels: Sequence[jax.Array],
  strides: Sequence[int],
  padding: Sequence[Sequence[int]],
) -> jax.Array:
  """Returns the convolution of a sum of maps with a sum of kernels.

  Args:
    xs: parts of x, 1 or 3, each [N, H, W, C_in], bfloat16.
    kernels: three parts of the kernel, each [kh, kw, C_in, C_out], bfloat16.
    strides: strides along H and W.
    padding: zeros (before, after) along H and along W.

  Returns:
    [N, H', W', C_out], float32.
  """
  wanted = _FORWARD[len(xs)]
  maps = _Maps.of(xs[0].shape, kernels[0].shape, strides, padding)
  tiles = wanted._replace(
    columns=_side(maps.c_out, wanted.columns),
    depth=_side(maps.c_in, wanted.depth),
  )
  y = _call(
    partial(_forward_kernel, maps=maps, tiles=tiles, operands=len(xs)),
    'convolution',
    (*xs, *kernels),
    tiles,
    programs=-(-maps.pixels // tiles.rows) * (maps.c_out // tiles.columns),
    size=maps.pixels * maps.c_out,
  )
  return y.reshape(maps.n, *maps.result, maps.c_out)


def input_gradient(
  cotangents: Sequence[jax.Array],
  kernels: Sequence[jax.Array],
  padding: Sequence[Sequence[int]],
) -> jax.Array:
  """Returns the gradient of x of a convolution with strides of 1.

  Args:
    cotangents: three parts of the gradient of y, each [N, H', W', C_out].
    kernels: three parts of the kernel, each [kh, kw, C_in, C_out].
    padding: zeros (before, after) along H and along W of x.
  """
  turned = [k[::-1, ::-1].transpose(0, 1, 3, 2) for k in kernels]
  sides = zip(kernels[0].shape[:2], padding, strict=True)
  opposite = [tuple(taps - 1 - zeros for zeros in pair) for taps, pair in sides]
  return forward(cotangents, turned, (1, 1), opposite)


def kernel_gradient(
  xs: Sequence[jax.Array],
  cotangents: Sequence[jax.Array],
  kernel_shape: Sequence[int],
  strides: Sequence[int],
  padding: Sequence[Sequence[int]],
) -> jax.Array:
  """Returns the gradient of the kernel of a convolution.

  Args:
    xs: parts of x, each [N, H, W, C_in], bfloat16.
    cotangents: three parts of the gradient of y, each [N, H', W', C_out].
    kernel_shape: (kh, kw, C_in, C_out).
    strides: strides along H and W.
    padding: zeros (before, after) along H and along W.

  Returns:
    kernel_shape, float32.
  """
  maps = _Maps.of(xs[0].shape, kernel_shape, strides, padding)
  tiles = _GRADIENT._replace(
    rows=_side(maps.c_in, _GRADIENT.rows),
    columns=_side(maps.c_out, _GRADIENT.columns),
  )
  size = maps.kernel[0] * maps.kernel[1] * maps.c_in * maps.c_out
  per_group = size // (tiles.rows * tiles.columns)
  steps = _steps(-(-maps.pixels // tiles.depth), per_group)
  groups = -(-maps.pixels // (steps * tiles.depth))
  y = _call(
    partial(
      _gradient_kernel,
      maps=maps,
      tiles=tiles,
      operands=len(xs),
      steps=steps,
    ),
    'kernel_gradient',
    (*xs, *cotangents),
    tiles,
    programs=groups * per_group,
    size=groups * size,
  )
  return y.reshape(groups, *kernel_shape).sum(0)


class _Maps(NamedTuple):
  """The sizes of a convolution."""

  n: int
  sides: tuple[int, int]
  c_in: int
  kernel: tuple[int, int]
  c_out: int
  strides: tuple[int, int]
  before: tuple[int, int]
  result: tuple[int, int]

  @classmethod
  def of(cls, x_shape, kernel_shape, strides, padding):
    n, *sides, c_in = x_shape
    *kernel, _, c_out = kernel_shape
    result = [
      (side + sum(zeros) - taps) // stride + 1
      for side, taps, stride, zeros in zip(
        sides, kernel, strides, padding, strict=True
      )
    ]
    return cls(
      n=n,
      sides=tuple(sides),
      c_in=c_in,
      kernel=tuple(kernel),
      c_out=c_out,
      strides=tuple(strides),
      before=tuple(zeros for zeros, _ in padding),
      result=tuple(result),
    )

  @property
  def pixels(self):
    return self.n * self.result[0] * self.result[1]

  def rows(self, pixel, tap):
    """Returns the rows of x that a tap multiplies, and which are no padding."""
    height, width = self.sides
    image, place = _divided(pixel, self.result[0] * self.result[1])
    row, column = _divided(place, self.result[1])
    down, right = _divided(tap, self.kernel[1])
    h = row * self.strides[0] - self.before[0] + down
    w = column * self.strides[1] - self.before[1] + right
    inside = (h >= 0) & (h < height) & (w >= 0) & (w < width)
    return (image * height + h) * width + w, inside & (pixel < self.pixels)


def _forward_kernel(*refs, maps, tiles, operands):
  *refs, result = refs
  xs, kernels = refs[:operands], refs[operands:]
  load, store, program = _pallas()
  block, column_block = _divided(program, maps.c_out // tiles.columns)
  pixel = block * tiles.rows + jnp.arange(tiles.rows)
  column = column_block * tiles.columns + jnp.arange(tiles.columns)
  per_tap = maps.c_in // tiles.depth

  def step(i, total):
    tap, channel_block = _divided(i, per_tap)
    row, inside = maps.rows(pixel, tap)
    channel = channel_block * tiles.depth + jnp.arange(tiles.depth)
    a = load(xs, row, channel, maps.c_in, inside)
    b = load(kernels, tap * maps.c_in + channel, column, maps.c_out)
    return total + _product(a, b, axis=1)

  steps = maps.kernel[0] * maps.kernel[1] * per_tap
  total = lax.fori_loop(
    0, steps, step, jnp.zeros((tiles.rows, tiles.columns), jnp.float32)
  )
  store(result, pixel, column, maps.c_out, total, pixel < maps.pixels)


def _gradient_kernel(*refs, maps, tiles, operands, steps):
  *refs, result = refs
  xs, cotangents = refs[:operands], refs[operands:]
  load, store, program = _pallas()
  rest, column_block = _divided(program, maps.c_out // tiles.columns)
  rest, channel_block = _divided(rest, maps.c_in // tiles.rows)
  group, tap = _divided(rest, maps.kernel[0] * maps.kernel[1])
  channel = channel_block * tiles.rows + jnp.arange(tiles.rows)
  column = column_block * tiles.columns + jnp.arange(tiles.columns)

  def step(i, total):
    pixel = (group * steps + i) * tiles.depth + jnp.arange(tiles.depth)
    row, inside = maps.rows(pixel, tap)
    a = load(xs, row, channel, maps.c_in, inside)
    b = load(cotangents, pixel, column, maps.c_out, pixel < maps.pixels)
    return total + _product(a, b, axis=0)

  total = lax.fori_loop(
    0, steps, step, jnp.zeros((tiles.rows, tiles.columns), jnp.float32)
  )
  # `rest` counts groups and their taps, the rows of the result.
  store(result, rest * maps.c_in + channel, column, maps.c_out, total)


def _product(a, b, axis):
  """Returns the sum over a's axis and rows of b, of all parts."""
  products = [
    lax.dot_general(
      a[i],
      b[j],
      (((axis,), (0,)), ((), ())),
      # What JAX is set to would split these parts again.
      precision=lax.Precision.DEFAULT,
      preferred_element_type=jnp.float32,
    )
    for i, j in split.pairs(len(a), len(b))
  ]
  return sum(products[1:], products[0])


def _side(n, most):
  """Returns the widest tile that divides n channels."""
  return next(side for side in _SIDES if side <= most and n % side == 0)


def _steps(blocks, tiles):
  """Returns after how many blocks of pixels to begin another partial sum.

  Few programs leave processors idle, and many have much to write: a partial sum
  takes about as long as 3 steps.
  """

  def time(groups):
    steps = -(-blocks // groups)
    waves = -(-groups * tiles // _PROCESSORS)
    return waves * (steps + 4) + 3 * groups * tiles / _PROCESSORS

  return -(-blocks // min(range(1, min(blocks, 64) + 1), key=time))


def _divided(a, n):
  """Returns quotient and remainder of numbers that are not negative."""
  if n == 1:
    return a, jnp.zeros_like(a)
  n = jnp.full_like(a, n)
  return lax.div(a, n), lax.rem(a, n)


def _pallas():
  """Returns how a kernel reads and writes, and the number of its program."""
  # Imported here: JAX may not have it, see `available`.
  from jax.experimental import pallas as pl
  from jax.experimental.pallas import triton

  def of(ref, rows, columns, width):
    return ref.at[rows[:, None] * width + columns[None, :]]

  def masked(inside):
    return {} if inside is None else {'mask': inside[:, None]}

  def load(refs, rows, columns, width, inside=None):
    options = masked(inside)
    if options:
      options['other'] = 0.0
    return [triton.load(of(r, rows, columns, width), **options) for r in refs]

  def store(ref, rows, columns, width, values, inside=None):
    triton.store(of(ref, rows, columns, width), values, **masked(inside))

  return load, store, pl.program_id(0)


def _call(kernel, name, operands, tiles, *, programs, size):
  """Runs a kernel; where no GPU is, as JAX's operations, for tests."""
  from jax.experimental import pallas as pl
  from jax.experimental.pallas import triton

  run = partial(
    pl.pallas_call,
    kernel,
    grid=(programs,),
    out_shape=jax.ShapeDtypeStruct((size,), jnp.float32),
    name=name,
  )
  parameters = triton.CompilerParams(
    num_warps=tiles.warps, num_stages=tiles.stages
  )
  return lax.platform_dependent(
    *(operand.reshape(-1) for operand in operands),
    cuda=run(compiler_params=parameters),
    default=run(interpret=True),
  )
