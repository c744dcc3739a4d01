"""Batch statistics of groups against each group alone."""

import functools

import common
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain_norms import PLAIN
from reference_norms import REFERENCES
from registered import known

from mpbn_jax import NORMS, InputError
from mpbn_jax.layers import LIF, ConvNorm, SpikeNorm, Spikes
from mpbn_jax.norm import CONSTANTS, in_groups, names_at

KNOWN = known('norms')
G, B, T, H, W, C = 3, 6, 2, 3, 2, 4
SETTINGS = {'eps': 1e-5, 'v_th': 0.7, 'alpha_v_th': 0.35, 'num_steps': T}


def _case(name):
  """Returns (params, stats, x); the groups of x have means of their own."""
  rng = np.random.default_rng(0)
  params, stats = common.init_norm(name, (H, W, C), **SETTINGS)

  def drawn(leaves):
    return {
      leaf: value
      if leaf in CONSTANTS
      else np.float32(rng.uniform(0.5, 1.5, value.shape))
      for leaf, value in leaves.items()
    }

  x = rng.normal(0, 1, (G, B // G, T, H, W, C))
  x += rng.normal(0, 2, (G, 1, 1, 1, 1, C))
  x = x.reshape(B, T, H, W, C).astype(np.float32)
  if NORMS[name].place == 'membrane':
    x = x[:, 0]
  return drawn(params), drawn(stats), x


def _train(name, params, stats, x):
  train = functools.partial(NORMS[name].train, params, stats, momentum=0.1)
  return in_groups(train, x, stats=stats, groups=G)


@pytest.mark.parametrize('name', KNOWN)
def test_each_group_is_normalized_as_the_reference_does_alone(name):
  params, stats, x = _case(name)
  y, new = jax.jit(functools.partial(_train, name))(params, stats, x)
  alone = [
    REFERENCES[name](params, stats, part, train=True) for part in np.split(x, G)
  ]
  np.testing.assert_allclose(
    y, np.concatenate([y for y, _ in alone]), rtol=1e-5, atol=2e-5
  )
  assert new.keys() == stats.keys()
  for leaf in stats:
    mean = np.mean([new[leaf] for _, new in alone], 0)
    np.testing.assert_allclose(new[leaf], mean, rtol=1e-5, err_msg=leaf)


@pytest.mark.parametrize('name', KNOWN)
def test_gradients_agree_with_autodiff_of_each_group(name):
  params, stats, x = _case(name)
  cotangent = np.random.default_rng(2).normal(0, 1, x.shape)

  def ours(params, x):
    y, _ = _train(name, params, stats, x)
    return (y * cotangent).sum()

  def plain(params, x):
    parts = [PLAIN[name](params, stats, part) for part in jnp.split(x, G)]
    return (jnp.concatenate(parts) * cotangent).sum()

  got = jax.jit(jax.grad(ours, (0, 1)))(params, x)
  expected = jax.jit(jax.grad(plain, (0, 1)))(params, x)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    got,
    expected,
  )


@pytest.mark.parametrize('name', KNOWN)
def test_constants_keep_their_bits(name):
  params, stats, x = _case(name)
  stats = {key: value * np.float32(1.1) for key, value in stats.items()}
  _, new = _train(name, params, stats, x)
  for leaf in set(CONSTANTS) & stats.keys():
    np.testing.assert_array_equal(new[leaf], stats[leaf])


def test_one_group_is_the_whole_batch():
  params, stats, x = _case('bn')
  train = functools.partial(NORMS['bn'].train, params, stats, momentum=0.1)
  texts = [
    jax.jit(function).lower(x).as_text().replace('jit_one', 'jit_train')
    for function in (
      lambda x: train(x),
      lambda x: in_groups(train, x, stats=stats, groups=1),
    )
  ]
  assert texts[0] == texts[1]


# ---- layers


def _array(y):
  return y.array if isinstance(y, Spikes) else y


def _results(layer, variables, x, cotangent, **options):
  """Returns (y, batch_stats, gradients of params and x)."""

  @jax.jit
  def run(params, x):
    def loss(params, x):
      y, updates = layer.apply(
        {**variables, 'params': params},
        x,
        train=True,
        mutable=['batch_stats'],
        **options,
      )
      y = _array(y)
      return (y * cotangent).sum(), (y, updates.get('batch_stats', {}))

    gradients, outputs = jax.grad(loss, (0, 1), has_aux=True)(params, x)
    return *outputs, gradients

  return run(variables.get('params', {}), x)


def _assert_is_each_group_alone(make, x, **options):
  """Compares a layer with the same layer, applied to one group at a time."""
  layer, alone = make(stats_groups=G), make(stats_groups=1)
  variables = common.random_norms(common.init(layer, x))
  y = jax.eval_shape(
    lambda x: _array(layer.apply(variables, x, train=False, **options)), x
  )
  cotangent = np.random.default_rng(3).normal(0, 1, y.shape).astype('f4')
  got, stats, (dparams, dx) = _results(
    layer, variables, x, cotangent, **options
  )
  parts = [
    _results(alone, variables, *part, **options)
    for part in zip(np.split(x, G), np.split(cotangent, G), strict=True)
  ]
  ys, all_stats, gradients = zip(*parts, strict=True)
  dparams_alone, dxs = zip(*gradients, strict=True)
  close = functools.partial(
    jax.tree.map,
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
  )
  close(got, np.concatenate(ys))
  close(dx, np.concatenate(dxs))
  close(dparams, jax.tree.map(lambda *parts: sum(parts), *dparams_alone))
  close(stats, jax.tree.map(lambda *parts: sum(parts) / G, *all_stats))


def _currents():
  rng = np.random.default_rng(1)
  x = rng.normal(0, 1, (G, B // G, T, H, W, C))
  x += rng.normal(0, 1, (G, 1, 1, 1, 1, C))
  return x.reshape(B, T, H, W, C).astype(np.float32)


@pytest.mark.parametrize('autodiff', [False, True])
@pytest.mark.parametrize('norm', names_at('membrane'))
def test_neurons_of_a_group_are_those_of_the_group_alone(norm, autodiff):
  _assert_is_each_group_alone(
    functools.partial(LIF, norm=norm, autodiff=autodiff, learn_tau=True),
    _currents(),
  )


@pytest.mark.parametrize('norm', names_at('conv'))
def test_currents_of_a_group_are_those_of_the_group_alone(norm):
  make = functools.partial(ConvNorm, 2, norm=norm, kernel_size=1, padding=0)
  _assert_is_each_group_alone(make, _currents())


def test_copies_count_in_every_group():
  make = functools.partial(ConvNorm, 2, kernel_size=1, padding=0)
  _assert_is_each_group_alone(make, _currents()[:, :1], copies=T)


@pytest.mark.parametrize('norm', names_at('spike'))
def test_spikes_of_a_group_are_those_of_the_group_alone(norm):
  make = functools.partial(SpikeNorm, norm=norm, tau_s=0.5)
  _assert_is_each_group_alone(make, _currents())


@pytest.mark.parametrize('keep', ['all', 'spikes'])
@pytest.mark.parametrize(
  'settings',
  [
    {'name': 'spiking_cnn'},
    pytest.param(
      {'name': 'preact_resnet', 'depth': 16, 'width': 2, 'conv_norm': 'tebn'},
      marks=pytest.mark.slow,
    ),
  ],
)
def test_logits_of_a_group_are_those_of_the_group_alone(settings, keep):
  def results(x, groups):
    model, variables = common.small(
      **settings, keep=keep, num_steps=T, stats_groups=groups
    )
    train = functools.partial(model.apply, train=True, mutable=['batch_stats'])
    logits, updates = jax.jit(train)(variables, x)
    return logits, updates['batch_stats']

  x = common.images(4)
  logits, stats = results(x, 2)
  parts = [results(part, 1) for part in np.split(x, 2)]
  np.testing.assert_allclose(
    logits, np.concatenate([logits for logits, _ in parts]), atol=1e-4
  )
  jax.tree.map(
    lambda a, *b: np.testing.assert_allclose(a, sum(b) / 2, atol=1e-4),
    stats,
    *(stats for _, stats in parts),
  )


# ---- errors


def test_groups_that_do_not_divide_the_batch_are_refused():
  params, stats, x = _case('bn')
  with pytest.raises(InputError, match='divide the batch of 5 ex.*, got 3'):
    _train('bn', params, stats, x[:5])


def test_one_value_in_each_group_is_refused():
  params, stats, x = _case('mpbn_element')
  with pytest.raises(InputError, match='got 1: .* or fewer stats_groups'):
    _train('mpbn_element', params, stats, x[:G])


@pytest.mark.parametrize(
  'layer', [LIF, SpikeNorm, functools.partial(ConvNorm, 2)]
)
@pytest.mark.parametrize('groups', [0, -1, 1.5, True])
def test_number_of_groups_is_a_positive_integer(layer, groups):
  with pytest.raises(InputError, match='stats_groups must be an integer >='):
    layer(stats_groups=groups)
