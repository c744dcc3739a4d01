"""The comparison of spikes, for layers of every shape."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpbn_jax import LIF, InputError, sharding
from mpbn_jax.configs import digits
from mpbn_jax.datasets.base import Dataset, Spec, Split
from mpbn_jax.evaluation import compare, compare_layers, recorded

STEPS, INPUTS, COUNT = 3, 6, 13
SPEC = Spec('lines', (2, 3, 1), ('a', 'b'), 16, (0.0,), (1.0,))


def _experiment(model):
  """Returns what `compare` reads: 13 examples in batches of 8."""
  rng = np.random.default_rng(0)
  images = rng.integers(0, 17, (COUNT, 2, 3, 1), np.uint8)
  split = Split(images, (np.arange(COUNT) % 2).astype(np.int32))
  config = digits.get_config()
  config.evaluation.batch_size = 8
  return types.SimpleNamespace(
    model=model,
    dataset=Dataset(SPEC, {'train': split, 'test': split}),
    config=config,
    mesh=sharding.make_mesh(),
  )


def _images(experiment):
  split = experiment.dataset.splits['test']
  return np.float32(split.images) / 16


def _steps(x):
  """Returns [B, T, 6]: the pixels at every step, in another strength."""
  flat = x.reshape((x.shape[0], 1, INPUTS))
  return flat * jnp.array([1.0, 0.5, 1.5])[:, None]


class Dense(nn.Module):
  """Named against the alphabet: the first layer runs first."""

  @nn.compact
  def __call__(self, x, *, train):
    x = LIF(name='wide')(nn.Dense(5, name='d1')(_steps(x)), train=train)
    x = LIF(name='narrow')(nn.Dense(4, name='d2')(x), train=train)
    return nn.Dense(2, name='head')(x).mean(1)


class Block(nn.Module):
  @nn.compact
  def __call__(self, x, _=None):
    x = LIF(name='z')(nn.Dense(INPUTS, name='d1')(x), train=False)
    x = LIF(name='a')(nn.Dense(INPUTS, name='d2')(x), train=False)
    return x, None


STACKED = dict.fromkeys(('params', 'intermediates', 'given_spikes'), 0)


class Blocks(nn.Module):
  """Four blocks that are one in the program; `axes` as for `nn.scan`."""

  axes: dict | None = None

  @nn.compact
  def __call__(self, x, *, train):
    scan = nn.scan(
      Block,
      variable_axes=self.axes or STACKED,
      split_rngs={'params': True},
      length=4,
    )
    x, _ = scan(name='blocks')(_steps(x), None)
    x = LIF(name='last')(nn.Dense(3, name='d')(x), train=train)
    return nn.Dense(2, name='head')(x).mean(1)


class Shared(nn.Module):
  """One neuron layer that runs twice."""

  @nn.compact
  def __call__(self, x, *, train):
    lif = LIF(name='lif')
    x = lif(nn.Dense(5, name='d1')(_steps(x)), train=train)
    x = lif(nn.Dense(5, name='d2')(x), train=train)
    return nn.Dense(2, name='head')(x).mean(1)


def _variables(model, *, seed=0):
  x = jnp.zeros((2, *SPEC.image_shape))
  variables = model.init(jax.random.key(seed), x, train=False)
  # Kernels that make about half of the neurons fire.
  return jax.tree.map(lambda leaf: 2 * leaf, variables)


def _lif(x, kernel):
  """Returns spikes [B, T, n] of x [B, T, m] @ kernel; tau 0.25, v_th 0.5."""
  u = np.zeros((len(x), kernel.shape[1]), np.float32)
  spikes = []
  for t in range(STEPS):
    u = np.float32(0.25) * u + x[:, t] @ np.asarray(kernel)
    spikes.append(np.float32(u > 0.5))
    u = u * (1 - spikes[-1])
  return np.stack(spikes, 1)


def _by_hand(model, variables, x):
  """Returns {layer: spikes}, in NumPy."""
  params = variables['params']
  x = np.asarray(_steps(x))
  found = {}
  if isinstance(model, Blocks):
    kernels = [params['blocks'][d]['kernel'] for d in ('d1', 'd2')]
    for i in range(4):
      x = found[f'blocks/z[{i}]'] = _lif(x, kernels[0][i])
      x = found[f'blocks/a[{i}]'] = _lif(x, kernels[1][i])
    found['last'] = _lif(x, params['d']['kernel'])
    return found
  first, second = {
    Dense: ('wide', 'narrow'),
    Shared: ('lif', 'lif(2)'),
  }[type(model)]
  found[first] = _lif(x, params['d1']['kernel'])
  found[second] = _lif(found[first], params['d2']['kernel'])
  return found


@pytest.mark.parametrize('network', [Dense, Blocks, Shared])
def test_spikes_of_layers_without_maps_are_counted_as_by_hand(network):
  model = network()
  experiment = _experiment(model)
  ours, theirs = _variables(model), _variables(model, seed=1)
  x = _images(experiment)
  spikes, others = (_by_hand(model, v, x) for v in (ours, theirs))
  result = compare(experiment, ours, theirs, split='test')
  assert result.spikes_compared == sum(s.size for s in spikes.values())
  assert result.spikes_differing == sum(
    int((spikes[name] != others[name]).sum()) for name in spikes
  )
  assert result.spikes_differing > 0
  rates = {name: s.mean() for name, s in spikes.items()}
  assert result.firing_rate == pytest.approx(rates)
  assert 0.05 < min(rates.values()) < max(rates.values()) < 0.95


def test_layers_come_in_the_order_in_which_they_run():
  model = Dense()
  experiment = _experiment(model)
  variables = _variables(model)
  result = compare(experiment, variables, variables, split='test')
  assert list(result.firing_rate) == ['wide', 'narrow']
  layers = compare_layers(model, variables, variables, _images(experiment))
  assert list(layers) == ['wide', 'narrow']
  _, layers = jax.eval_shape(
    lambda v, x: recorded(Blocks(), v, x),
    jax.eval_shape(lambda: _variables(Blocks())),
    _images(experiment),
  )
  assert list(layers) == ['blocks/z', 'blocks/a', 'last']


def test_layers_fed_the_same_spikes_differ_by_their_own_kernels_alone():
  model = Blocks()
  variables = _variables(model)
  other = jax.tree.map(lambda leaf: leaf, variables)
  other['params']['d']['kernel'] = -other['params']['d']['kernel']
  x = _images(_experiment(model))
  layers = compare_layers(model, variables, other, x)
  assert {name: layer.spikes for name, layer in layers.items()} == {
    'blocks/z': 4 * COUNT * STEPS * INPUTS,
    'blocks/a': 4 * COUNT * STEPS * INPUTS,
    'last': COUNT * STEPS * 3,
  }
  assert layers['blocks/z'].flips == layers['blocks/a'].flips == 0
  assert layers['blocks/z'].current_error == 0
  assert layers['last'].flips > 0
  assert layers['last'].current_error == 2


def test_currents_that_are_zero_in_both_do_not_differ():
  variables = jax.tree.map(jnp.zeros_like, _variables(Dense()))
  x = _images(_experiment(Dense()))
  layers = compare_layers(Dense(), variables, variables, x)
  assert [layer.current_error for layer in layers.values()] == [0, 0]


def test_layer_that_runs_twice_is_fed_no_single_set_of_spikes():
  variables = _variables(Shared())
  x = _images(_experiment(Shared()))
  with pytest.raises(InputError, match="'lif', which runs 2 times"):
    compare_layers(Shared(), variables, variables, x)


def test_layers_whose_spikes_a_scan_keeps_to_itself_are_refused():
  model = Blocks(axes={'params': 0})
  variables = jax.eval_shape(lambda: _variables(model))
  with pytest.raises(
    InputError, match="spikes of 'blocks/z', got none from the"
  ):
    jax.eval_shape(
      lambda v, x: recorded(model, v, x),
      variables,
      jnp.zeros((2, *SPEC.image_shape)),
    )


class NoNeurons(nn.Module):
  @nn.compact
  def __call__(self, x, *, train):
    return x


def test_network_without_neurons_is_refused():
  with pytest.raises(InputError, match='neuron layers .* got NoNeurons'):
    recorded(NoNeurons(), {}, jnp.zeros((2, 6)))


class StepsFirst(nn.Module):
  @nn.compact
  def __call__(self, x, *, train):
    x = jnp.moveaxis(nn.Dense(5, name='d1')(_steps(x)), 0, 1)
    x = LIF(name='lif')(x, train=train)
    return nn.Dense(2, name='head')(x).mean(0)


def test_spikes_without_the_batch_on_their_first_axis_are_refused():
  model = StepsFirst()
  variables = _variables(model)
  with pytest.raises(InputError, match="8 examples from 'lif', got .*3, 8, 5"):
    compare(_experiment(model), variables, variables, split='test')


def test_logits_that_are_not_finite_have_no_accuracy():
  model = Dense()
  variables = _variables(model)
  other = jax.tree.map(lambda leaf: leaf, variables)
  other['params']['head']['bias'] = jnp.array([jnp.nan, 0])
  with pytest.raises(FloatingPointError, match="finite logits .* 'test'"):
    compare(_experiment(model), variables, other, split='test')
