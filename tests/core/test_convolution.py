"""The convolution: its lowerings agree, and it stays sharded."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mpbn_jax.ops import (
  convolution_cpu,
  convolution_gradients,
  convolution_plain,
  convolution_taps,
)
from mpbn_jax.ops.convolution import convolution

# images, map, kernel, strides, padding, C_in, C_out
GRID = {
  '3x3': (4, (8, 8), (3, 3), (1, 1), ((1, 1), (1, 1)), 8, 8),
  '3x3_image': (4, (8, 8), (3, 3), (1, 1), ((1, 1), (1, 1)), 3, 16),
  '3x3_fewer_out': (4, (6, 6), (3, 3), (1, 1), ((1, 1), (1, 1)), 16, 3),
  '3x3_chunked': (16, (32, 32), (3, 3), (1, 1), ((1, 1), (1, 1)), 64, 4),
  '3x3_side_by_side': (16, (16, 16), (3, 3), (1, 1), ((1, 1), (1, 1)), 20, 24),
  '3x3_many_out': (4, (6, 6), (3, 3), (1, 1), ((1, 1), (1, 1)), 16, 128),
  '3x3_odd_batch': (3, (8, 8), (3, 3), (1, 1), ((1, 1), (1, 1)), 4, 4),
  '3x3_valid': (4, (7, 6), (3, 3), (1, 1), ((0, 0), (0, 0)), 4, 5),
  '3x3_on_2x2': (4, (2, 2), (3, 3), (1, 1), ((1, 1), (1, 1)), 8, 8),
  '3x3_on_1x1': (4, (1, 1), (3, 3), (1, 1), ((1, 1), (1, 1)), 8, 8),
  '3x3_strided': (8, (8, 8), (3, 3), (2, 2), ((1, 1), (1, 1)), 4, 4),
  '3x3_strided_wide': (4, (16, 16), (3, 3), (2, 2), ((1, 1), (1, 1)), 16, 4),
  '3x3_strided_odd': (4, (9, 7), (3, 3), (2, 2), ((1, 1), (1, 1)), 4, 4),
  '3x3_strided_on_2x2': (4, (2, 2), (3, 3), (2, 2), ((1, 1), (1, 1)), 4, 8),
  '7x7_strided': (4, (15, 14), (7, 7), (2, 2), ((3, 3), (3, 3)), 3, 8),
  '7x7_strided_wide': (4, (14, 14), (7, 7), (2, 2), ((3, 3), (3, 3)), 16, 4),
  '7x7_on_4x4': (4, (4, 4), (7, 7), (2, 2), ((3, 3), (3, 3)), 3, 4),
  '1x1': (4, (6, 6), (1, 1), (1, 1), ((0, 0), (0, 0)), 8, 16),
  '1x1_strided': (4, (8, 7), (1, 1), (2, 2), ((0, 0), (0, 0)), 8, 16),
  '1x1_padded': (4, (5, 5), (1, 1), (2, 2), ((1, 1), (1, 1)), 8, 16),
  '2x2_wide_border': (2, (3, 4), (2, 2), (1, 1), ((2, 1), (3, 2)), 3, 4),
  'all_uneven': (4, (9, 8), (3, 2), (3, 1), ((2, 0), (0, 1)), 3, 12),
  'jumps_over_rows': (2, (11, 10), (2, 2), (3, 3), ((0, 1), (2, 0)), 3, 8),
  'window_outside': (2, (1, 4), (2, 2), (2, 2), ((2, 0), (2, 0)), 3, 4),
}
CHUNK_PRODUCTS = (
  'of_rows',
  'of_windows',
  'of_sides',
  'of_windows_last',
  'by_taps',
)
PRODUCTS = ('forward', 'input_gradient', 'kernel_gradient')


def operands(case, dtype=np.float32):
  """Returns normal x and kernel, the latter scaled by its fan-in."""
  images, sizes, kernel_size, strides, padding, c_in, c_out = GRID[case]
  random = np.random.default_rng(0)
  x = random.normal(size=(images, *sizes, c_in))
  kernel = random.normal(size=(*kernel_size, c_in, c_out))
  kernel = kernel / np.sqrt(kernel[..., 0].size)
  static = {'strides': strides, 'padding': padding}
  return jnp.asarray(x, dtype), jnp.asarray(kernel, dtype), static


def cotangent_of(y):
  random = np.random.default_rng(1)
  return jnp.asarray(random.normal(size=y.shape), y.dtype)


def reference(x, kernel, *, strides, padding):
  return lax.conv_general_dilated(
    x, kernel, strides, padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )


@partial(jax.jit, static_argnames=('forward', 'strides', 'padding'))
def three_products(forward, x, kernel, *, strides, padding):
  y, vjp = jax.vjp(
    partial(forward, strides=strides, padding=padding), x, kernel
  )
  return dict(zip(PRODUCTS, (y, *vjp(cotangent_of(y))), strict=True))


@partial(jax.jit, static_argnames=('strides', 'padding'))
def three_cpu_products(x, kernel, *, strides, padding):
  y = convolution_cpu.forward(x, kernel, strides, padding)
  arguments = (cotangent_of(y), x, kernel, strides, padding)
  return {
    'forward': y,
    'input_gradient': convolution_cpu.input_gradient(*arguments),
    'kernel_gradient': convolution_cpu.kernel_gradient(*arguments),
  }


@partial(jax.jit, static_argnames=('strides', 'padding'))
def three_plain_products(x, kernel, *, strides, padding):
  y = convolution_plain.forward(x, kernel, strides, padding)
  arguments = (cotangent_of(y), x, kernel, strides, padding)
  return {
    'forward': y,
    'input_gradient': convolution_plain.input_gradient(*arguments),
    'kernel_gradient': convolution_plain.kernel_gradient(*arguments),
  }


def assert_products_close(actual, expected, tolerance):
  """Compares with the largest element, which the sums' rounding scales with."""
  for product in PRODUCTS:
    a = np.asarray(actual[product], np.float64)
    e = np.asarray(expected[product], np.float64)
    assert a.shape == e.shape, product
    error = np.abs(a - e).max() / max(np.abs(e).max(), 1e-3)
    assert error < tolerance, f'{product}: {error}'


