"""Golden vectors: what the paper's implementation computed.

The vectors and what they hold: golden/README.md. Every decision in them is at
least 4e-6 away from its threshold, so the spikes must be equal.
"""

import functools

import common
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
import reference_network

from mpbn_jax import LIF, optim
from mpbn_jax.configs import default
from mpbn_jax.interop.torch import to_reference


@pytest.fixture(scope='module')
def lif_mpbn():
  arrays = dict(np.load(common.GOLDEN / 'lif_mpbn.npz'))
  # [T, B, C, H, W] -> [B, T, H, W, C]
  for name in ('x', 'cotangent', 'eval_spikes', 'train_spikes', 'grad/x'):
    arrays[name] = np.moveaxis(arrays[name], (0, 2), (1, 4))
  return arrays


def _layer(arrays):
  state = {k[6:]: jnp.asarray(v) for k, v in arrays.items() if 'state/' in k}
  layer = LIF(
    tau=float(arrays['decay']),
    v_th=float(arrays['v_th']),
    norm='mpbn_channel',
    surrogate='tanh',
    surrogate_parameter=float(arrays['surrogate_temp']),
    momentum=float(arrays['momentum']),
    eps=float(arrays['eps']),
  )
  params = {'scale': state['weight'], 'bias': state['bias']}
  stats = {'mean': state['running_mean'], 'var': state['running_var']}
  for name in ('eps', 'v_th'):
    stats[name] = jnp.float32(arrays[name])
  return layer, {
    'params': {'mpbn_channel': params},
    'batch_stats': {'mpbn_channel': stats},
  }


def test_neuron_fires_the_golden_spikes_in_evaluation(lif_mpbn):
  layer, variables = _layer(lif_mpbn)
  spikes = layer.apply(variables, lif_mpbn['x'], train=False)
  np.testing.assert_array_equal(spikes, lif_mpbn['eval_spikes'])


def test_neuron_trains_with_the_golden_spikes_gradients_and_stats(lif_mpbn):
  layer, variables = _layer(lif_mpbn)

  def loss(params, x):
    spikes, updates = layer.apply(
      {**variables, 'params': params}, x, train=True, mutable=['batch_stats']
    )
    return (spikes * lif_mpbn['cotangent']).sum(), (spikes, updates)

  gradients, (spikes, updates) = jax.grad(loss, (0, 1), has_aux=True)(
    variables['params'], lif_mpbn['x']
  )
  np.testing.assert_array_equal(spikes, lif_mpbn['train_spikes'])
  params = gradients[0]['mpbn_channel']
  for ours, name in (
    (gradients[1], 'grad/x'),
    (params['scale'], 'grad/weight'),
    (params['bias'], 'grad/bias'),
  ):
    golden = lif_mpbn[name]
    assert np.abs(ours - golden).max() <= 1e-5 * np.abs(golden).max(), name
  stats = updates['batch_stats']['mpbn_channel']
  for ours, name in (('mean', 'running_mean'), ('var', 'running_var')):
    golden = lif_mpbn[f'stats1/{name}']
    np.testing.assert_allclose(stats[ours], golden, rtol=0, atol=1e-5)


def test_carrying_the_normalized_potential_is_a_different_network(lif_mpbn):
  """The tempting mistake: its spikes are not the golden ones."""
  _, variables = _layer(lif_mpbn)
  currents = np.moveaxis(lif_mpbn['x'], 1, 0)
  wrong, _, _ = reference.lif_mpbn(
    currents,
    **variables['params']['mpbn_channel'],
    **common.moving(variables['batch_stats']['mpbn_channel']),
    tau=0.25,
    v_th=0.5,
    train=False,
    normalized_carry=True,
  )
  golden = np.moveaxis(lif_mpbn['eval_spikes'], 1, 0)
  assert (wrong != golden).mean() > 0.01


NETWORKS = pytest.mark.parametrize('file', common.GOLDEN_NETWORKS)


def test_every_golden_file_is_compared():
  files = {path.stem for path in common.GOLDEN.glob('*.npz')}
  assert files == {'lif_mpbn', *common.GOLDEN_NETWORKS}


