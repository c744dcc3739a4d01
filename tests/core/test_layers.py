"""Do the Flax modules own the right variables and call the right functions?"""

import functools

import common
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from mpbn_jax import (
  LIF,
  NORMS,
  InputError,
  build_model,
  fold,
  fold_convolutions,
  strip,
)
from mpbn_jax.layers import ConvNorm, SpikeNorm, Spikes, average_pool
from mpbn_jax.norm import CONSTANTS

MEMBRANE = ['none'] + [k for k, n in NORMS.items() if n.place == 'membrane']


def _time_first(x):
  return np.moveaxis(np.asarray(x), 1, 0)


def _train_spikes(layer, variables, currents):
  spikes, _ = layer.apply(
    variables, currents, train=True, mutable=['batch_stats']
  )
  return spikes


def _lif(norm, **settings):
  layer = LIF(norm=norm, **settings)
  currents = common.images(4, 5, 6)[:, None].repeat(3, 1)
  currents = currents + common.images(12, 5, 6, seed=1).reshape(currents.shape)
  variables = layer.init(jax.random.key(0), currents, train=False)
  if norm != 'none':
    variables = common.random_norms(variables)
  return layer, variables, currents


@pytest.mark.parametrize('reset', ['hard', 'soft'])
@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('norm', MEMBRANE[1:])
def test_spikes_and_statistics_are_the_references(norm, train, reset):
  layer, variables, currents = _lif(norm, reset=reset)
  spikes, updates = layer.apply(
    variables, currents, train=train, mutable=['batch_stats']
  )
  stats = variables['batch_stats'][norm]
  expected, mean, var = reference.lif_mpbn(
    np.moveaxis(np.asarray(currents), 1, 0),
    **variables['params'][norm],
    **common.moving(stats),
    tau=0.25,
    v_th=0.5,
    train=train,
    element=norm == 'mpbn_element',
    reset=reset,
  )
  np.testing.assert_array_equal(np.moveaxis(spikes, 1, 0), expected)
  new = updates['batch_stats'][norm]
  np.testing.assert_allclose(new['mean'], mean, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(new['var'], var, rtol=1e-5, atol=1e-5)
  assert (new['mean'] == stats['mean']).all() == (not train)


@pytest.mark.parametrize('detach_reset', [False, True])
@pytest.mark.parametrize('reset', ['hard', 'soft'])
@pytest.mark.parametrize('norm', MEMBRANE[1:])
def test_gradients_are_those_of_the_reference(norm, reset, detach_reset):
  layer, variables, currents = _lif(
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

  params, by_currents = jax.grad(loss, (0, 1))(variables['params'], currents)
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
  layer, variables, currents = _lif('mpbn_channel')
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


@pytest.mark.parametrize('norm', MEMBRANE[1:])
def test_scaling_all_currents_leaves_the_spikes_of_training_unchanged(norm):
  layer, variables, currents = _lif(norm)
  run = functools.partial(_train_spikes, layer, variables)
  # A power of two: exact but for eps, which no decision here is close to.
  np.testing.assert_array_equal(run(currents), run(4 * currents))


@pytest.mark.parametrize('norm', MEMBRANE)
def test_permuting_the_batch_permutes_the_spikes_of_training(norm):
  layer, variables, currents = _lif(norm)
  order = jnp.array([2, 0, 3, 1])
  run = functools.partial(_train_spikes, layer, variables)
  np.testing.assert_array_equal(run(currents)[order], run(currents[order]))


def test_evaluation_passes_the_surrogate_gradient_of_the_normalized_potential():
  layer, variables, currents = _lif('mpbn_channel', surrogate='sigmoid')
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
  layer, variables, currents = _lif(
    norm, learn_tau=True, learn_v_th=True, reset=reset
  )
  fixed, fixed_variables, _ = _lif(norm, reset=reset)
  spikes = layer.apply(variables, currents, train=False)
  np.testing.assert_array_equal(
    spikes, fixed.apply(fixed_variables, currents, train=False)
  )
  assert variables['params']['v_th'].shape == (6,)
  assert variables['params']['tau_logit'].shape == ()


def test_learned_tau_and_v_th_are_the_references_neuron():
  layer, variables, currents = _lif(
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
  layer, variables, currents = _lif(
    norm, learn_tau=True, learn_v_th=True, surrogate='sigmoid'
  )

  def loss(params):
    return _train_spikes(layer, {**variables, 'params': params}, currents).sum()

  gradients = jax.grad(loss)(variables['params'])
  assert gradients['tau_logit'] != 0
  assert (gradients['v_th'] < 0).all()  # a higher threshold, fewer spikes


def test_learned_v_th_folds_into_the_threshold():
  layer, variables, currents = _lif('mpbn_channel', learn_v_th=True)
  variables['params']['v_th'] = jnp.linspace(-0.5, 1.5, 6)
  folded = strip(fold(variables))
  np.testing.assert_array_equal(
    layer.apply(variables, currents, train=False),
    layer.apply(folded, currents, train=False),
  )


def test_learned_tau_cannot_start_at_zero():
  with pytest.raises(InputError, match='must start inside .*got tau = 0.0'):
    _lif('none', learn_tau=True, tau=0.0)


@pytest.mark.parametrize('norm', MEMBRANE)
def test_potential_is_float32_whatever_the_currents_are(norm):
  layer, variables, currents = _lif(norm)
  low = currents.astype(jnp.bfloat16)
  spikes = layer.apply(variables, low, train=False)
  assert spikes.dtype == jnp.bfloat16
  np.testing.assert_array_equal(
    spikes, layer.apply(variables, low.astype(jnp.float32), train=False)
  )


def test_element_wise_with_a_batch_of_one_is_refused():
  layer, variables, currents = _lif('mpbn_element')
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


# ---- constants


LAYERS = {'current': ConvNorm, 'membrane': LIF, 'spikes': SpikeNorm}
# A norm, one of its constants, and the constant's name in the layer.
STORED = [
  (name, constant)
  for name, norm in NORMS.items()
  for constant in norm.init((1, 1, 3), eps=1, v_th=1, gain=1, num_steps=2)[1]
  if constant in CONSTANTS
]


def _array(y):
  return y.array if isinstance(y, Spikes) else y


def _made(name, **settings):
  """Returns (layer, variables, x) of a norm with settings of its own."""
  kind = LAYERS[NORMS[name].place]
  if kind is ConvNorm:
    settings = {'features': 3, **settings}
  layer = kind(norm=name, **settings)
  x = common.images(4, 3, 3).reshape((2, 2, 3, 3, 3))
  return layer, layer.init(jax.random.key(0), x, train=False), x


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize(('name', 'constant'), STORED)
def test_stored_constant_counts_and_another_is_refused(name, constant, train):
  _, variables, x = _made(name, **{constant: 1.75})
  assert variables['batch_stats'][name][constant] == 1.75
  assert variables['batch_stats'][name][constant].dtype == jnp.float32
  layer, *_ = _made(name)

  def run(variables, layer=layer):
    y, updates = layer.apply(variables, x, train=train, mutable=['batch_stats'])
    return _array(y), updates

  message = f"expected '{type(layer).__name__}' with the {constant} = 1.75 .*"
  with pytest.raises(InputError, match=message + f'got .* {constant} = '):
    run(variables)
  # Not known while it is compiled: then it is what the layer computes with.
  compiled, updates = jax.jit(run)(variables)
  np.testing.assert_allclose(
    compiled,
    run(variables, _made(name, **{constant: 1.75})[0])[0],
    rtol=1e-5,
    atol=1e-6,
  )
  assert updates['batch_stats'][name][constant] == 1.75


@pytest.mark.parametrize(('name', 'constant'), STORED)
def test_variables_without_a_constant_are_refused(name, constant):
  layer, variables, x = _made(name)
  del variables['batch_stats'][name][constant]
  with pytest.raises(InputError, match=f'batch_stats/{name}/{constant}, the'):
    layer.apply(variables, x, train=False)


def test_folded_neuron_refuses_another_v_th_than_was_folded():
  _, variables, x = _made('mpbn_channel', v_th=1.75)
  with pytest.raises(InputError, match=r'v_th = 1\.75 .* got .* v_th = 0\.5'):
    LIF(norm='mpbn_channel').apply(strip(fold(variables)), x, train=False)


@pytest.mark.parametrize(
  ('learns', 'leaf'), [('learn_tau', 'tau_logit'), ('learn_v_th', 'v_th')]
)
def test_learned_leaf_that_would_not_be_read_is_refused(learns, leaf):
  _, variables, currents = _lif('none', **{learns: True})
  with pytest.raises(InputError, match=f'no params/{leaf} with {learns}=False'):
    LIF().apply(variables, currents, train=False)


def test_constant_beside_a_learned_v_th_is_refused():
  layer, variables, currents = _lif('mpbn_channel', learn_v_th=True)
  variables['batch_stats']['mpbn_channel']['v_th'] = jnp.float32(0.5)
  with pytest.raises(InputError, match='v_th beside a learned v_th, got one'):
    layer.apply(variables, currents, train=False)
  with pytest.raises(InputError, match='expected one v_th, .* got both'):
    fold(variables)


# ---- what no layer can take


_KINDS = [('bn', ConvNorm), ('mpbn_channel', LIF), ('psp_bn', SpikeNorm)]


@pytest.mark.parametrize('dtype', ['int32', 'uint8', 'bool', 'complex64'])
@pytest.mark.parametrize(('name', 'kind'), _KINDS)
def test_input_that_is_not_floating_is_refused(name, kind, dtype):
  layer, variables, x = _made(name)
  with pytest.raises(TypeError, match=f'floating dtype, got {dtype}: call ast'):
    layer.apply(variables, jnp.ones(x.shape, dtype), train=False)


@pytest.mark.parametrize('shape', [(3,), (2, 3), (2, 0, 3, 3, 3)])
@pytest.mark.parametrize(('name', 'kind'), _KINDS)
def test_input_without_a_batch_steps_and_channels_is_refused(name, kind, shape):
  layer, variables, _ = _made(name)
  with pytest.raises(InputError, match=r'\[B, T, ..., C\] with T >= 1, got sh'):
    layer.apply(variables, jnp.ones(shape), train=False)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'eps': 0.0}, 'eps must be positive and finite, got 0.0'),
    ({'eps': -1e-5}, 'eps must be positive'),
    ({'eps': float('nan')}, 'eps must be positive'),
    ({'momentum': 5.0}, r'momentum .* \(0, 1\], got 5.0'),
  ],
)
@pytest.mark.parametrize(('name', 'kind'), _KINDS)
def test_settings_without_a_meaning_are_refused(name, kind, settings, message):
  with pytest.raises(InputError, match=message):
    _made(name, **settings)


