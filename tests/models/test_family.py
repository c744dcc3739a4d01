"""The family of normalizations in networks: training, evaluation, folds."""

import functools
import itertools
import re

import common
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from two_layers import TwoLayers

from mpbn_jax import (
  MODELS,
  NORMS,
  InputError,
  build_model,
  fold_all,
  fold_convolutions,
  fold_spike_norms,
  readers_of_spikes,
  strip,
)
from mpbn_jax.configs import digits
from mpbn_jax.evaluation import compare_layers, recorded
from mpbn_jax.experiment import build
from mpbn_jax.layers import ConvNorm
from mpbn_jax.layers.variables import per_time_step
from mpbn_jax.norm import PLACES, names_at
from mpbn_jax.report import fold_network

CURRENT = names_at('conv')[1:]
SPIKES = names_at('spike')[1:]
PER_TIME_STEP = [name for name in NORMS if per_time_step(name)]
NETWORKS = {
  'spiking_cnn': {},
  'resnet20': {'side': 16},
  'preact_resnet': {'depth': 10},
}
# Each norm that folds into kernels alone, and pairs that meet in a kernel.
KERNEL_FOLDS = [
  *((name, 'none') for name in CURRENT),
  *(('none', name) for name in SPIKES if NORMS[name].fold),
  *[('bn', 'psp_bn'), ('bntt', 'psp_bn_step'), ('tebn', 'psp_bn')],
]


def _pairs():
  """Returns combinations in which every two norms of two places meet."""
  current, membrane, spikes = (names_at(place) for place in PLACES)
  return [
    (first, membrane[(i + j) % len(membrane)], last)
    for i, first in enumerate(current)
    for j, last in enumerate(spikes)
  ]


def test_every_two_norms_meet_in_a_combination():
  places = [names_at(place) for place in PLACES]
  for one, other in itertools.combinations(range(len(PLACES)), 2):
    met = {(norms[one], norms[other]) for norms in _pairs()}
    assert met == set(itertools.product(places[one], places[other]))


@pytest.mark.parametrize(('current', 'membrane', 'spikes'), _pairs())
def test_combination_trains_two_steps_and_evaluates(
  current, membrane, spikes, monkeypatch
):
  monkeypatch.setitem(MODELS, 'two_layers', TwoLayers)
  model = build_model(
    dict(
      name='two_layers',
      width=4,
      num_steps=2,
      conv_norm=current,
      membrane_norm=membrane,
      spike_norm=spikes,
      unroll=False,
    )
  )
  x, labels = common.images(side=4), jnp.arange(8)
  variables = common.random_variables(model, x)

  @jax.jit
  def step(variables):
    logits = model.apply(variables, x, train=False)

    def loss_of(params):
      logits, updates = model.apply(
        {**variables, 'params': params}, x, train=True, mutable=['batch_stats']
      )
      log = jax.nn.log_softmax(logits)
      return -log[jnp.arange(8), labels].mean(), updates

    gradients, updates = jax.grad(loss_of, has_aux=True)(variables['params'])
    params = jax.tree.map(
      lambda p, g: p - 0.01 * g, variables['params'], gradients
    )
    return {'params': params, **updates}, gradients, logits

  for _ in range(3):
    variables, gradients, logits = step(variables)
    leaves = jax.tree.leaves(gradients)
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    # Scales, factors, kernels: all are reached.
    assert sum(bool((leaf != 0).any()) for leaf in leaves) > len(leaves) / 2
  assert np.isfinite(logits).all()  # those after two steps


def _folded(model, variables, x):
  readers = readers_of_spikes(model, variables, x)
  return strip(fold_all(variables, readers=readers))


def _network(network, **norms):
  settings = NETWORKS[network]
  model, variables = common.small(
    network, **{'tau_s': 0.3, **settings}, **norms
  )
  return model, variables, common.images(16, settings.get('side', 8))