# Sums of at most 16384 float32 terms in another order: 1e-6 was seen.
FLOAT32 = 1e-5
# The result is rounded to 8 bits; XLA's own may round in between, too.
BFLOAT16 = 2e-2


@pytest.mark.parametrize('case', GRID)
def test_cpu_lowering_agrees_with_autodiff_of_lax_convolution(case):
  x, kernel, static = operands(case)
  expected = three_products(reference, x, kernel, **static)
  actual = three_cpu_products(x, kernel, **static)
  assert_products_close(actual, expected, FLOAT32)


def assert_is_a_loop(lowered, turns):
  text = lowered.as_text()
  assert 'stablehlo.while' in text
  assert re.search(rf'dense<{turns}> : tensor<i32>', text)


@pytest.mark.parametrize('case', GRID)
def test_kernel_gradients_of_single_images_add_up(case, monkeypatch):
  monkeypatch.setattr(jax, 'device_count', lambda: 1)
  monkeypatch.setattr(convolution_gradients, 'is_one_tap', lambda kernel: False)
  monkeypatch.setattr(convolution_cpu, '_LEAST_PIXELS', 1)
  monkeypatch.setattr(convolution_cpu, '_CHUNK', 1)
  x, kernel, static = operands(case)
  cotangent = cotangent_of(reference(x, kernel, **static))
  gradient = jax.jit(
    lambda *arrays: convolution_cpu.kernel_gradient(*arrays, **static)
  )
  assert_is_a_loop(gradient.lower(cotangent, x, kernel), len(x))
  expected = three_products(reference, x, kernel, **static)['kernel_gradient']
  np.testing.assert_allclose(
    gradient(cotangent, x, kernel),
    expected,
    atol=FLOAT32 * np.abs(expected).max(),
  )


@pytest.mark.parametrize(
  ('product', 'case'),
  [
    (product, case)
    for product in CHUNK_PRODUCTS
    for case, (_, _, _, (_, stride), *_) in GRID.items()
    if product != 'of_sides' or stride == 1
  ],
)
def test_every_product_is_the_kernel_gradient(product, case):
  x, kernel, static = operands(case)
  cotangent = cotangent_of(reference(x, kernel, **static))
  expected = three_products(reference, x, kernel, **static)['kernel_gradient']
  function = getattr(convolution_gradients, product)
  actual, _ = jax.jit(partial(function, size=kernel.shape[:2], **static))(
    x, cotangent
  )
  np.testing.assert_allclose(
    actual, expected, atol=FLOAT32 * np.abs(expected).max()
  )


