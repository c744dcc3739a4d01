"""Whole networks that are folded: their spikes, what is left, and errors."""

import common
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from folded_neurons import FOLDABLE

from mpbn_jax import LIF, InputError, fold, fold_all, fold_convolutions, strip
from mpbn_jax.evaluation import recorded
from mpbn_jax.layers import ConvNorm


@pytest.mark.parametrize('norm', FOLDABLE)
@pytest.mark.parametrize('reset', ['hard', 'soft'])
def test_folded_network_fires_the_same_spikes(norm, reset):
  # Unrolled, as users have it.
  model, variables = common.small(membrane_norm=norm, reset=reset, unroll=True)
  folded = strip(fold(variables))
  x = common.images()
  run = common.as_users_compile(lambda v, x: recorded(model, v, x))
  logits, layers = run(variables, x)
  again, folded_layers = run(folded, x)
  np.testing.assert_array_equal(logits, again)
  for name in layers:
    spikes = layers[name]['spikes']
    assert 0 < spikes.mean() < 1, name
    np.testing.assert_array_equal(spikes, folded_layers[name]['spikes'])


def test_fold_is_jittable_and_the_same_under_jit():
  _, variables = common.small()
  jax.tree.map(
    np.testing.assert_array_equal, jax.jit(fold)(variables), fold(variables)
  )


def test_fold_leaves_its_argument_and_its_leaves_alone():
  _, variables = common.small()
  folded = fold(variables)
  assert set(variables) == {'params', 'batch_stats'}
  for name in variables:
    assert folded[name] is variables[name]


def test_stripped_network_has_no_normalization_on_the_membrane_left():
  _, variables = common.small()
  folded = strip(fold(variables))
  paths = [
    '/'.join(key.key for key in path)
    for path, _ in jax.tree_util.tree_leaves_with_path(folded)
  ]
  assert not [path for path in paths if 'mpbn' in path]
  assert [path for path in paths if path.endswith('threshold')]
  assert [path for path in paths if '/bn/' in path]  # not folded: kept


def test_stripping_folded_convolutions_leaves_no_normalization_at_all():
  model, variables = common.small()
  folded = strip(fold_convolutions(fold(variables)))
  assert set(folded) == {'params', 'threshold', 'folded'}
  assert set(folded['params']) == {'head'}
  logits = model.apply(folded, common.images(), train=False)
  assert np.isfinite(logits).all()


@pytest.mark.parametrize('learn_v_th', [False, True])
def test_stacked_blocks_fold_as_each_of_them_alone(learn_v_th):
  _, variables = common.small(
    'preact_resnet', depth=16, learn_v_th=learn_v_th, conv_norm='tdbn'
  )
  if learn_v_th:
    variables = _with_learned(variables)
  folded = fold_convolutions(fold(variables))
  blocks = {k: v['stage1_blocks'] for k, v in folded.items()}

  def of(block):
    return jax.tree.map(lambda leaf: leaf[block], blocks)

  for block in range(2):
    alone = {k: of(block)[k] for k in ('params', 'batch_stats')}
    jax.tree.map(
      lambda one, all_: np.testing.assert_allclose(one, all_, rtol=1e-6),
      fold_convolutions(fold(alone)),
      of(block),
    )


def _with_learned(variables):
  rng = np.random.default_rng(0)

  def leaf(path, value):
    if path[-1].key != 'v_th':
      return value
    return jnp.asarray(rng.uniform(-1, 1, value.shape), jnp.float32)

  return jax.tree_util.tree_map_with_path(leaf, variables)


class _Foreign(nn.Module):
  """Norms of flax that have the name of one of ours, beside one of ours."""

  @nn.compact
  def __call__(self, x, *, train):
    x = nn.BatchNorm(use_running_average=not train, name='bn')(x)
    x = nn.LayerNorm(name='tdbn')(x)
    x = ConvNorm(3, name='conv')(x, train=train)
    return LIF(norm='mpbn_channel', name='lif')(x, train=train)


@pytest.mark.parametrize('function', [fold, fold_convolutions, fold_all])
def test_norm_of_another_package_is_left_alone(function):
  net, x = _Foreign(), common.images(4, 3, 3)[:, None]
  variables = net.init(jax.random.key(0), x, train=False)
  folded = strip(function(variables))
  for collection in ('params', 'batch_stats'):
    assert folded[collection]['bn'] == variables[collection]['bn']
  assert folded['params']['tdbn'] == variables['params']['tdbn']
  np.testing.assert_allclose(
    net.apply(folded, x, train=False), net.apply(variables, x, train=False)
  )


# ---- errors


def test_folding_variables_without_mpbn_says_so():
  _, variables = common.small(membrane_norm='none')
  with pytest.raises(InputError, match='nothing to fold .*membrane_norm='):
    fold(variables)


def test_folding_twice_after_stripping_says_so():
  _, variables = common.small()
  with pytest.raises(InputError, match='already folded and stripped'):
    fold(strip(fold(variables)))


def test_folding_without_statistics_says_which_are_missing():
  _, variables = common.small()
  with pytest.raises(InputError, match='batch_stats/lif1/mpbn_channel'):
    fold({'params': variables['params']})


@pytest.mark.parametrize(
  ('function', 'layer', 'norm'),
  [(fold, 'lif1', 'mpbn_channel'), (fold_convolutions, 'conv1', 'bn')],
)
def test_folding_with_one_layers_statistics_lost_says_which(
  function, layer, norm
):
  _, variables = common.small()
  stats = {k: v for k, v in variables['batch_stats'].items() if k != layer}
  with pytest.raises(InputError, match=f'{layer}/{norm} .* no eps, mean, var'):
    function({**variables, 'batch_stats': stats})


def test_folding_without_v_th_says_so():
  _, variables = common.small()
  variables = jax.tree.map(lambda leaf: leaf, variables)
  del variables['batch_stats']['lif1']['mpbn_channel']['v_th']
  with pytest.raises(InputError, match='expected one v_th, .*lif1.* got none'):
    fold(variables)


def test_stripping_unfolded_variables_says_so():
  _, variables = common.small()
  with pytest.raises(InputError, match='call `fold` first'):
    strip(variables)


def test_folding_convolutions_without_a_norm_says_so():
  _, variables = common.small(conv_norm='none')
  with pytest.raises(InputError, match="conv_norm='none'"):
    fold_convolutions(variables)


def test_training_a_folded_network_is_refused():
  model, variables = common.small()
  with pytest.raises(InputError, match='folded network cannot be trained'):
    model.apply(
      fold(variables), common.images(), train=True, mutable=['batch_stats']
    )
