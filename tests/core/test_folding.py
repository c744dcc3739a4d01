"""Does a folded network fire exactly the spikes of the unfolded one?

The proof: both sides of the predicate are monotone in the potential u, and a
folded neuron compares u with one number. So if the unfolded neuron, which
never calls the fold, decides alike at that number, at both neighbours and at
the largest finite values, it decides alike everywhere.
"""

import functools
import re

import common
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mpbn_jax import (
  LIF,
  NORMS,
  InputError,
  fold,
  fold_all,
  fold_convolutions,
  strip,
)
from mpbn_jax.evaluation import recorded
from mpbn_jax.layers import ConvNorm
from mpbn_jax.norm import EPS
from mpbn_jax.surrogate import SURROGATES

FOLDABLE = [
  name
  for name, norm in NORMS.items()
  if norm.place == 'membrane' and norm.fold is not None
]
CONSTANTS = {'eps': jnp.float32(EPS), 'v_th': jnp.float32(0.5)}
LARGEST = np.finfo(np.float32).max
TINY = np.finfo(np.float32).tiny


def _neurons(name, *, seed=0, adversarial=False, shape=(4, 4, 64), **settings):
  """Returns (layer, variables) of one neuron layer over maps of a shape."""
  layer = LIF(norm=name, **settings)
  variables = layer.init(
    jax.random.key(0), jnp.zeros((2, 1, *shape)), train=False
  )
  return layer, common.random_norms(
    variables, seed=seed, adversarial=adversarial
  )


def _unfolded_decides_as_folded(variables, folded, norm, *, v_th=0.5):
  """Checks every potential of every neuron by monotonicity."""
  leaf = folded['threshold']
  theta, polarity = (np.asarray(leaf[k]) for k in ('threshold', 'polarity'))
  infinity = np.float32(np.inf)
  neighbour = np.errstate(over='ignore', under='ignore')(np.nextafter)
  probes = {
    'at': theta,
    'above': neighbour(theta, infinity),
    'below': neighbour(theta, -infinity),
    **{str(u): np.full_like(theta, u) for u in (np.nan, 0, TINY, -TINY)},
    **{str(u): np.full_like(theta, u) for u in (LARGEST, -LARGEST)},
    **{str(u): np.full_like(theta, u) for u in (np.inf, -np.inf)},
  }
  # T = 1: the potential is the current. [probes, T, shape of the layer]
  u = jnp.asarray(np.stack(list(probes.values())))
  expected = polarity * u > polarity * theta
  layer = LIF(norm=norm, v_th=v_th)
  currents = u[:, None] if theta.ndim > 1 else u[:, None, None, None]
  spikes = layer.apply(variables, currents, train=False)
  fired = np.asarray(spikes).reshape(u.shape) > 0
  for name, got, want in zip(probes, fired, expected, strict=True):
    np.testing.assert_array_equal(got, want, err_msg=name)
  return theta, polarity


@pytest.mark.parametrize('adversarial', [False, True])
@pytest.mark.parametrize('name', FOLDABLE)
@pytest.mark.parametrize('seed', range(3))
def test_threshold_separates_every_potential(name, adversarial, seed):
  _, variables = _neurons(name, seed=seed, adversarial=adversarial)
  theta, polarity = _unfolded_decides_as_folded(
    variables, fold(variables), name
  )
  assert (polarity < 0).any()
  assert (np.isfinite(theta)).any()
  if adversarial:
    assert np.isinf(theta).any()  # scales of zero


def test_threshold_separates_every_potential_of_a_network():
  _, _, variables, _, _ = common.golden('resnet20_t2')
  folded = fold(variables)
  layers = [name for name in variables['params'] if 'lif' in name]
  assert len(layers) == 19
  for layer in layers:
    _unfolded_decides_as_folded(
      {part: tree[layer] for part, tree in variables.items() if layer in tree},
      {'threshold': folded['threshold'][layer]},
      'mpbn_channel',
    )


def _near(theta, shape, rng, *, ulps=64):
  """Returns numbers within `ulps` units in the last place of theta."""
  theta = np.where(np.isfinite(theta), theta, 0.5).astype(np.float32)
  key = theta.view(np.int32)
  key = np.where(key < 0, key ^ 0x7FFFFFFF, key)
  key = key + rng.integers(-ulps, ulps + 1, shape + theta.shape)
  return np.where(key < 0, key ^ 0x7FFFFFFF, key).astype(np.int32).view('f4')


