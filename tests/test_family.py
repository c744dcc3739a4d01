"""Do the normalizations combine in a network, train, evaluate and fold?"""

import functools
import itertools
import re

import common
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpbn_jax import NORMS, InputError, fold, fold_convolutions, strip
from mpbn_jax.evaluate import compare_layers, recorded
from mpbn_jax.norm import names_at

CURRENT = [name for name, norm in NORMS.items() if norm.place == 'current']
FOLDABLE = [name for name in CURRENT if NORMS[name].fold is not None]
PER_STEP = [name for name in CURRENT if NORMS[name].per_step]
NETWORKS = [('spiking_cnn', 8), ('resnet20', 16)]


@pytest.mark.parametrize(
  ('current', 'membrane'),
  list(itertools.product(names_at('current'), names_at('membrane'))),
)
def test_combination_trains_two_steps_and_evaluates(current, membrane):
  model, variables = common.small(
    current_norm=current, membrane_norm=membrane, unroll=False
  )
  x, labels = common.images(), jnp.arange(8)

  @jax.jit
  def step(variables):
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
    return {'params': params, **updates}, gradients

  for _ in range(2):
    variables, gradients = step(variables)
    leaves = jax.tree.leaves(gradients)
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    # Scales, factors, kernels: all are reached.
    assert sum(bool((leaf != 0).any()) for leaf in leaves) > len(leaves) / 2
  logits = model.apply(variables, x, train=False)
  assert np.isfinite(logits).all()


@pytest.mark.slow
@pytest.mark.parametrize('name', FOLDABLE)
@pytest.mark.parametrize(('network', 'side'), NETWORKS)
def test_folded_convolutions_are_the_unfolded_layers(network, side, name):
  """Each layer fed the unfolded network's spikes; then running free."""
  model, variables = common.small(network, side, current_norm=name)
  folded = strip(fold_convolutions(variables))
  x = common.images(16, side)
  layers = compare_layers(model, variables, folded, x)
  for layer, result in layers.items():
    assert result.current_error <= 1e-5, layer
  flips = sum(result.flips for result in layers.values())
  spikes = sum(result.spikes for result in layers.values())
  assert flips / spikes < 1e-5

  run = jax.jit(functools.partial(recorded, model))
  logits, ours = run(variables, x)
  other, theirs = run(folded, x)
  free = sum(
    int((ours[layer]['spikes'] != theirs[layer]['spikes']).sum())
    for layer in ours
  )
  change = float(jnp.abs(logits - other).max())
  print(
    f'{network} {name}: {free} of {spikes} flip, logits change {change:.2g}'
  )
  assert free > 0 or change <= 1e-4


@pytest.mark.parametrize('name', FOLDABLE)
def test_folded_network_has_no_normalization_left(name):
  model, variables = common.small(current_norm=name)
  folded = strip(fold_convolutions(fold(variables)))
  keys = {
    key.key
    for path, _ in jax.tree_util.tree_leaves_with_path(folded)
    for key in path
  }
  assert not keys & set(NORMS)

  def roots(variables):
    run = jax.jit(lambda v, x: model.apply(v, x, train=False))
    text = run.lower(variables, common.images()).compile().as_text()
    return len(re.findall(r'\b(?:r?sqrt)\(', text))

  # Every normalization divides by a deviation; nothing else takes a root.
  assert roots(variables) > 0
  assert roots(folded) == 0


@pytest.mark.parametrize('name', CURRENT)
def test_image_equals_its_frames_with_every_norm(name):
  model, variables = common.small(current_norm=name)
  x = common.images()
  frames = jnp.repeat(x[:, None], model.num_steps, 1)
  apply = functools.partial(
    model.apply, variables, train=True, mutable=['batch_stats']
  )
  logits, updates = apply(x)
  frame_logits, frame_updates = apply(frames)
  np.testing.assert_allclose(logits, frame_logits, atol=1e-4)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    updates,
    frame_updates,
  )


@pytest.mark.parametrize('folded', [False, True])
@pytest.mark.parametrize('name', PER_STEP)
def test_norm_of_steps_refuses_another_number_of_steps(name, folded):
  _, variables = common.small(current_norm=name)
  if folded:
    variables = strip(fold_convolutions(variables))
  other, _ = common.small(current_norm=name, num_steps=5)
  with pytest.raises(
    InputError, match=f'{name}. has parameters for each of its 3 steps, got 5'
  ):
    other.apply(variables, common.images(), train=False)


def test_tdbn_scales_by_the_threshold_and_by_alpha_where_branches_join():
  _, variables = common.small('resnet20', 16, current_norm='tdbn', v_th=0.8)
  stats = variables['batch_stats']
  for layer, leaves in stats.items():
    if 'tdbn' not in leaves:
      continue
    block, _, kind = layer.rpartition('_')
    joins = 'block' in block and kind in ('conv2', 'shortcut')
    expected = 0.8 * (0.5**0.5 if joins else 1.0)
    np.testing.assert_allclose(leaves['tdbn']['gain'], expected, rtol=1e-6)