def test_the_product_depends_on_channels_and_stride():
  def chosen(c_in, c_out, kernel=(3, 3), stride=1, sides=(8, 8)):
    x, g = np.zeros((2, *sides, c_in)), np.zeros((2, *sides, c_out))
    kernel = np.zeros((*kernel, c_in, c_out))
    return convolution_gradients.best(x, g, kernel, (1, stride)).__name__

  assert chosen(16, 16) == chosen(3, 32) == 'of_sides'
  assert chosen(32, 64, stride=2) == 'of_windows_last'
  assert chosen(64, 64, kernel=(1, 1)) == 'of_windows_last'
  assert chosen(3, 64) == 'of_windows'
  assert chosen(32, 32) == chosen(3, 4, (7, 7), stride=2) == 'of_rows'
  assert chosen(16, 16, sides=(2, 2)) == 'by_taps'


@pytest.mark.parametrize('case', GRID)
def test_input_gradient_by_taps_agrees_on_all_maps(case):
  x, kernel, static = operands(case)
  cotangent = cotangent_of(reference(x, kernel, **static))
  expected = three_products(reference, x, kernel, **static)['input_gradient']
  np.testing.assert_allclose(
    convolution_taps.input_gradient(cotangent, x, kernel, **static),
    expected,
    atol=FLOAT32 * np.abs(expected).max(),
  )


@pytest.mark.parametrize('group', [1, 2, 4])
@pytest.mark.parametrize(
  'case',
  ['3x3', '3x3_image', '3x3_strided', '7x7_on_4x4', '7x7_strided_wide', '1x1'],
)
def test_outputs_computed_as_neighbors_equal_single_ones(case, group):
  x, kernel, static = operands(case)
  expected = reference(x, kernel, **static)
  sides = expected.shape[1:3]
  if sides[1] % group:
    group = sides[1]
  actual = convolution_cpu._as_one_matmul(
    x, kernel, **static, sides=sides, group=group
  )
  np.testing.assert_allclose(
    actual, expected, atol=FLOAT32 * np.abs(expected).max()
  )


@pytest.mark.parametrize('images', [3, 8])
@pytest.mark.parametrize('strides', [(1, 1), (2, 2), (1, 3)])
@pytest.mark.parametrize(
  ('size', 'padding'),
  [
    ((3, 3), ((1, 1), (1, 1))),
    ((1, 3), ((0, 0), (0, 0))),
    ((3, 4), ((1, 0), (0, 3))),
    ((2, 3), ((0, 2), (4, 0))),
    ((2, 2), ((0, 1), (-1, 2))),
  ],
)
def test_images_side_by_side_do_not_see_each_other(
  size, padding, strides, images, monkeypatch
):
  monkeypatch.setattr(convolution_cpu, '_WIDE_FLOPS', 0)
  random = np.random.default_rng(0)
  x = jnp.asarray(random.normal(size=(images, 9, 10, 40)), jnp.float32)
  kernel = jnp.asarray(random.normal(size=(*size, 40, 24)), jnp.float32)
  function = jax.jit(
    lambda x, k: convolution_cpu._correlate(x, k, strides, padding)
  )
  y = function(x, kernel)
  np.testing.assert_allclose(
    y,
    convolution_plain.forward(x, kernel, strides, padding),
    atol=FLOAT32 * np.abs(y).max(),
  )
  # Four devices: images that they share equally.
  devices = 4 if images == 8 else 1
  text = function.lower(x, kernel).as_text()
  (batch,) = re.findall(r'convolution\(.*-> tensor<(\d+)x', text)
  assert int(batch) == devices


@pytest.mark.parametrize('case', ['3x3', '3x3_strided_odd', '1x1_strided'])
def test_plain_lowering_agrees_with_autodiff_of_lax_convolution(case):
  x, kernel, static = operands(case)
  expected = three_products(reference, x, kernel, **static)
  actual = three_plain_products(x, kernel, **static)
  assert_products_close(actual, expected, FLOAT32)