def _currents_near_threshold(folded, *, batch, steps, rng, tau=0.25):
  """Returns currents that put every u[t] within 64 ulp of its threshold."""
  leaf = folded['threshold']
  theta, polarity = (np.asarray(leaf[k]) for k in ('threshold', 'polarity'))
  u_res = np.zeros((batch, *theta.shape), np.float32)
  currents = []
  for _ in range(steps):
    current = _near(theta, (batch,), rng) - np.float32(tau) * u_res
    u = np.float32(tau) * u_res + current
    u_res = np.where(polarity * u > polarity * theta, np.float32(0), u)
    currents.append(current)
  return jnp.asarray(np.stack(currents, 1))


@functools.partial(jax.jit, static_argnums=0)
def _run(layer, variables, currents):
  return layer.apply(variables, currents, train=False)


@pytest.mark.slow
@pytest.mark.parametrize('name', FOLDABLE)
def test_no_decision_of_a_hundred_million_differs_near_the_threshold(name):
  """5e7 decisions each of two norms; T 1 to 8; looped and unrolled scans."""
  element = name == 'mpbn_element'
  rng = np.random.default_rng(element)
  decisions = differing = closed_form_differing = 0
  shape = (8, 8, 16) if element else (1, 1, 1024)
  for steps in range(1, 9):
    layer, variables = _neurons(
      name,
      seed=steps + 100 * element,
      adversarial=steps % 2 == 0,
      shape=shape,
      unroll=steps % 3 == 0,
    )
    variables = jax.tree.map(jnp.asarray, variables)
    folded = strip(fold(variables))
    closed = _closed_form(variables, name)
    for _ in range(6):
      currents = _currents_near_threshold(
        folded, batch=238, steps=steps, rng=rng
      )
      currents = currents.reshape((238, steps, *shape))
      spikes = _run(layer, variables, currents)
      again = _run(layer, folded, currents)
      decisions += spikes.size
      differing += int((spikes != again).sum())
      wrong = _run(layer, closed, currents)
      closed_form_differing += int((spikes != wrong).sum())
  print(f'{name}: {decisions} decisions, {differing} differ with the fold, ')
  print(f'{closed_form_differing} with the closed form')
  assert decisions > 5e7
  assert differing == 0
  assert closed_form_differing > 0


def _closed_form(variables, name):
  leaves = {
    **variables['params'][name],
    **common.moving(variables['batch_stats'][name]),
  }
  theta, polarity = reference.fold_closed_form(
    **{k: np.asarray(v, np.float64) for k, v in leaves.items()},
    v_th=0.5,
    eps=EPS,
  )
  leaf = {
    **fold(variables)['threshold'],
    'threshold': jnp.float32(theta),
    'polarity': jnp.float32(polarity),
  }
  return {'threshold': leaf}


@pytest.mark.parametrize('name', FOLDABLE)
@pytest.mark.parametrize('tau', [0.25, 0.3])
def test_eager_jitted_scanned_and_constant_programs_decide_alike(name, tau):
  layer, variables = _neurons(name, adversarial=True, tau=tau)
  folded = strip(fold(variables))
  currents = _currents_near_threshold(
    folded, batch=64, steps=4, rng=np.random.default_rng(0), tau=tau
  )
  if name.endswith('channel'):
    currents = currents[:, :, None, None]
  expected = layer.apply(folded, currents, train=False)
  eager = layer.apply(variables, currents, train=False)
  jitted = _run(layer, variables, currents)
  constant = jax.jit(lambda c: layer.apply(variables, c, train=False))(currents)
  constants = jax.jit(lambda: layer.apply(variables, currents, train=False))()
  with jax.disable_jit():
    op_by_op = layer.apply(variables, currents, train=False)
  _, scanned = jax.lax.scan(
    lambda none, c: (none, layer.apply(variables, c[None], train=False)[0]),
    None,
    currents,
  )
  for spikes in (eager, jitted, constant, constants, op_by_op, scanned):
    np.testing.assert_array_equal(spikes, expected)


