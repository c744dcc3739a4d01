"""Every registered normalization against its NumPy reference."""

import functools

import common
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain_norms import PLAIN
from reference_norms import REFERENCES
from registered import IDENTITY, known

from mpbn_jax import NORMS, InputError
from mpbn_jax.norm import PLACES, base, check_norm, synaptic_filter

KNOWN = known('norms')
B, T, H, W, C = 5, 3, 4, 3, 6
CONSTANTS = {'eps': 1e-5, 'v_th': 0.7, 'alpha_v_th': 0.35}


def _input(place, seed=1):
  rng = np.random.default_rng(seed)
  x = rng.normal(0.4, 1.3, (B, T, H, W, C)).astype(np.float32)
  return x[:, 0] if place == 'membrane' else x


def _init(name, shape=(H, W, C), num_steps=T):
  return common.init_norm(name, shape, num_steps=num_steps, **CONSTANTS)


def _case(name, seed=0):
  """Returns (params, stats, x) with every leaf its own random value."""
  rng = np.random.default_rng(seed)

  def leaf(path, value):
    draw = {
      'var': lambda: rng.uniform(0.1, 2, value.shape),
      **{name: lambda: value for name in CONSTANTS},
      'scale': lambda: rng.normal(1, 0.5, value.shape),
      'moment': lambda: rng.uniform(0.1, 2, value.shape),
      'factor': lambda: rng.normal(1, 0.5, value.shape),
    }.get(path[-1].key, lambda: rng.normal(0, 1, value.shape))
    return np.float32(draw())

  params, stats = jax.tree_util.tree_map_with_path(leaf, _init(name))
  return params, stats, _input(NORMS[name].place)


def _train(name, params, stats, x, **options):
  """Returns what the norm's `train` does, compiled: op by op takes longer."""
  function = functools.partial(NORMS[name].train, momentum=0.1, **options)
  return jax.jit(function)(params, stats, x)


@pytest.mark.parametrize('name', KNOWN)
def test_entry_is_complete(name):
  norm = NORMS[name]
  params, stats = _init(name)
  assert norm.place in PLACES
  assert (norm.fold is None) == bool(norm.why_not)
  if leaf := getattr(norm, 'per_time_step', ''):
    assert {**params, **stats}[leaf].shape[0] == T


@pytest.mark.parametrize('name', KNOWN)
def test_initial_variables_are_the_identity(name):
  params, stats = _init(name)
  for leaf, value in {**params, **stats}.items():
    if leaf not in CONSTANTS:
      assert leaf in IDENTITY, 'add it to IDENTITY in tests/registered.py'
      assert (value == IDENTITY[leaf]).all(), leaf


@pytest.mark.parametrize('name', KNOWN)
def test_training_agrees_with_the_reference(name):
  params, stats, x = _case(name)
  y, new = _train(name, params, stats, x)
  expected, new_expected = REFERENCES[name](params, stats, x, train=True)
  # A mean of some hundred float32 values, and the square root of one.
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=2e-5)
  assert new.keys() == new_expected.keys()
  for leaf, value in new.items():
    np.testing.assert_allclose(
      value, new_expected[leaf], rtol=1e-5, atol=1e-6, err_msg=leaf
    )


@pytest.mark.parametrize('name', KNOWN)
def test_evaluation_agrees_with_the_reference(name):
  params, stats, x = _case(name)
  y = jax.jit(NORMS[name].evaluate)(params, stats, x)
  expected, _ = REFERENCES[name](params, stats, x, train=False)
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', KNOWN)
def test_gradients_agree_with_autodiff_of_a_plain_version(name):
  params, stats, x = _case(name)
  cotangent = np.random.default_rng(2).normal(0, 1, x.shape)

  def ours(params, x):
    y, _ = NORMS[name].train(params, stats, x, momentum=0.1)
    return (y * cotangent).sum()

  def plain(params, x):
    return (PLAIN[name](params, stats, x) * cotangent).sum()

  got = jax.jit(jax.grad(ours, (0, 1)))(params, x)
  expected = jax.jit(jax.grad(plain, (0, 1)))(params, x)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    got,
    expected,
  )