@pytest.mark.parametrize(
  'case', ['3x3', '3x3_chunked', '3x3_on_2x2', '7x7_strided', '1x1_strided']
)
def test_public_function_agrees_with_autodiff_of_lax_convolution(case):
  x, kernel, static = operands(case)
  expected = three_products(reference, x, kernel, **static)
  actual = three_products(convolution, x, kernel, **static)
  assert_products_close(actual, expected, FLOAT32)


@pytest.mark.parametrize('case', ['3x3', '3x3_strided_on_2x2', '1x1_strided'])
def test_bfloat16_accumulates_in_float32(case):
  x, kernel, static = operands(case, jnp.bfloat16)
  wide = three_products(
    reference, x.astype(jnp.float32), kernel.astype(jnp.float32), **static
  )
  actual = three_products(convolution, x, kernel, **static)
  assert {a.dtype for a in actual.values()} == {jnp.dtype(jnp.bfloat16)}
  # One rounding of each result, and one of the cotangent.
  assert_products_close(actual, wide, BFLOAT16)


@pytest.mark.parametrize('transform', ['scan', 'vmap', 'checkpoint'])
def test_gradients_survive(transform):
  x, kernel, static = operands('3x3')
  xs = jnp.stack([x, 2 * x])

  def loss(forward, xs, kernel):
    def layer(x):
      return jnp.sin(forward(x, kernel, **static))

    if transform == 'scan':
      return lax.scan(lambda c, x: (c + layer(x).sum(), None), 0.0, xs)[0]
    if transform == 'vmap':
      return jax.vmap(layer)(xs).sum()
    return jax.checkpoint(layer)(xs[0]).sum()

  gradient = jax.jit(jax.grad(loss, argnums=(1, 2)), static_argnums=0)
  expected = gradient(reference, xs, kernel)
  actual = gradient(convolution, xs, kernel)
  for a, e in zip(actual, expected, strict=True):
    np.testing.assert_allclose(a, e, atol=FLOAT32 * np.abs(e).max())


def test_vmap_over_kernels_agrees():
  x, kernel, static = operands('3x3_strided_odd')
  kernels = jnp.stack([kernel, kernel[::-1]])

  def gradients(forward):
    def loss(x, kernel):
      return jnp.sin(forward(x, kernel, **static)).sum()

    return jax.jit(jax.vmap(jax.grad(loss, (0, 1)), (None, 0)))(x, kernels)

  for a, e in zip(gradients(convolution), gradients(reference), strict=True):
    np.testing.assert_allclose(a, e, atol=FLOAT32 * np.abs(e).max())


def test_unread_input_gradient_costs_nothing():
  x, kernel, static = operands('3x3')

  def flops(argnums):
    def loss(x, kernel):
      return convolution(x, kernel, **static).sum()

    compiled = jax.jit(jax.grad(loss, argnums)).lower(x, kernel).compile()
    return compiled.cost_analysis()['flops']

  product = 2 * 9 * 8 * x.size  # FLOPs of one of the three products
  # grad drops the forward value, too; the rest is elementwise.
  assert flops(1) < 1.2 * product
  assert flops((0, 1)) > 1.5 * product


@pytest.mark.parametrize('platform', ['cuda', 'tpu'])
def test_other_platforms_get_the_plain_convolution(platform):
  x, kernel, static = operands('3x3_chunked')

  def loss(x, kernel):
    return jnp.square(convolution(x, kernel, **static)).sum()

  traced = jax.jit(jax.grad(loss, (0, 1))).trace(x, kernel)
  text = traced.lower(lowering_platforms=(platform,)).as_text()
  assert text.count('stablehlo.convolution') == 3
  assert 'stablehlo.while' not in text
  assert 'stablehlo.dot_general' not in text


@pytest.fixture
def mesh():
  return jax.make_mesh(
    (4,), ('data',), axis_types=(AxisType.Auto,), devices=jax.devices()[:4]
  )


