"""Exactness of the fold: a folded neuron fires the same spikes.

The proof: both sides of the predicate are monotone in the potential u, and a
folded neuron compares u with one number. So if the unfolded neuron, which
never calls the fold, decides alike at that number, at both neighbours and at
the largest finite values, it decides alike everywhere.
"""

import functools
import re

import common
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from folded_neurons import (
  FOLDABLE,
  LARGEST,
  TINY,
  assert_folded_decides_alike,
  currents_near_threshold,
  near,
  neuron_layer,
  run,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mpbn_jax import NORMS, fold, strip
from mpbn_jax.norm import EPS
from mpbn_jax.surrogate import SURROGATES

CONSTANTS = {'eps': jnp.float32(EPS), 'v_th': jnp.float32(0.5)}


@pytest.mark.parametrize('adversarial', [False, True])
@pytest.mark.parametrize('name', FOLDABLE)
@pytest.mark.parametrize('seed', range(3))
def test_threshold_separates_every_potential(name, adversarial, seed):
  _, variables = neuron_layer(name, seed=seed, adversarial=adversarial)
  theta, polarity = assert_folded_decides_alike(
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
    assert_folded_decides_alike(
      {part: tree[layer] for part, tree in variables.items() if layer in tree},
      {'threshold': folded['threshold'][layer]},
      'mpbn_channel',
    )


@pytest.mark.slow
@pytest.mark.parametrize('name', FOLDABLE)
def test_no_decision_of_a_hundred_million_differs_near_the_threshold(name):
  """5e7 decisions each of two norms; T 1 to 8; looped and unrolled scans."""
  element = name == 'mpbn_element'
  rng = np.random.default_rng(element)
  decisions = differing = closed_form_differing = 0
  shape = (8, 8, 16) if element else (1, 1, 1024)
  for steps in (1, 2, 3, 6, 8):
    layer, variables = neuron_layer(
      name,
      seed=steps + 100 * element,
      adversarial=steps % 2 == 0,
      shape=shape,
      unroll=steps % 3 == 0,
    )
    variables = jax.tree.map(jnp.asarray, variables)
    folded = strip(fold(variables))
    closed = _closed_form(variables, name)
    for _ in range(11):
      currents = currents_near_threshold(
        folded, batch=238, steps=steps, rng=rng
      )
      currents = currents.reshape((238, steps, *shape))
      spikes = run(layer, variables, currents)
      again = run(layer, folded, currents)
      decisions += spikes.size
      differing += int((spikes != again).sum())
      wrong = run(layer, closed, currents)
      closed_form_differing += int((spikes != wrong).sum())
  print(f'{name}: {decisions} decisions, {differing} differ with the fold, ')
  print(f'{closed_form_differing} with the closed form')
  assert decisions > 5e7
  assert differing == 0
  assert closed_form_differing > 0


def _closed_form(variables, name):
  moving = common.moving(variables['batch_stats'][name])
  leaves = {
    **variables['params'][name],
    **(moving or {'mean': 0.0, 'var': 1 - EPS}),
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
  layer, variables = neuron_layer(name, adversarial=True, tau=tau)
  folded = strip(fold(variables))
  currents = currents_near_threshold(
    folded, batch=64, steps=4, rng=np.random.default_rng(0), tau=tau
  )
  if name.endswith('channel'):
    currents = currents[:, :, None, None]
  expected = layer.apply(folded, currents, train=False)
  eager = layer.apply(variables, currents, train=False)
  jitted = run(layer, variables, currents)
  apply = functools.partial(layer.apply, variables, train=False)
  constant = common.as_users_compile(apply)(currents)
  constants = common.as_users_compile(lambda: apply(currents))()
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
  _, variables = neuron_layer('mpbn_channel', shape=(1, 1, 4096))
  params = variables['params']['mpbn_channel']
  stats = variables['batch_stats']['mpbn_channel']
  theta = np.asarray(fold(variables)['threshold']['threshold'])
  u = jnp.asarray(near(theta, (500,), np.random.default_rng(0)))

  def differing(function):
    arguments = common.as_users_compile(function)(params, stats, u)
    constants = common.as_users_compile(lambda u: function(params, stats, u))(u)
    return int((arguments != constants).sum())

  exact = NORMS['mpbn_channel'].fires
  assert differing(_textbook) > 0
  assert differing(exact) == 0


@pytest.mark.parametrize('name', FOLDABLE)
def test_fold_without_the_sign_is_wrong(name):
  layer, variables = neuron_layer(name)
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
  layer, variables = neuron_layer(name)
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
  layer, variables = neuron_layer(name, shape=(2, 2, 16), surrogate=surrogate)
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
  layer, variables = neuron_layer('mpbn_channel')
  folded = strip(fold(variables))
  currents = common.images(4, 4, 64)[:, None]
  text = run.lower(layer, folded, currents).compile().as_text()
  name = re.search(r'(\S+) = f32\[64\]\S* parameter\(\d+\).*gain', text)
  # Where it is declared, and nowhere else; or it is not even handed over.
  assert name is None or len(re.findall(rf'{name[1]}\b', text)) == 1
  assert 'threshold' in text
  assert 'sqrt' not in text


# ---- any parameters


@pytest.mark.parametrize('reset', ['hard', 'soft'])
def test_fold_and_reset_take_v_th_and_eps_of_the_variables(reset):
  layer, variables = neuron_layer(
    'mpbn_channel', v_th=1.25, eps=0.1, reset=reset
  )
  folded = strip(fold(variables))
  currents = common.images(16, 4, 64)[:, None]
  np.testing.assert_array_equal(
    layer.apply(variables, currents, train=False),
    layer.apply(folded, currents, train=False),
  )


def test_threshold_agrees_with_the_closed_form_up_to_rounding():
  _, variables = neuron_layer('mpbn_channel')
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
  assert_folded_decides_alike(variables, folded, 'mpbn_channel', v_th=v_th)


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
  arguments = common.as_users_compile(function)(params, stats, u)
  constants = common.as_users_compile(lambda u: function(params, stats, u))(u)
  np.testing.assert_array_equal(arguments, constants)
