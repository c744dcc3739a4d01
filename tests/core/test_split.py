"""Products of float32 from products of bfloat16."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mpbn_jax import InputError
from mpbn_jax.ops import convolution_kernels as kernels
from mpbn_jax.ops import convolution_plain, convolution_split, split
from mpbn_jax.ops.convolution import convolution

# Of jax 0.11; `convolution_kernels.available` says what happens without it.
pytestmark = pytest.mark.filterwarnings(
  'ignore:The Pallas Triton backend is deprecated:DeprecationWarning'
)

STATIC = ((1, 1), ((1, 1), (1, 1)))
SPLIT = 'BF16_BF16_F32_X6'
FLOATS = st.floats(-(2.0**99), 2.0**99, width=32).filter(
  lambda x: x == 0 or abs(x) > 2.0**-99
)


def float64(a):
  return np.asarray(a).astype(np.float64)


@settings(deadline=None)  # a GPU takes seconds to compile
@given(arrays.arrays(np.float32, 8, elements=FLOATS))
def test_the_sum_of_the_parts_is_the_number(a):
  parts = jax.jit(split.parts)(a)
  assert [part.dtype for part in parts] == 3 * [jnp.bfloat16]
  np.testing.assert_array_equal(sum(map(float64, parts)), float64(a))


def test_spikes_and_what_is_not_finite_are_their_first_part():
  a = jnp.asarray([0, 1, 0.75, jnp.inf, -jnp.inf, jnp.nan])
  first, *others = map(float64, split.parts(a))
  np.testing.assert_array_equal(first, a)
  for part in others:
    np.testing.assert_array_equal(part, 0)


@settings(deadline=None)
@given(arrays.arrays(np.float32, (2, 8), elements=FLOATS))
def test_the_pairs_have_the_bits_of_a_product_of_float32(numbers):
  a, b = (list(map(float64, split.parts(jnp.asarray(n)))) for n in numbers)
  product = sum(a[i] * b[j] for i, j in split.pairs(3, 3))
  exact = float64(numbers[0]) * float64(numbers[1])
  assert np.all(np.abs(product - exact) <= 2.0**-24 * np.abs(exact))


def operands(spikes, sizes=(4, 8, 8, 32, 16), taps=(3, 3), static=STATIC):
  rng = np.random.default_rng(0)
  n, height, width, c_in, c_out = sizes
  x = rng.normal(size=(n, height, width, c_in))
  x = np.float64(x > 0) if spikes else x
  kernel = rng.normal(size=(*taps, c_in, c_out))
  result = jax.eval_shape(
    lambda x, kernel: convolution_plain.forward(x, kernel, *static), x, kernel
  )
  cotangent = rng.normal(size=result.shape)
  return tuple(np.asarray(a, np.float32) for a in (cotangent, x, kernel))


def three(lowering, static, cotangent, x, kernel):
  return (
    lowering.forward(x, kernel, *static),
    lowering.input_gradient(cotangent, x, kernel, *static),
    lowering.kernel_gradient(cotangent, x, kernel, *static),
  )


def errors(given, static=STATIC):
  """Relative errors of our three products, and of float32's."""
  with jax.enable_x64(True):
    wide = tuple(jnp.asarray(a, jnp.float64) for a in given)
    exact = [np.asarray(a) for a in three(convolution_plain, static, *wide)]
  given = tuple(map(jnp.asarray, given))

  def of(lowering):
    with jax.default_matmul_precision('highest'):
      return jax.jit(lambda *given: three(lowering, static, *given))(*given)

  return [
    [
      np.std(a - c) / np.std(c)
      for a, c in zip(of(lowering), exact, strict=True)
    ]
    for lowering in (convolution_split, convolution_plain)
  ]


@pytest.mark.parametrize('spikes', [False, True])
@pytest.mark.parametrize(
  ('sizes', 'taps', 'static'),
  [
    ((4, 8, 8, 32, 16), (3, 3), STATIC),
    ((3, 7, 6, 16, 64), (3, 3), ((2, 2), ((1, 1), (1, 1)))),
    ((2, 8, 8, 64, 32), (1, 1), ((2, 2), ((0, 0), (0, 0)))),
    ((2, 9, 8, 16, 48), (3, 2), ((1, 1), ((0, 2), (3, 0)))),
    ((2, 8, 8, 3, 16), (3, 3), STATIC),  # what kernels do not compute
  ],
)
def test_products_are_as_right_as_those_of_float32(spikes, sizes, taps, static):
  ours, plain = errors(operands(spikes, sizes, taps, static), static)
  for a, b in zip(ours, plain, strict=True):
    assert a <= max(1.5 * b, 3e-7)


@pytest.mark.parametrize('spikes', [False, True])
@pytest.mark.parametrize(
  ('images', 'sizes'), [(64, (32, 32, 128, 128)), (128, (8, 8, 512, 512))]
)
def test_long_sums_are_as_right_as_those_of_float32(spikes, images, sizes):
  """Tensor cores round sums towards 0, so sums of theirs must be short."""
  if jax.default_backend() == 'cpu':
    images = 1  # sums over taps and channels are as long
  ours, plain = errors(operands(spikes, (images, *sizes)))
  for a, b in zip(ours, plain, strict=True):
    assert a <= b