@pytest.mark.parametrize('norm', ['mpbm', 'bn', 'psp_bn', 'mpbn_channel'])
@pytest.mark.parametrize('kind', [ConvNorm, LIF, SpikeNorm])
def test_norm_of_another_place_is_refused_by_a_layer(kind, norm):
  if (norm, kind) in _KINDS:
    return
  features = {'features': 3} if kind is ConvNorm else {}
  with pytest.raises(InputError, match=f"unknown normalization .* '{norm}'"):
    kind(norm=norm, **features).init(
      jax.random.key(0), jnp.zeros((2, 2, 3, 3, 3)), train=False
    )


def test_v_th_that_is_no_number_is_refused():
  with pytest.raises(InputError, match='v_th must be a finite number, got nan'):
    LIF(v_th=float('nan')).apply({}, jnp.zeros((2, 2, 3)), train=False)


def test_moment_of_an_empty_batch_is_refused():
  layer, variables, x = _made('psp_bn')
  with pytest.raises(InputError, match='at least one potential'):
    layer.apply(variables, x[:0], train=True, mutable=['batch_stats'])


@pytest.mark.parametrize('part', ['threshold', 'polarity', 'gain', 'v_th'])
def test_folded_neurons_without_a_part_of_them_are_refused(part):
  layer, variables, x = _made('mpbn_channel')
  leaves = dict(strip(fold(variables))['threshold'])
  if part != 'v_th':
    bad = {**leaves, part: jnp.ones((1,))}
    with pytest.raises(InputError, match=rf'{part} of shape \(3,\), got \(1,'):
      layer.apply({'threshold': bad}, x, train=False)
  if part == 'threshold':  # without it, nothing says that it is folded
    return
  del leaves[part]
  with pytest.raises(InputError, match=f'expected threshold/{part}, got'):
    layer.apply({'threshold': leaves}, x, train=False)