# ---- the tempting mistakes


def _textbook(params, stats, u):
  gain = params['scale'] * jax.lax.rsqrt(stats['var'] + EPS)
  return (u - stats['mean']) * gain + params['bias'] > 0.5


def test_textbook_expression_changes_with_its_parameters_closed_over():
  """Why evaluation does not fire on it: constants decide otherwise."""
  _, variables = _neurons('mpbn_channel', shape=(1, 1, 4096))
  params = variables['params']['mpbn_channel']
  stats = variables['batch_stats']['mpbn_channel']
  theta = np.asarray(fold(variables)['threshold']['threshold'])
  u = jnp.asarray(_near(theta, (500,), np.random.default_rng(0)))

  def differing(function):
    arguments = jax.jit(function)(params, stats, u)
    constants = jax.jit(lambda u: function(params, stats, u))(u)
    return int((arguments != constants).sum())

  exact = NORMS['mpbn_channel'].fires
  assert differing(_textbook) > 0
  assert differing(exact) == 0


@pytest.mark.parametrize('name', FOLDABLE)
def test_fold_without_the_sign_is_wrong(name):
  layer, variables = _neurons(name)
  folded = strip(fold(variables))
  leaf = folded['threshold']
  unsigned = {**leaf, 'polarity': jnp.ones_like(leaf['polarity'])}
  currents = common.images(16, 4, 64)[:, None]
  expected = layer.apply(variables, currents, train=False)
  wrong = layer.apply({'threshold': unsigned}, currents, train=False)
  negative = np.broadcast_to(leaf['polarity'] < 0, expected.shape)
  assert negative.any()
  # Fires where it should not and the other way round: always wrong there.
  assert (wrong != expected)[negative].mean() > 0.99
  assert not (wrong != expected)[~negative].any()


@pytest.mark.parametrize('name', FOLDABLE)
def test_firing_at_the_threshold_is_wrong(name):
  layer, variables = _neurons(name)
  folded = strip(fold(variables))
  theta = np.asarray(folded['threshold']['threshold'])
  polarity = folded['threshold']['polarity']
  u = jnp.broadcast_to(theta, (1, 1, 4, 4, 64))
  expected = layer.apply(variables, u, train=False)
  at_least = polarity * u >= polarity * theta
  assert not expected.any()
  assert at_least.all()


# ---- gradients


@pytest.mark.parametrize('surrogate', SURROGATES)
@pytest.mark.parametrize('name', FOLDABLE)
def test_folded_neurons_pass_the_gradient_of_the_unfolded(name, surrogate):
  layer, variables = _neurons(name, shape=(2, 2, 16), surrogate=surrogate)
  scale = variables['params'][name]['scale']
  variables['params'][name]['scale'] = scale.at[..., 3].set(0.0)
  assert (scale < 0).any()
  folded = strip(fold(variables))
  currents = common.images(4 * 3, 2, 16).reshape((4, 3, 2, 2, 16))
  cotangent = common.images(4 * 3, 2, 16, seed=1).reshape(currents.shape)

  @jax.jit
  def gradient(variables):
    def loss(currents):
      return (layer.apply(variables, currents, train=False) * cotangent).sum()

    return jax.grad(loss)(currents)

  expected, got = gradient(variables), gradient(folded)
  assert np.isfinite(got).all()
  assert (got[..., 3] == 0).all()
  # Of each channel, the largest entry: n - v_th and u - theta cancel.
  size = np.abs(expected).max((0, 1, 2, 3))
  assert (size[np.arange(16) != 3] > 0).all()
  assert (np.abs(got - expected) <= 1e-5 * size).all()


def test_gain_of_a_folded_neuron_is_not_read_without_a_gradient():
  layer, variables = _neurons('mpbn_channel')
  folded = strip(fold(variables))
  currents = common.images(4, 4, 64)[:, None]
  text = _run.lower(layer, folded, currents).compile().as_text()
  name = re.search(r'(\S+) = f32\[64\]\S* parameter\(\d+\).*gain', text)
  # Where it is declared, and nowhere else; or it is not even handed over.
  assert name is None or len(re.findall(rf'{name[1]}\b', text)) == 1
  assert 'threshold' in text
  assert 'sqrt' not in text