def test_kernels_of_several_networks_are_those_of_each():
  networks = [operands(spikes, (2, 6, 6, 16, 16)) for spikes in (True, False)]
  together = jax.tree.map(lambda *a: jnp.stack(a), *networks)

  def run(given):
    return three(convolution_split, STATIC, *given)

  found = jax.jit(jax.vmap(run))(together)
  for i, network in enumerate(networks):
    for a, b in zip(found, run(network), strict=True):
      np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-5)


def test_a_spike_that_is_none_is_multiplied_with_all_its_bits():
  x, kernel = np.zeros((1, 1, 1, 16), np.float32), np.ones((1, 1, 16, 16), 'f')
  x[..., 1] = np.float32(1 / 3)
  y = jax.jit(
    lambda x, k: convolution_split.forward(x, k, (1, 1), ((0, 0), (0, 0)))
  )(x, kernel)
  np.testing.assert_array_equal(y, np.float32(1 / 3))


def test_a_gradient_of_the_kernel_is_a_sum_of_groups_of_pixels():
  """Groups of unequal length, the last of which holds padding."""
  given = operands(True, (5, 9, 7, 16, 16))
  assert kernels._steps(-(-5 * 9 * 7 // 32), 9) < 10
  ours, _ = errors(given)
  assert ours[2] < 3e-7


def test_kernels_compute_what_32_bits_can_index():
  def supported(n, channels=16, padding=STATIC[1]):
    kernel_shape = (3, 3, 16, channels)
    return kernels.supported((n, 30, 30, 16), kernel_shape, padding)

  assert supported(2**16)
  assert not supported(2**17)
  assert not supported(2**16, channels=48)
  assert not supported(2**16, padding=((9, 9), (9, 9)))
  assert not supported(4, channels=20)
  assert not supported(jax.export.symbolic_shape('b')[0])


def traced(precision):
  x, kernel = jnp.zeros((1, 8, 8, 16)), jnp.zeros((3, 3, 16, 16))

  def loss(x, kernel):
    return convolution(x, kernel, padding=((1, 1), (1, 1))).sum()

  with jax.default_matmul_precision(precision):
    return jax.jit(jax.grad(loss, (0, 1))).trace(x, kernel)


def lowered(precision, platform):
  return traced(precision).lower(lowering_platforms=(platform,)).as_text()


def kernels_of(precision, monkeypatch, *, devices=1):
  monkeypatch.setattr(jax, 'device_count', lambda: devices)
  return str(traced(precision).jaxpr)


def test_one_gpu_runs_kernels_where_jax_is_set_so(monkeypatch):
  assert 'pallas_call' in kernels_of(SPLIT, monkeypatch)
  assert 'pallas_call' not in kernels_of(SPLIT, monkeypatch, devices=2)
  assert 'pallas_call' not in kernels_of('highest', monkeypatch)


def test_a_jax_without_the_backend_of_the_kernels_has_none(monkeypatch):
  monkeypatch.setitem(sys.modules, 'jax.experimental.pallas.triton', None)
  assert 'pallas_call' not in kernels_of(SPLIT, monkeypatch)


def test_kernels_do_not_split_parts_again():
  """As matrix products would by themselves: it takes ten times as long."""
  x, kernel = jnp.zeros((1, 8, 8, 16)), jnp.zeros((3, 3, 16, 16))

  def convolve(x, kernel):
    return kernels.forward(split.parts(x), split.parts(kernel), *STATIC)

  with jax.default_matmul_precision(SPLIT):
    text = str(jax.make_jaxpr(convolve)(x, kernel))
  assert 'dot_general' in text
  assert SPLIT not in text


def test_other_platforms_multiply_with_24_bits_too(monkeypatch):
  monkeypatch.setattr(jax, 'device_count', lambda: 1)
  text = lowered(SPLIT, 'tpu')
  assert 'precision HIGHEST>' in text
  assert 'precision DEFAULT' not in text


@pytest.mark.parametrize(
  ('precision', 'asked'),
  [
    ('F32_F32_F32', 'HIGHEST'),
    ('TF32_TF32_F32', 'HIGH'),
    ('highest', 'HIGHEST'),
    ('tensorfloat32', 'HIGH'),
  ],
)
def test_xla_is_asked_for_what_an_algorithm_of_jax_means(precision, asked):
  text = lowered(precision, 'cuda')
  assert f'precision {asked}>' in text
  assert 'precision DEFAULT' not in text


def test_an_algorithm_for_matmuls_alone_is_refused():
  x, kernel = jnp.zeros((1, 8, 8, 4)), jnp.zeros((3, 3, 4, 4))
  with (
    jax.default_matmul_precision('BF16_BF16_F32_X9'),
    pytest.raises(InputError, match="got 'BF16_BF16_F32_X9', which is for"),
  ):
    convolution(x, kernel)


def test_a_convolution_that_jax_sets_to_split_is_right_here():
  """On the platform of the tests: on a GPU, with its tensor cores."""
  _, x, kernel = operands(spikes=True)
  with jax.enable_x64(True):
    exact = convolution_plain.forward(
      jnp.asarray(x, jnp.float64), jnp.asarray(kernel, jnp.float64), *STATIC
    )
  with jax.default_matmul_precision(SPLIT):
    y = jax.jit(lambda x, k: convolution(x, k, padding=STATIC[1]))(x, kernel)
  assert np.abs(np.asarray(y) - np.asarray(exact)).max() < 1e-4