@pytest.mark.parametrize('name', [name for name in KNOWN if _init(name)[1]])
def test_running_statistics_pass_no_gradient(name):
  params, stats, x = _case(name)

  def moved(x):
    _, new = NORMS[name].train(params, stats, x, momentum=0.1)
    return sum(leaf.sum() for leaf in jax.tree.leaves(new))

  assert (jax.jit(jax.grad(moved))(x) == 0).all()


@pytest.mark.parametrize('name', KNOWN)
def test_statistics_are_float32_whatever_the_input_is(name):
  params, stats, x = _case(name)
  y, new = _train(name, params, stats, jnp.asarray(x, jnp.bfloat16))
  assert y.dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in new.values()} <= {jnp.dtype('float32')}


@pytest.mark.parametrize(
  'name', [name for name in KNOWN if 'var' in _init(name)[1]]
)
def test_one_value_per_statistic_is_refused(name):
  shape = (1, 1, 1, C) if NORMS[name].place == 'membrane' else (1, 1, 1, 1, C)
  params, stats = _init(name, (1, 1, C), num_steps=1)
  with pytest.raises(InputError, match='at least 2 values per statistic, got'):
    NORMS[name].train(params, stats, jnp.zeros(shape), momentum=0.1)


def test_copies_count_in_the_unbiased_variance_only():
  params, stats, x = _case('bn')
  x = x[:, :1]
  repeated = np.repeat(x, T, axis=1)
  once, new_once = _train('bn', params, stats, x, copies=T)
  all_, new_all = _train('bn', params, stats, repeated)
  np.testing.assert_allclose(once, all_[:, :1], rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(new_once['var'], new_all['var'], rtol=1e-5)


@pytest.mark.parametrize(
  'name', [name for name in KNOWN if 'var' in _init(name)[1]]
)
def test_moments_are_right_where_the_mean_is_far_from_zero(name):
  """In the first step too, whose running mean is 0."""
  params, stats = _init(name)
  steps = () if NORMS[name].place == 'membrane' else (T,)
  shape = (16, *steps, 16, 16, C)
  if name == 'mpbn_element':
    params, stats = _init(name, shape[1:])
  rng = np.random.default_rng(0)
  x = (1e4 * rng.choice([-1, 1], C) + rng.normal(0, 1, shape)).astype('f4')
  y, new = _train(name, params, stats, x)
  expected, new_expected = REFERENCES[name](params, stats, x, train=True)
  # One unit in the last place of the mean is 1e-3.
  np.testing.assert_allclose(y, expected, rtol=0, atol=2e-3)
  np.testing.assert_allclose(new['mean'], new_expected['mean'], rtol=2e-7)
  np.testing.assert_allclose(new['var'], new_expected['var'], rtol=1e-5)


# CPU and the other platforms.
MOMENTS = [base._moments_in_two_passes, base._moments_in_one_pass]


@pytest.mark.parametrize('moments', MOMENTS)
@pytest.mark.parametrize('shape', [(9, 7, 3), (9, 1, 1, 3), (2, 4, 4, 3)])
def test_variance_is_right_where_one_row_is_far_from_the_others(shape, moments):
  x = np.random.default_rng(0).normal(0, 1e-3, shape).astype('f4')
  x[:, shape[1] // 2] += 100
  axes = tuple(range(len(shape) - 1))
  mean, var = moments(jnp.asarray(x), axes)
  x = x.astype('f8')
  np.testing.assert_allclose(mean, x.mean(axes), rtol=1e-6)
  np.testing.assert_allclose(var, x.var(axes), rtol=1e-4)


@pytest.mark.parametrize('moments', MOMENTS)
def test_variance_of_a_constant_is_not_negative(moments):
  _, var = moments(jnp.full((1000, 3), 0.1), (0,))
  assert (var >= 0).all()


@pytest.mark.parametrize('offset', [0, 1e3])
@pytest.mark.parametrize('axes', [(0,), (0, 1, 2)])
def test_moments_of_all_platforms_agree_and_have_equal_gradients(axes, offset):
  rng = np.random.default_rng(0)
  x = jnp.asarray(offset + rng.normal(0, 1, (8, 5, 4, 3)), jnp.float32)
  weights = rng.normal(0, 1, (2, *x.shape[len(axes) :])).astype('f4')

  def of(moments):
    def loss(x):
      mean, var = moments(x, axes)
      return (weights[0] * mean + weights[1] * var).sum()

    return moments(x, axes), jax.grad(loss)(x)

  two, one = map(of, MOMENTS)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    two,
    one,
  )


@pytest.mark.parametrize(
  ('platform', 'passes'), [('cpu', 'two_passes'), ('gpu', 'one_pass')]
)
def test_platform_chooses_how_moments_are_summed(platform, passes, monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: platform)
  function = f'_moments_in_{passes}'
  monkeypatch.setattr(base, function, lambda *_: ('mean', 'variance'))
  monkeypatch.setattr(base.kept, 'named', lambda moments, name: moments)
  found = base.moments(jnp.ones((2, 3)), axes=(0,))
  assert found == ('mean', 'variance')


@pytest.mark.parametrize('deviations', [0, 3, 30])
def test_variance_is_right_where_the_mean_is_near_what_devices_know(deviations):
  x = np.random.default_rng(0).normal(0, 1, (64, 9, 3)).astype('f4')
  near = jnp.full(3, deviations, jnp.float32)
  mean, var = base._moments_in_one_pass(jnp.asarray(x), (0, 1), near)
  x = x.astype('f8')
  # Roundings of sums of 576 values, or squares of values, near `deviations`.
  atol, rtol = 1e-6 * (1 + deviations), 3e-6 * (1 + deviations**2)
  np.testing.assert_allclose(mean, x.mean((0, 1)), rtol=0, atol=atol)
  np.testing.assert_allclose(var, x.var((0, 1)), rtol=rtol)


@pytest.mark.parametrize(
  ('platform', 'devices', 'known'),
  [('cpu', 4, False), ('gpu', 1, False), ('gpu', 2, True)],
)
def test_running_mean_is_used_where_it_saves_communication(
  platform, devices, known, monkeypatch
):
  monkeypatch.setattr(jax, 'default_backend', lambda: platform)
  monkeypatch.setattr(jax, 'device_count', lambda: devices)
  found = base.known_mean({'mean': 'running mean'})
  assert found == ('running mean' if known else None)


@pytest.mark.parametrize('name', KNOWN)
def test_unknown_norm_lists_those_of_its_place(name):
  place = NORMS[name].place
  with pytest.raises(InputError, match=f'unknown {place}_norm.*{name}'):
    check_norm('mpbm', place=place)


def test_norm_of_another_place_is_refused():
  with pytest.raises(InputError, match='none'):
    check_norm('bn', place='membrane')


def test_synaptic_filter_sums_what_is_left_of_every_spike():
  spikes = np.random.default_rng(0).integers(0, 2, (4, 6, 5)).astype(float)
  expected = np.zeros(spikes.shape)
  for t in range(6):
    for k in range(t + 1):
      expected[:, t] += 0.7 ** (t - k) * spikes[:, k]
  filtered = synaptic_filter(jnp.asarray(spikes), tau_s=0.7)
  np.testing.assert_allclose(filtered, expected, rtol=1e-6)
  np.testing.assert_array_equal(
    synaptic_filter(jnp.asarray(spikes), tau_s=0.0), spikes
  )


def test_synaptic_filter_adds_up_bfloat16_spikes_in_float32():
  spikes = jnp.ones((1, 300, 1), jnp.bfloat16)
  filtered = synaptic_filter(spikes, tau_s=0.99)
  assert filtered.dtype == jnp.bfloat16
  # Where sums are rounded to 8 bits, adding 1 stops changing them at 64.
  np.testing.assert_allclose(
    float(filtered[0, -1, 0]), (1 - 0.99**300) / (1 - 0.99), rtol=2**-8
  )


@pytest.mark.parametrize('tau_s', [-0.1, 1.0])
def test_synaptic_filter_refuses_what_is_no_fraction(tau_s):
  with pytest.raises(InputError, match=rf'tau_s .* \[0, 1\), got {tau_s}'):
    synaptic_filter(jnp.zeros((1, 2)), tau_s=tau_s)
