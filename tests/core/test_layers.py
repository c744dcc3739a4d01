"""Flax modules against the reference, forward and backward."""

import functools

import common
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from small_layers import MEMBRANE, lif_layer

from mpbn_jax import LIF, InputError, fold, strip
from mpbn_jax.layers import ConvNorm, average_pool


def _time_first(x):
  return np.moveaxis(np.asarray(x), 1, 0)


@functools.partial(jax.jit, static_argnums=0, static_argnames='train')
def _run(layer, variables, x, *, train):
  return layer.apply(variables, x, train=train, mutable=['batch_stats'])


def _train_spikes(layer, variables, currents):
  return _run(layer, variables, currents, train=True)[0]


@pytest.mark.parametrize('reset', ['hard', 'soft'])
@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('norm', MEMBRANE[1:])
def test_spikes_and_statistics_are_the_references(norm, train, reset):
  layer, variables, currents = lif_layer(norm, reset=reset)
  spikes, updates = _run(layer, variables, currents, train=train)
  stats = variables['batch_stats'][norm]
  moving = common.moving(stats) or {'mean': 0, 'var': 1}
  expected, mean, var = reference.lif_mpbn(
    np.moveaxis(np.asarray(currents), 1, 0),
    **variables['params'][norm],
    **moving,
    tau=0.25,
    v_th=0.5,
    train=train,
    element=norm == 'mpbn_element',
    affine=norm == 'affine',
    reset=reset,
  )
  np.testing.assert_array_equal(np.moveaxis(spikes, 1, 0), expected)
  new = updates['batch_stats'][norm]
  if norm == 'affine':
    assert set(new) == {'eps', 'v_th'}
    return
  np.testing.assert_allclose(new['mean'], mean, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(new['var'], var, rtol=1e-5, atol=1e-5)
  assert (new['mean'] == stats['mean']).all() == (not train)


@pytest.mark.parametrize('detach_reset', [False, True])
@pytest.mark.parametrize('reset', ['hard', 'soft'])
@pytest.mark.parametrize('norm', MEMBRANE[1:])
def test_gradients_are_those_of_the_reference(norm, reset, detach_reset):
  layer, variables, currents = lif_layer(
    norm, reset=reset, detach_reset=detach_reset, surrogate='atan'
  )
  cotangent = np.random.default_rng(3).normal(0, 1, currents.shape)

  def loss(params, currents):
    spikes, _ = layer.apply(
      {**variables, 'params': params},
      currents,
      train=True,
      mutable=['batch_stats'],
    )
    return (spikes * cotangent).sum()

  gradient = jax.jit(jax.grad(loss, (0, 1)))
  params, by_currents = gradient(variables['params'], currents)
  leaves = variables['params'][norm]
  expected = reference.lif_mpbn_gradients(
    _time_first(currents),
    _time_first(cotangent),
    scale=np.asarray(leaves['scale']),
    bias=np.asarray(leaves['bias']),
    tau=0.25,
    v_th=0.5,
    derivative=reference.SURROGATE_DERIVATIVES['atan'],
    eps=1e-5,
    detach_reset=detach_reset,
    element=norm == 'mpbn_element',
    affine=norm == 'affine',
    reset=reset,
  )
  got = (
    _time_first(by_currents),
    params[norm]['scale'],
    params[norm]['bias'],
  )
  for ours, theirs in zip(got, expected, strict=True):
    # Relative to the largest entry: sums of terms that cancel.
    assert np.abs(ours - theirs).max() <= 2e-5 * np.abs(theirs).max()


def test_one_step_is_batch_normalization_and_a_threshold():
  layer, variables, currents = lif_layer('mpbn_channel')
  one = currents[:, :1]
  spikes, _ = layer.apply(variables, one, train=True, mutable=['batch_stats'])
  n, _, _ = reference.batch_norm(
    np.asarray(one),
    **variables['params']['mpbn_channel'],
    **common.moving(variables['batch_stats']['mpbn_channel']),
    train=True,
    momentum=0.1,
    eps=1e-5,
  )
  np.testing.assert_array_equal(spikes, n > 0.5)


@pytest.mark.parametrize('norm', sorted(set(MEMBRANE[1:]) - {'affine'}))
def test_scaling_all_currents_leaves_the_spikes_of_training_unchanged(norm):
  layer, variables, currents = lif_layer(norm)
  run = functools.partial(_train_spikes, layer, variables)
  # A power of two: exact but for eps, which no decision here is close to.
  np.testing.assert_array_equal(run(currents), run(4 * currents))


@pytest.mark.parametrize('norm', MEMBRANE)
def test_permuting_the_batch_permutes_the_spikes_of_training(norm):
  layer, variables, currents = lif_layer(norm)
  order = jnp.array([2, 0, 3, 1])
  run = functools.partial(_train_spikes, layer, variables)
  np.testing.assert_array_equal(run(currents)[order], run(currents[order]))


def test_evaluation_passes_the_surrogate_gradient_of_the_normalized_potential():
  layer, variables, currents = lif_layer('mpbn_channel', surrogate='sigmoid')
  one = currents[:, :1]
  gradient = jax.grad(lambda c: layer.apply(variables, c, train=False).sum())(
    one
  )
  leaves = variables['params']['mpbn_channel']
  stats = variables['batch_stats']['mpbn_channel']
  gain = leaves['scale'] / np.sqrt(stats['var'] + 1e-5)
  n = (one - stats['mean']) * gain + leaves['bias']
  expected = gain * reference.SURROGATE_DERIVATIVES['sigmoid'](n - 0.5)
  np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('reset', ['hard', 'soft'])
@pytest.mark.parametrize('norm', MEMBRANE)
def test_learned_tau_and_v_th_start_as_the_fixed_ones(norm, reset):
  layer, variables, currents = lif_layer(
    norm, learn_tau=True, learn_v_th=True, reset=reset
  )
  fixed, fixed_variables, _ = lif_layer(norm, reset=reset)
  spikes = layer.apply(variables, currents, train=False)
  np.testing.assert_array_equal(
    spikes, fixed.apply(fixed_variables, currents, train=False)
  )
  assert variables['params']['v_th'].shape == (6,)
  assert variables['params']['tau_logit'].shape == ()


def test_learned_tau_and_v_th_are_the_references_neuron():
  layer, variables, currents = lif_layer(
    'none', learn_tau=True, learn_v_th=True, reset='soft'
  )
  v_th = np.linspace(0.2, 1.0, 6, dtype=np.float32)
  params = {'tau_logit': jnp.float32(1.2), 'v_th': jnp.asarray(v_th)}
  spikes = layer.apply({'params': params}, currents, train=False)
  expected = reference.lif(
    _time_first(currents), tau=1 / (1 + np.exp(-1.2)), v_th=v_th, reset='soft'
  )
  np.testing.assert_array_equal(_time_first(spikes), expected)


@pytest.mark.parametrize('norm', MEMBRANE)
def test_learned_tau_and_v_th_get_gradients(norm):
  layer, variables, currents = lif_layer(
    norm, learn_tau=True, learn_v_th=True, surrogate='sigmoid'
  )

  def loss(params):
    return _train_spikes(layer, {**variables, 'params': params}, currents).sum()

  gradients = jax.jit(jax.grad(loss))(variables['params'])
  assert gradients['tau_logit'] != 0
  assert (gradients['v_th'] < 0).all()  # a higher threshold, fewer spikes


def test_learned_v_th_folds_into_the_threshold():
  layer, variables, currents = lif_layer('mpbn_channel', learn_v_th=True)
  variables['params']['v_th'] = jnp.linspace(-0.5, 1.5, 6)
  folded = strip(fold(variables))
  np.testing.assert_array_equal(
    layer.apply(variables, currents, train=False),
    layer.apply(folded, currents, train=False),
  )


def test_learned_tau_cannot_start_at_zero():
  with pytest.raises(InputError, match='must start inside .*got tau = 0.0'):
    lif_layer('none', learn_tau=True, tau=0.0)


@pytest.mark.parametrize('norm', MEMBRANE)
def test_potential_is_float32_whatever_the_currents_are(norm):
  layer, variables, currents = lif_layer(norm)
  low = currents.astype(jnp.bfloat16)
  spikes = layer.apply(variables, low, train=False)
  assert spikes.dtype == jnp.bfloat16
  np.testing.assert_array_equal(
    spikes, layer.apply(variables, low.astype(jnp.float32), train=False)
  )


def test_element_wise_with_a_batch_of_one_is_refused():
  layer, variables, currents = lif_layer('mpbn_element')
  with pytest.raises(InputError, match='at least 2 values per statistic, got'):
    layer.apply(variables, currents[:1], train=True, mutable=['batch_stats'])


def test_initial_statistics_do_not_move_with_the_initial_pass():
  layer = LIF(norm='mpbn_channel')
  variables = layer.init(
    jax.random.key(0), 9 * jnp.ones((2, 3, 4, 4, 5)), train=True
  )
  stats = variables['batch_stats']['mpbn_channel']
  assert (stats['mean'] == 0).all()
  assert (stats['var'] == 1).all()


# ---- convolutions


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize(
  ('kernel_size', 'stride', 'padding'), [(3, 1, 1), (3, 2, 1), (1, 2, 0)]
)
def test_convolution_with_norm_is_the_reference(
  kernel_size, stride, padding, train
):
  layer = ConvNorm(
    7,
    kernel_size=kernel_size,
    stride=stride,
    padding=padding,
    use_bias=True,
  )
  x = common.images(6, 5, 3).reshape((2, 3, 5, 5, 3))
  variables = common.init(layer, x)
  variables = {
    **common.random_norms(
      {part: {'bn': tree['bn']} for part, tree in variables.items()}
    ),
  }
  kernel = jnp.asarray(
    np.random.default_rng(5).normal(0, 1, (kernel_size, kernel_size, 3, 7)),
    jnp.float32,
  )
  variables['params'] |= {'kernel': kernel, 'bias': 0.1 * jnp.arange(7.0)}
  y, updates = _run(layer, variables, x, train=train)
  convolved = reference.convolution(
    np.asarray(x), np.asarray(kernel), stride=stride, padding=padding
  )
  expected, mean, _ = reference.batch_norm(
    convolved + np.asarray(variables['params']['bias']),
    **variables['params']['bn'],
    **common.moving(variables['batch_stats']['bn']),
    train=train,
    momentum=0.1,
    eps=1e-5,
  )
  np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(
    updates['batch_stats']['bn']['mean'], mean, rtol=1e-4, atol=1e-5
  )


@pytest.mark.parametrize(
  ('window', 'stride', 'padding'), [(2, 2, 0), (3, 2, 1), (3, 3, 0)]
)
@pytest.mark.parametrize('side', [7, 8])
def test_average_pool_drops_incomplete_windows_and_counts_padding(
  window, stride, padding, side
):
  x = common.images(2, side, 3)
  pooled = average_pool(x, window=window, stride=stride, padding=padding)
  expected = reference.average_pool(
    np.asarray(x), window=window, stride=stride, padding=padding
  )
  np.testing.assert_allclose(pooled, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('shape', [(7, 7), (8, 8), (5, 8), (1, 1), (1, 3)])
def test_incomplete_windows_of_shortcuts_average_what_lies_in_the_map(shape):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, *shape, 3)), jnp.float32)

  def pool(x):
    return average_pool(x, window=2, ceil_mode=True)

  pooled, pull = jax.vjp(pool, x)
  expected = reference.average_pool_of_shortcut(np.asarray(x), window=2)
  np.testing.assert_allclose(pooled, expected, rtol=1e-5, atol=1e-6)
  # Linear: <pool(x), y> = <x, pull(y)> for every y.
  y = jnp.asarray(rng.normal(size=pooled.shape), jnp.float32)
  np.testing.assert_allclose(
    jnp.vdot(pooled, y), jnp.vdot(x, pull(y)[0]), rtol=1e-4, atol=1e-5
  )
  assert (pool(x.astype(jnp.bfloat16))).dtype == jnp.bfloat16


@pytest.mark.parametrize('side', [1, 3])
def test_incomplete_windows_are_averaged_alike_in_every_batch(side):
  # Padded windows of `jax.lax.reduce_window` are summed wrongly in large ones.
  x = jax.random.normal(jax.random.key(0), (1024, side, side, 16))
  pool = jax.jit(functools.partial(average_pool, window=2, ceil_mode=True))
  expected = reference.average_pool_of_shortcut(np.asarray(x), window=2)
  np.testing.assert_allclose(pool(x), expected, rtol=1e-5, atol=1e-6)


def test_incomplete_windows_go_with_neither_overlap_nor_padding():
  x = jnp.zeros((1, 5, 5, 1))
  with pytest.raises(InputError, match='ceil_mode needs windows side by side'):
    average_pool(x, window=3, stride=2, ceil_mode=True)