def compiled_gradient(case, mesh):
  x, kernel, static = operands(case)
  images = PartitionSpec('data') if mesh else None
  shardings = mesh and (
    NamedSharding(mesh, images),
    NamedSharding(mesh, PartitionSpec()),
  )

  def loss(x, kernel):
    return jnp.square(convolution(x, kernel, **static)).sum()

  gradient = jax.grad(loss, (0, 1))
  jitted = (
    jax.jit(gradient, in_shardings=shardings, out_shardings=shardings)
    if mesh
    else jax.jit(gradient)
  )
  return jitted.lower(x, kernel).compile(), (x, kernel)


@pytest.mark.parametrize(
  'case',
  [
    '3x3_chunked',
    '3x3_side_by_side',
    '3x3_strided',
    '3x3_on_2x2',
    '1x1_strided',
  ],
)
def test_sharded_batch_is_reduced_once_and_never_gathered(case, mesh):
  text = compiled_gradient(case, mesh)[0].as_text()
  for collective in ('all-gather', 'all-to-all', 'collective-permute'):
    assert not re.search(rf'\s{collective}(-start)?\(', text), collective
  reductions = [
    line for line in text.splitlines() if re.search(r'\sall-reduce\(', line)
  ]
  assert len(reductions) == 1
  kernel = operands(case)[1]
  assert f'f32[{",".join(map(str, kernel.shape))}]' in reductions[0]
  # Once, after the loop over chunks, not in each of its turns.
  assert reductions[0] in text[text.index('ENTRY') :]


@pytest.mark.parametrize(
  'case', ['3x3_chunked', '3x3_side_by_side', '3x3_strided']
)
def test_each_of_four_devices_computes_a_quarter(case, mesh):
  one = compiled_gradient(case, None)[0].cost_analysis()['flops']
  four = compiled_gradient(case, mesh)[0].cost_analysis()['flops']
  # Flipping the kernel and the final sum are not divided.
  assert four == pytest.approx(one / 4, rel=0.05)


def test_large_maps_are_chunked_on_every_device(mesh):
  for devices in (None, mesh):
    text = compiled_gradient('3x3_chunked', devices)[0].as_text()
    assert '"known_trip_count":{"n":"2"}' in text


def test_sharded_gradients_equal_those_of_one_device(mesh):
  one, arguments = compiled_gradient('3x3_chunked', None)
  four, _ = compiled_gradient('3x3_chunked', mesh)
  arguments_four = jax.device_put(arguments, four.input_shardings[0])
  for a, e in zip(four(*arguments_four), one(*arguments), strict=True):
    np.testing.assert_allclose(a, e, atol=FLOAT32 * np.abs(e).max())


X, KERNEL = np.zeros((2, 4, 4, 3), 'f'), np.zeros((3, 3, 3, 8), 'f')


@pytest.mark.parametrize(
  ('x', 'kernel', 'options', 'error', 'message'),
  [
    (X, KERNEL.astype('d'), {}, TypeError, 'got float32 and float64'),
    (X.astype('i'), KERNEL.astype('i'), {}, TypeError, 'one floating dtype'),
    (X[0], KERNEL, {}, ValueError, r'got \(4, 4, 3\) and'),
    (X[..., :2], KERNEL, {}, ValueError, r'expected x \[N, H, W, C_in\]'),
    (X, KERNEL, {'strides': (0, 1)}, ValueError, r'two strides.*got \(0, 1\)'),
    (X, KERNEL, {'strides': 2}, ValueError, 'two strides of at least 1, got 2'),
    (
      X,
      KERNEL,
      {'padding': 'SAME'},
      ValueError,
      "expected padding.*got 'SAME'",
    ),
    (X, KERNEL, {'padding': (1, 1)}, ValueError, r'padding.*got \(1, 1\)'),
    (X, KERNEL, {'padding': 1}, ValueError, 'padding as .* got 1'),
    (X, KERNEL, {'padding': ((-1, 0), (0, 0))}, ValueError, r'got \(\(-1, 0\)'),
    (X[:, :1], KERNEL, {}, ValueError, r'padded map \(1, 4\), got \(3, 3\)'),
  ],
)
def test_error_says_expected_and_got(x, kernel, options, error, message):
  with pytest.raises(error, match=message):
    convolution(x, kernel, **options)


def test_lists_are_as_good_as_tuples():
  y = convolution(X, KERNEL, strides=[2, 2], padding=[[1, 1], [1, 1]])
  assert y.shape == (2, 2, 2, 8)