@functools.cache
def _step(file):
  """Returns (a training step, the state of the optimizer before the first).

  The step is (params, stats, opt_state) -> (those, loss, what it computed).
  """
  _, model, variables, x, arrays = common.golden(file, unroll=False)
  transform = optim.optimizer(default.get_config().optimizer)

  @jax.jit
  def step(params, stats, opt_state):
    def loss_of(params):
      logits, updates = model.apply(
        {'params': params, 'batch_stats': stats},
        x,
        train=True,
        mutable=['batch_stats'],
      )
      losses = optax.softmax_cross_entropy_with_integer_labels(
        logits, arrays['y']
      )
      return losses.mean(), (logits, updates['batch_stats'])

    (loss, (logits, stats)), gradients = jax.value_and_grad(
      loss_of, has_aux=True
    )(params)
    directions, opt_state = transform.update(gradients, opt_state, params)
    params = jax.tree.map(lambda p, d: p - 0.05 * d, params, directions)
    first = {'logits': logits, 'gradients': gradients, 'stats': stats}
    return (params, stats, opt_state), loss, first

  return step, transform.init(variables['params'])


@functools.cache
def _training(file):
  """Returns what the first step computed, and the losses of all steps."""
  _, _, variables, _, arrays = common.golden(file)
  step, start = _step(file)
  carry = (variables['params'], variables['batch_stats'], start)
  firsts, losses = [], []
  for _ in arrays['losses']:
    carry, loss, first = step(*carry)
    firsts.append(first)
    losses.append(float(loss))
  return firsts[0], losses


@pytest.mark.slow
@NETWORKS
def test_network_trains_along_the_golden_losses(file):
  *_, arrays = common.golden(file)
  first, losses = _training(file)
  np.testing.assert_allclose(
    first['logits'], arrays['train_logits'], rtol=0, atol=1e-4
  )
  assert abs(losses[0] - arrays['loss']) <= 1e-5
  np.testing.assert_allclose(losses, arrays['losses'], rtol=0, atol=2e-3)


@pytest.mark.slow
@NETWORKS
def test_gradients_have_the_golden_norms(file):
  config, *_, arrays = common.golden(file)
  first, _ = _training(file)
  gradients = to_reference({'params': first['gradients']}, config)
  golden = [name for name in arrays if name.startswith('grad_norm/')]
  assert {f'grad_norm/{name}' for name in gradients} == set(golden)
  for name, gradient in gradients.items():
    norm, expected = np.linalg.norm(gradient), arrays[f'grad_norm/{name}']
    # Absolute: gradients that a following normalization cancels are noise.
    assert abs(norm - expected) <= max(1e-3 * expected, 1e-5), name


@pytest.mark.slow
@NETWORKS
def test_running_statistics_advance_to_the_golden_ones(file):
  config, *_, arrays = common.golden(file)
  first, _ = _training(file)
  stats = to_reference({'batch_stats': first['stats']}, config)
  golden = [name for name in arrays if name.startswith('stats1/')]
  assert {f'stats1/{name}' for name in stats} == set(golden)
  for name, value in stats.items():
    np.testing.assert_allclose(
      value, arrays[f'stats1/{name}'], rtol=0, atol=1e-5, err_msg=name
    )


@functools.cache
def _new(file):
  """Returns (variables of a new network, what its first step computes)."""
  _, model, _, x, _ = common.golden(file, unroll=False)
  variables = common.init(model, x[:1])
  step, start = _step(file)
  *_, first = step(variables['params'], variables['batch_stats'], start)
  return variables, first


# tests/models/test_models.py has the networks without golden vectors.
@pytest.mark.slow
@NETWORKS
def test_gradient_reaches_the_first_layer_of_a_new_network(file):
  _, first = _new(file)
  common.assert_first_layer_learns(first['gradients'])


@pytest.mark.slow
@NETWORKS
def test_initial_kernels_have_the_papers_deviation(file):
  variables, _ = _new(file)
  name = common.GOLDEN_NETWORKS[file]['name']
  common.assert_papers_deviation(variables['params'], name)


@pytest.mark.slow
@NETWORKS
def test_image_equals_the_same_frame_at_every_step(file):
  _, model, _, x, _ = common.golden(file, unroll=False)
  variables, first = _new(file)
  common.assert_equals_its_frames(
    model, variables, x, outputs=(first['logits'], first['stats'])
  )


def test_slow_reference_agrees_with_the_golden_logits():
  """The reference that other tests lean on is itself checked."""
  *_, arrays = common.golden('resnet20_t2')
  logits, _, _ = reference_network.resnet20(
    common.golden_state(arrays),
    arrays['x'],
    num_steps=int(arrays['T']),
    train=False,
  )
  np.testing.assert_allclose(logits, arrays['eval_logits'], rtol=0, atol=1e-5)