def test_statistics_that_would_broadcast_are_refused():
  layer, variables, x = _made('mpbn_channel')
  variables['batch_stats']['mpbn_channel']['mean'] = jnp.zeros((1,))
  with pytest.raises(InputError, match=r'mean of shape \(3,\), got \(1,\)'):
    layer.apply(variables, x, train=False)


@pytest.mark.parametrize(
  ('norm', 'lost'), [('bn', 'kernel'), ('tebn', 'kernel'), ('tebn', 'factor')]
)
def test_folded_convolution_without_a_part_of_it_is_refused(norm, lost):
  layer, variables, x = _made(norm)
  folded = fold_convolutions(variables)
  del folded['folded'][lost]
  with pytest.raises(InputError, match=f'expected folded/{lost} beside the b'):
    layer.apply(folded, x, train=False)


def test_folded_kernel_of_another_shape_is_refused():
  layer, variables, x = _made('bn')
  folded = fold_convolutions(variables)
  folded['folded']['kernel'] = folded['folded']['kernel'][:1, :1]
  with pytest.raises(
    InputError, match=r'folded/kernel of shape \(3, 3, 3, 3\)'
  ):
    layer.apply(folded, x, train=False)


# ---- jax_enable_x64


@pytest.mark.parametrize('name', NORMS)
def test_variables_and_statistics_are_float32_with_x64(name):
  with jax.enable_x64(True):
    settings = {}
    if NORMS[name].place == 'membrane':
      settings = {'learn_tau': True, 'learn_v_th': True}
    layer, variables, x = _made(name, **settings)
    x = x.astype(jnp.float64)

    @jax.jit
    def step(params):
      def loss(params):
        y, updates = layer.apply(
          {**variables, 'params': params},
          x,
          train=True,
          mutable=['batch_stats'],
        )
        return _array(y).sum(), updates

      return jax.grad(loss, has_aux=True)(params)

    gradients, updates = step(variables['params'])
    for leaf in jax.tree.leaves((variables, gradients, updates)):
      assert leaf.dtype == jnp.float32
    if NORMS[name].place == 'membrane':
      for leaf in jax.tree.leaves(fold(variables)['threshold']):
        assert leaf.dtype == jnp.float32


