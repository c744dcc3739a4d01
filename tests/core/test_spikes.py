"""Normed spikes: what reads them, and that nothing else can."""

import copy
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpbn_jax import InputError
from mpbn_jax.layers import (
  Identity,
  SpikeNorm,
  Spikes,
  average_pool,
  mean_over_space,
  over_time,
)
from mpbn_jax.norm import CONSTANTS, EPS, NORMS

SHAPE = (2, 3, 4, 4, 5)  # [B, T, H, W, C]
X = np.random.default_rng(0).integers(0, 2, SHAPE).astype(np.float32)
GAINS = [
  name for name, norm in NORMS.items() if norm.place == 'spike' and norm.fold
]


def _variables(norm='psp_bn'):
  params, stats = NORMS[norm].init(SHAPE[2:], num_steps=3, eps=EPS)
  rng = np.random.default_rng(1)
  trees = {'params': {norm: params}, 'batch_stats': {norm: stats}}

  def leaf(path, value):
    if path[-1].key in CONSTANTS:
      return value
    return jnp.asarray(rng.uniform(0.5, 2, value.shape), jnp.float32)

  return jax.tree_util.tree_map_with_path(leaf, trees)


def _spikes(norm='psp_bn'):
  return SpikeNorm(norm=norm).apply(_variables(norm), X, train=False)


ARRAY = jnp.ones(SHAPE)
USES = {
  **{
    f'{operation.__name__} {side}': use
    for operation in (
      *(operator.add, operator.sub, operator.mul, operator.truediv),
      *(operator.matmul, operator.pow, operator.mod, operator.floordiv),
      *(operator.eq, operator.ne, operator.lt, operator.ge),
      *(operator.and_, operator.or_, operator.xor),
    )
    for side, use in {
      'number': lambda a, do=operation: do(a, 2),
      'array': lambda a, do=operation: do(a, ARRAY),
      'array before': lambda a, do=operation: do(ARRAY, a),
      'numpy before': lambda a, do=operation: do(X, a),
      'numpy number before': lambda a, do=operation: do(np.float32(2), a),
      'itself': lambda a, do=operation: do(a, a),
    }.items()
  },
  **{
    do.__name__: do
    for do in (
      *(bool, int, float, complex, len, iter, list, abs, round, reversed),
      *(operator.neg, operator.not_, operator.index, operator.invert),
      *(copy.deepcopy, jnp.asarray, jnp.array, np.asarray, np.array, np.tanh),
      *(jnp.tanh, jnp.sum, jnp.square, jnp.zeros_like, jnp.moveaxis),
      *(jax.device_put, jax.lax.stop_gradient),
      *(jax.eval_shape, jax.make_jaxpr),
    )
    if do not in (jnp.moveaxis, jax.eval_shape, jax.make_jaxpr)
  },
  **{
    f'.{name}': operator.attrgetter(name)
    for name in (
      *('T', 'at', 'astype', 'mean', 'max', 'sum', 'reshape', 'transpose'),
      *(
        'size',
        'nbytes',
        'item',
        'tolist',
        'copy',
        'device',
        'addressable_data',
      ),
    )
  },
  '[0]': lambda a: a[0],
  'in': lambda a: 0 in a,
  'numpy add': lambda a: np.add(X, a),
  'numpy concatenate': lambda a: np.concatenate([a, a]),
  'numpy stack of a list': lambda a: np.asarray([a, a]),
  'numpy copyto': lambda a: np.copyto(np.zeros(SHAPE), a),
  'jax concatenate': lambda a: jnp.concatenate([ARRAY, a]),
  'jax stack': lambda a: jnp.stack([a, ARRAY]),
  'jax where': lambda a: jnp.where(ARRAY > 0, a, 0),
  'jax where of comparisons': lambda a: jnp.where(a > 0, ARRAY, 0),
  'jax moveaxis': lambda a: jnp.moveaxis(a, 1, 0),
  'jax einsum': lambda a: jnp.einsum('bthwc->btc', a),
  'jax dot': lambda a: jnp.dot(a, jnp.ones((5, 2))),
  'jax at set': lambda a: ARRAY.at[:].set(a),
  'jit': lambda a: jax.jit(lambda a: a)(a),
  'jit of a closure': lambda a: jax.jit(lambda x: x * a)(ARRAY),
  'vmap': lambda a: jax.vmap(lambda a: 2 * a)(a),
  'grad': lambda a: jax.grad(lambda a: a.sum())(a),
  'jvp': lambda a: jax.jvp(lambda a: a, (a,), (ARRAY,)),
  'checkpoint': lambda a: jax.checkpoint(lambda a: a)(a),
  'scan carries': lambda a: jax.lax.scan(lambda c, _: (c, 0), a, None, 2),
  'scan reads': lambda a: jax.lax.scan(lambda c, x: (c, x), 0, a),
  'map': lambda a: jax.lax.map(lambda x: x, a),
  'while': lambda a: jax.lax.while_loop(lambda a: True, lambda a: a, a),
  'cond': lambda a: jax.lax.cond(True, lambda a: a, lambda a: a, a),
  'eval_shape': lambda a: jax.eval_shape(lambda a: a, a),
  'make_jaxpr': lambda a: jax.make_jaxpr(lambda a: a)(a),
  'tree map': lambda a: jax.tree.map(jnp.tanh, [a]),
  'tree map of Python': lambda a: jax.tree.map(lambda a: 2 * a, [a]),
}