@pytest.mark.slow
@pytest.mark.parametrize(
  ('network', 'current', 'spikes'),
  [
    *(('preact_resnet', *norms) for norms in KERNEL_FOLDS),
    # Pools, projections and identity shortcuts: one norm of each place.
    *(('resnet20', *norms) for norms in (('bntt', 'none'), ('none', 'psp_bn'))),
  ],
)
def test_folded_kernels_are_the_unfolded_layers(network, current, spikes):
  """Each layer fed the unfolded network's spikes."""
  model, variables, x = _network(network, conv_norm=current, spike_norm=spikes)
  folded = _folded(model, variables, x)
  run = jax.jit(functools.partial(recorded, model))
  logits, layers = run(variables, x)
  other, fed = run(folded, x, given_spikes=layers)
  flips = 0
  for name, layer in layers.items():
    error = jnp.abs(layer['currents'] - fed[name]['currents']).max()
    assert error <= 1e-5 * jnp.abs(layer['currents']).max(), name
    flips += int((layer['spikes'] != fed[name]['spikes']).sum())
  decisions = sum(layer['spikes'].size for layer in layers.values())
  # The unfolded network has the norms of spikes in its kernels too.
  exact = current == 'none'
  assert flips <= (0 if exact else 1e-5 * decisions)
  assert jnp.abs(logits - other).max() <= (0 if exact else 1e-4)


@pytest.mark.parametrize(('current', 'spikes'), KERNEL_FOLDS)
def test_folded_network_has_no_normalization_left(current, spikes):
  model, variables, x = _network(
    'spiking_cnn', conv_norm=current, spike_norm=spikes
  )
  folded = _folded(model, variables, x)
  keys = {
    key.key
    for path, _ in jax.tree_util.tree_leaves_with_path(folded)
    for key in path
  }
  assert not keys & set(NORMS)

  def roots(variables):
    run = jax.jit(lambda v, x: model.apply(v, x, train=False))
    text = run.lower(variables, x).compile().as_text()
    return len(re.findall(r'\b(?:r?sqrt)\(', text))

  # Every normalization divides by a deviation; nothing else takes a root.
  assert roots(variables) > 0
  assert roots(folded) == 0


@pytest.mark.parametrize('name', [k for k in SPIKES if not NORMS[k].fold])
def test_norm_that_does_not_fold_says_why(name):
  model, variables, x = _network('spiking_cnn', spike_norm=name)
  with pytest.raises(InputError, match=f'{name}. does not fold: it'):
    _folded(model, variables, x)


def test_folds_of_kernels_commute():
  model, variables, x = _network(
    'spiking_cnn', conv_norm='bntt', spike_norm='psp_bn_step'
  )
  readers = readers_of_spikes(model, variables, x)
  one = fold_spike_norms(fold_convolutions(variables), readers=readers)
  other = fold_convolutions(fold_spike_norms(variables, readers=readers))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6),
    one['folded'],
    other['folded'],
  )


FOLDS = {
  'kernels': lambda v, readers: fold_convolutions(v),
  'spikes': lambda v, readers: fold_spike_norms(v, readers=readers),
  'all': lambda v, readers: fold_all(v, readers=readers),
}


@pytest.mark.parametrize(
  ('first', 'then'),
  [
    ('all', FOLDS['all']),
    ('kernels', FOLDS['all']),
    ('spikes', FOLDS['all']),
    ('kernels', lambda v, readers: fold_all(strip(v), readers=readers)),
    ('spikes', lambda v, readers: fold_all(strip(v), readers=readers)),
  ],
)
def test_what_is_folded_is_not_folded_again(first, then):
  model, variables, x = _network(
    'spiking_cnn',
    conv_norm='bntt',
    membrane_norm='none',
    spike_norm='psp_bn_step',
  )
  readers = readers_of_spikes(model, variables, x)
  once = fold_all(variables, readers=readers)
  again = then(FOLDS[first](variables, readers), readers)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6),
    strip(once),
    strip(again),
  )


@pytest.mark.parametrize('kernels', [False, True])
def test_fold_of_an_experiment_uses_its_threshold_and_its_eps(kernels):
  config = digits.get_config()
  config.model.update(
    {'width': 4, 'v_th': 0.8, 'eps': 0.1, 'spike_norm': 'psp_bn'}
  )
  config.evaluation.fold = 'all' if kernels else 'thresholds'
  experiment = build(config)
  x = common.images()
  variables = common.random_variables(experiment.model, x)
  folded = fold_network(experiment, variables)
  layers = compare_layers(experiment.model, variables, folded, x)
  assert sum(layer.flips for layer in layers.values()) == 0
  assert max(layer.current_error for layer in layers.values()) <= 1e-5