@pytest.mark.parametrize('name', ['spiking_cnn', 'preact_resnet'])
def test_network_is_made_and_trained_with_x64(name):
  with jax.enable_x64(True):
    depth = 10 if name == 'preact_resnet' else None
    model = build_model(
      {
        'name': name,
        'width': 2,
        'num_steps': 2,
        'learn_v_th': True,
        'learn_tau': True,
        'spike_norm': 'psp_bn',
        'depth': depth,
      }
    )
    x = jnp.zeros((2, 8, 8, 1), jnp.float64)

    @jax.jit
    def start_and_step():
      variables = model.init(jax.random.key(0), x, train=False)

      def loss(params):
        return model.apply(
          {**variables, 'params': params},
          x,
          train=True,
          mutable=['batch_stats'],
        )

      def mean(params):
        logits, updates = loss(params)
        return logits.mean(), updates

      return variables, jax.grad(mean, has_aux=True)(variables['params'])

    leaves = jax.tree.leaves(jax.eval_shape(start_and_step))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype('float32')}


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
  variables = layer.init(jax.random.key(0), x, train=False)
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
  y, updates = layer.apply(variables, x, train=train, mutable=['batch_stats'])
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


def test_incomplete_windows_go_with_neither_overlap_nor_padding():
  x = jnp.zeros((1, 5, 5, 1))
  with pytest.raises(InputError, match='ceil_mode needs windows side by side'):
    average_pool(x, window=3, stride=2, ceil_mode=True)


@pytest.mark.parametrize(
  ('layer', 'near'),
  [
    (LIF(norm='mpbn'), 'mpbn_'),
    (ConvNorm(2, norm='mpbn_channel'), 'bn'),
    (SpikeNorm(norm='psp'), 'psp_'),
  ],
)
def test_norm_that_a_layer_does_not_know_is_named(layer, near):
  x = jnp.zeros((2, 2, 3, 3, 2))
  with pytest.raises(InputError, match=f'unknown normalization.*{near}'):
    jax.eval_shape(lambda: layer.init(jax.random.key(0), x, train=False))