@pytest.mark.parametrize('use', USES)
def test_normed_spikes_are_no_array(use):
  message = "got the normed spikes of '.*': read them|normed spikes of"
  with pytest.raises(InputError, match=message) as error:
    USES[use](_spikes())
  assert '\n' not in str(error.value)


def test_normed_spikes_are_hashed_as_objects():
  a, b = _spikes(), _spikes()
  assert len({a: 1, b: 2}) == 2


def test_normed_spikes_say_their_shape_and_nothing_else():
  a = _spikes()
  assert isinstance(a, Spikes)
  assert (a.shape, a.ndim, a.dtype) == (SHAPE, 5, jnp.float32)
  assert (a is None, hasattr(a, 'anything')) == (False, False)
  assert len({a, a}) == 1
  assert jax.tree.leaves({'a': a})[0] is a


@pytest.mark.parametrize('norm', GAINS)
def test_their_array_is_what_the_norm_returns(norm):
  variables = _variables(norm)
  params, stats = variables['params'][norm], variables['batch_stats'][norm]
  expected = NORMS[norm].evaluate(params, stats, X)
  a = _spikes(norm)
  np.testing.assert_array_equal(a.array, expected)
  np.testing.assert_array_equal(Identity().apply({}, a), expected)
  merged = over_time(lambda a: a.array, a)
  np.testing.assert_array_equal(merged, expected)


@pytest.mark.parametrize('norm', GAINS)
@pytest.mark.parametrize(
  'hand_on',
  [
    mean_over_space,
    lambda a: over_time(lambda a: average_pool(a, window=2), a),
    lambda a: over_time(
      lambda a: average_pool(a, window=3, stride=2, padding=1), a
    ),
  ],
)
def test_what_hands_them_on_passes_the_gain_through(hand_on, norm):
  a = _spikes(norm)
  handed_on = hand_on(a)
  assert isinstance(handed_on, Spikes)
  np.testing.assert_allclose(handed_on.array, hand_on(a.array), rtol=1e-5)
  assert handed_on.shape == hand_on(a.array).shape


@pytest.mark.parametrize(
  ('use', 'message'),
  [
    (lambda a: average_pool(a, window=2), 'average_pool inside over_time'),
    (lambda a: over_time(mean_over_space, a), 'mean_over_space outside over'),
    (lambda a: over_time(Identity().bind({}), a), "'' outside over_time, got"),
    (lambda a: over_time(lambda _: a, ARRAY), 'a function inside over_time'),
    (lambda a: over_time(lambda b: over_time(lambda c: c, b), a), 'over_time'),
  ],
)
def test_steps_cannot_be_taken_for_another_axis(use, message):
  with pytest.raises(InputError, match=message):
    use(_spikes('psp_bn_step'))


@pytest.mark.parametrize('norm', ['none', 'psp_ln', 'neunorm'])
def test_norm_that_does_not_fold_returns_an_array(norm):
  variables = {}
  if norm in NORMS:
    params, stats = NORMS[norm].init(SHAPE[2:], num_steps=3, eps=EPS)
    variables = {'params': {norm: params}, 'batch_stats': {norm: stats}}
  y = SpikeNorm(norm=norm, tau_s=0.2).apply(variables, X, train=False)
  assert isinstance(y, jax.Array)


def test_norm_in_training_returns_spikes_too():
  y, _ = SpikeNorm(norm='psp_bn').apply(
    _variables(), X, train=True, mutable=['batch_stats']
  )
  assert isinstance(y, Spikes)
  assert isinstance(y.array, jax.Array)


@pytest.mark.parametrize('norm', GAINS)
def test_gain_is_one_number_in_every_program(norm):
  rng = np.random.default_rng(0)
  shape = {'scale': (1000,), 'moment': (3, 1000) if 'step' in norm else (1000,)}
  scale, moment = (
    rng.uniform(0.01, 2, shape[k]).astype(np.float32)
    for k in ('scale', 'moment')
  )

  def gain(scale, moment):
    stats = {'moment': moment, 'eps': np.float32(1e-5)}
    return NORMS[norm].fold({'scale': scale}, stats)

  expected = scale / np.sqrt(moment + np.float32(1e-5))
  constants = jax.jit(lambda: gain(jnp.asarray(scale), jnp.asarray(moment)))
  for found in (gain(scale, moment), jax.jit(gain)(scale, moment), constants()):
    np.testing.assert_array_equal(found, expected)