def test_norm_of_spikes_folds_while_the_conv_norm_stays():
  model, variables, x = _network('spiking_cnn', spike_norm='psp_bn')
  readers = readers_of_spikes(model, variables, x)
  folded = strip(fold_spike_norms(variables, readers=readers))
  assert 'bn' in folded['params']['conv2']
  assert 'psp_bn' not in str(jax.tree.structure(folded))
  layers = compare_layers(model, variables, folded, x)
  assert max(result.current_error for result in layers.values()) == 0
  assert max(result.flips for result in layers.values()) == 0


@pytest.mark.parametrize('collection', ['folded', 'threshold'])
def test_folded_network_is_not_trained(collection):
  model, variables, x = _network(
    'spiking_cnn', conv_norm='none', spike_norm='psp_bn'
  )
  folded = _folded(model, variables, x)
  for other in {'folded', 'threshold'} - {collection}:
    folded.pop(other)
  folded = {**variables, **folded, 'params': variables['params']}
  with pytest.raises(InputError, match='a folded network cannot be trained'):
    model.apply(folded, x, train=True, mutable=['batch_stats'])


@pytest.mark.parametrize('name', CURRENT)
def test_image_equals_its_frames_with_every_norm(name):
  model, variables = common.small(conv_norm=name)
  x = common.images()
  logits, updates = jax.jit(
    lambda x: model.apply(variables, x, train=True, mutable=['batch_stats'])
  )(x)
  outputs = logits, updates['batch_stats']
  common.assert_equals_its_frames(model, variables, x, outputs=outputs)


@pytest.mark.parametrize('folded', [False, True])
@pytest.mark.parametrize('name', PER_TIME_STEP)
def test_norm_of_steps_refuses_another_number_of_steps(name, folded):
  norms = {f'{NORMS[name].place}_norm': name}
  model, variables = common.small(**norms)
  if folded:
    variables = _folded(model, variables, common.images())
  other = build_model(
    {'name': 'spiking_cnn', 'width': 4, 'num_steps': 5, **norms}
  )
  who = 'conv2' if folded and name == 'psp_bn_step' else name
  with pytest.raises(
    InputError, match=f'{who}. has parameters for each of its 3 steps, got 5'
  ):
    other.apply(variables, common.images(), train=False)


@pytest.mark.parametrize('network', ['resnet20', 'preact_resnet'])
def test_tdbn_scales_by_the_threshold_and_by_alpha_where_branches_join(network):
  _, variables, _ = _network(network, conv_norm='tdbn', v_th=0.8)
  constants = {
    '/'.join(key.key for key in path[:-2]): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(
      variables['batch_stats']
    )
    if path[-1].key == 'alpha_v_th'
  }
  # A sum joins two normed branches where the shortcut is a convolution.
  shortcuts = [k for k in constants if k.endswith('shortcut')]
  joins = [*shortcuts, *(k.replace('shortcut', 'conv2') for k in shortcuts)]
  assert set(joins) <= constants.keys()
  assert 0 < len(joins) < len(constants)
  for layer, constant in constants.items():
    alpha = 0.5**0.5 if layer in joins else 1.0
    np.testing.assert_allclose(constant, alpha * 0.8, rtol=1e-6)


@pytest.mark.parametrize('around', [nn.WeightNorm, nn.SpectralNorm])
def test_kernel_that_a_wrapper_changes_is_not_folded(around):
  class Wrapped(nn.Module):
    @nn.compact
    def __call__(self, x):
      options = {'update_stats': False} if around is nn.SpectralNorm else {}
      return around(ConvNorm(2, name='conv'))(x, train=False, **options)

  x = common.images().reshape((2, 4, 8, 8, 1))
  variables = Wrapped().init(jax.random.key(0), x)
  with pytest.raises(InputError, match='conv/kernel/.*changes one'):
    fold_convolutions(variables)