# ---- whole networks


@pytest.mark.parametrize('norm', FOLDABLE)
@pytest.mark.parametrize('reset', ['hard', 'soft'])
def test_folded_network_fires_the_same_spikes(norm, reset):
  model, variables = common.small(membrane_norm=norm, reset=reset)
  folded = strip(fold(variables))
  x = common.images()
  run = jax.jit(lambda v, x: recorded(model, v, x))
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


@pytest.mark.parametrize('reset', ['hard', 'soft'])
def test_fold_and_reset_take_v_th_and_eps_of_the_variables(reset):
  layer, variables = _neurons('mpbn_channel', v_th=1.25, eps=0.1, reset=reset)
  folded = strip(fold(variables))
  currents = common.images(16, 4, 64)[:, None]
  np.testing.assert_array_equal(
    layer.apply(variables, currents, train=False),
    layer.apply(folded, currents, train=False),
  )


def test_threshold_agrees_with_the_closed_form_up_to_rounding():
  _, variables = _neurons('mpbn_channel')
  leaf = fold(variables)['threshold']
  closed = _closed_form(variables, 'mpbn_channel')['threshold']
  np.testing.assert_array_equal(leaf['polarity'], closed['polarity'])
  # Cancellation between the two terms: absolute, not relative.
  np.testing.assert_allclose(
    leaf['threshold'], closed['threshold'], rtol=1e-5, atol=1e-5
  )


def _neurons_of(*, v_th=0.5, **leaves):
  leaves = {k: jnp.float32(v).reshape((-1,)) for k, v in leaves.items()}
  params = {k: leaves[k] for k in ('scale', 'bias')}
  stats = {k: leaves[k] for k in ('mean', 'var')} | CONSTANTS
  stats['v_th'] = jnp.float32(v_th)
  return {
    'params': {'mpbn_channel': params},
    'batch_stats': {'mpbn_channel': stats},
  }


_ANY = st.floats(-LARGEST, LARGEST, width=32)
_NEURON = st.tuples(
  st.one_of(st.floats(-1e4, 1e4, width=32), _ANY),  # scale
  st.one_of(st.floats(-100, 100, width=32), _ANY),  # bias
  st.one_of(st.floats(-100, 100, width=32), _ANY),  # mean
  st.floats(0, LARGEST, width=32),  # var
)
_HARD = [
  # (v_th - bias) * deviation underflows where v_th = 0; small scales.
  (0.0, 1.2e-38, 0.0, 0.0),
  (0.0, 0.7, 0.0, 1.0),
  (1e-40, 0.0, 0.0, 1.0),
  (-1e-40, 0.7, -LARGEST, 1.0),
  # No finite potential reaches the threshold; or every one does.
  (TINY, -100.0, 0.0, 1.0),
  (1.0, -LARGEST, 0.0, 1e4),
  (-1.0, -LARGEST, 0.0, 1e4),
  (-1.0, LARGEST, 0.0, 1e4),
  (np.inf, 0.1, 0.3, 1.0),
  (1.0, 0.1, -np.inf, np.inf),
  (np.nan, 0.1, 0.3, 1.0),
]


@settings(max_examples=25, deadline=None)
@given(
  neurons=st.lists(_NEURON, min_size=12, max_size=12),
  v_th=st.sampled_from([0.5, 0.0, -0.5]),
)
@example(neurons=[(0.0, 0.7, 0.0, 1.0)] * 12, v_th=0.0)
def test_threshold_separates_for_any_parameters(neurons, v_th):
  names = ('scale', 'bias', 'mean', 'var')
  leaves = np.float32(_HARD + neurons).T
  variables = _neurons_of(**dict(zip(names, leaves, strict=True)), v_th=v_th)
  folded = fold(variables)
  _unfolded_decides_as_folded(variables, folded, 'mpbn_channel', v_th=v_th)


@pytest.mark.parametrize(
  ('leaves', 'threshold'),
  [
    (dict(scale=0, bias=0.7), -np.inf),
    (dict(scale=0, bias=0.5), np.inf),
    (dict(scale=1, bias=-LARGEST, var=1e4), np.inf),
    (dict(scale=-1, bias=-LARGEST, var=1e4), -np.inf),
    (dict(scale=1, bias=LARGEST, var=1e4), -np.inf),
    (dict(scale=-1, bias=LARGEST, var=1e4), np.inf),
    (dict(scale=-1e-40, bias=0.7), -np.inf),
  ],
)
def test_neuron_that_fires_always_or_never_has_an_infinite_threshold(
  leaves, threshold
):
  leaf = fold(_neurons_of(**{'mean': 0, 'var': 1, **leaves}))['threshold']
  assert leaf['threshold'] == threshold
  assert leaf['gain'] == 0


def test_decisions_do_not_depend_on_who_flushes_small_numbers():
  """Compilers keep numbers that running programs round to 0."""
  small = np.float32([1e-40, -1e-40, 1.2e-38, -1.2e-38, 0, 0.7, 1e-20])
  scale, bias, v_th = (x.ravel() for x in np.meshgrid(small, small, small[:5]))
  function = NORMS['mpbn_channel'].fires
  params = {'scale': scale, 'bias': bias}
  stats = {'mean': 0 * bias, 'var': 0 * bias, **CONSTANTS, 'v_th': v_th}
  u = jnp.asarray(small)[:, None]
  arguments = jax.jit(function)(params, stats, u)
  constants = jax.jit(lambda u: function(params, stats, u))(u)
  np.testing.assert_array_equal(arguments, constants)


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


@functools.cache
def _golden_run(file):
  """Returns (run, variables, x, logits, layers) of the unfolded network."""
  _, model, variables, x, _ = common.golden(file)
  run = jax.jit(lambda v, x, forced: recorded(model, v, x, forced=forced))
  return run, variables, x, *run(variables, x, {})


@pytest.mark.parametrize('file', common.GOLDEN_NETWORKS)
def test_folded_convolutions_agree_layer_by_layer(file):
  """Each layer fed the unfolded network's spikes: currents and flips."""
  run, variables, x, _, layers = _golden_run(file)
  _, fed = run(strip(fold_convolutions(fold(variables))), x, layers)
  for name, layer in layers.items():
    error = jnp.abs(layer['currents'] - fed[name]['currents']).max()
    assert error <= 1e-5 * jnp.abs(layer['currents']).max(), name
    assert (layer['spikes'] != fed[name]['spikes']).mean() <= 1e-5, name


@pytest.mark.parametrize('file', common.GOLDEN_NETWORKS)
def test_folded_convolutions_agree_while_no_spike_flips(file):
  run, variables, x, logits, layers = _golden_run(file)
  other, folded_layers = run(strip(fold_convolutions(fold(variables))), x, {})
  flips = sum(
    int((layers[k]['spikes'] != folded_layers[k]['spikes']).sum())
    for k in layers
  )
  change = float(jnp.abs(other - logits).max())
  print(f'{file}: {flips} spikes flip, logits change by {change:.2g}')
  # Every golden decision is 4e-6 from its threshold: rounding flips none.
  assert flips == 0
  assert change <= 1e-4


@pytest.mark.parametrize('file', common.GOLDEN_NETWORKS)
def test_folded_golden_network_fires_the_same_spikes(file):
  run, variables, x, logits, layers = _golden_run(file)
  again, folded_layers = run(strip(fold(variables)), x, {})
  np.testing.assert_array_equal(logits, again)
  for name in layers:
    np.testing.assert_array_equal(
      layers[name]['spikes'], folded_layers[name]['spikes']
    )


@pytest.mark.parametrize('learn_v_th', [False, True])
def test_stacked_blocks_fold_as_each_of_them_alone(learn_v_th):
  _, variables = common.small(
    'preact_resnet', depth=16, learn_v_th=learn_v_th, current_norm='tdbn'
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
  with pytest.raises(InputError, match='folded and stripped already'):
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
  _, variables = common.small(current_norm='none')
  with pytest.raises(InputError, match="current_norm='none'"):
    fold_convolutions(variables)


def test_training_a_folded_network_is_refused():
  model, variables = common.small()
  with pytest.raises(InputError, match='folded network cannot be trained'):
    model.apply(
      fold(variables), common.images(), train=True, mutable=['batch_stats']
    )
