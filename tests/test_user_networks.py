"""Is every network that a user may write folded right, or refused by name?"""

import functools
from collections.abc import Callable

import common
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpbn_jax import InputError, fold_all, readers_of_spikes, strip
from mpbn_jax.layers import (
  LIF,
  ConvNorm,
  Identity,
  Readout,
  SpikeNorm,
  Spikes,
  average_pool,
  mean_over_space,
  over_time,
)
from mpbn_jax.norm import synaptic_filter

X = common.images(4, side=4, channels=4)[:, None] + jnp.arange(2.0).reshape(
  (1, 2, 1, 1, 1)
)  # [B, T, H, W, C]


class Net(nn.Module):
  """A user's network: `body` between an encoder and a linear layer."""

  body: Callable

  @nn.compact
  def __call__(self, x, *, train):
    x = self.body(conv(x, name='encoder'))
    return Readout(3, nn.initializers.normal(1.0), name='head')(x).mean(1)


# All evaluate: no test here needs statistics of a batch.
def conv(x, name=None, features=4, kind=ConvNorm, **options):
  return kind(features, norm='none', name=name, **options)(x, train=False)


def lif(currents, name=None):
  return LIF(name=name)(currents, train=False)


def spikes(currents, name=None, norm='psp_bn', **options):
  return SpikeNorm(norm=norm, name=name, **options)(lif(currents), train=False)


def end(x):
  """Returns [B, T, C] of whatever stands before the linear layer."""
  return mean_over_space(x)


def pooled(a, **options):
  return over_time(functools.partial(average_pool, **options), a)


def random_variables(model):
  """Returns variables without a leaf that is what init gives, in NumPy."""
  init = functools.partial(model.init, train=False)
  shapes = jax.eval_shape(init, jax.random.key(0), X)
  rng = np.random.default_rng(0)
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: (
      rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
      * (0.2 if path[-1].key == 'kernel' else 1)
      * rng.choice([-1, 1] if path[-1].key == 'kernel' else [1], leaf.shape)
    ),
    shapes,
  )


FOLDS = {}


def folds(function):
  FOLDS[function.__name__] = function
  return function


# ---- networks that fold


@folds
def chain(x):
  return end(spikes(conv(spikes(x))))


@folds
def keyword(x):
  reader = ConvNorm(4, norm='none')
  return end(spikes(reader(x=spikes(x), train=False)))


@folds
def pool(x):
  return end(pooled(spikes(x), window=2))


@folds
def padded_pool_with_overlaps(x):
  return end(pooled(spikes(x), window=3, stride=2, padding=1))


@folds
def filter_and_moments_of_steps(x):
  a = spikes(x, norm='psp_bn_step', tau_s=0.4)
  a = spikes(conv(a) + Identity()(a), norm='psp_bn_step', tau_s=0.4)
  return end(pooled(a, window=2))


@folds
def residual_through_identity(x):
  a = spikes(x)
  return end(lif(conv(a) + Identity()(a)))


@folds
def concatenation_through_identity(x):
  a, b = spikes(x), spikes(conv(x))
  return end(lif(jnp.concatenate([Identity()(a), Identity()(b)], -1)))


@folds
def lateral_inhibition_through_identity(x):
  a = Identity()(spikes(x))
  return end(lif(a - a.mean(-1, keepdims=True)))


@folds
def attention_through_identity(x):
  a = mean_over_space(Identity()(spikes(x)))
  return a + jnp.einsum('btc,bsc,bsd->btd', a, a, a)


@folds
def flax_layers_through_identity(x):
  a = Identity()(spikes(x))
  return end(nn.Dense(4)(nn.Conv(4, (3, 3))(a)))


@folds
def delay_line_through_identity(x):
  def step(registers, s):
    return (s, *registers[:-1]), registers[-1]

  a = jnp.moveaxis(Identity()(spikes(x)), 1, 0)
  _, late = jax.lax.scan(step, (jnp.zeros_like(a[0]),) * 3, a)
  return end(a + late).swapaxes(0, 1)


@folds
def several_readers(x):
  a = spikes(x)
  return end(spikes(conv(a) + conv(a) + conv(pooled(a, window=1))))


@folds
def reader_called_twice_for_the_same_norm(x):
  a, reader = spikes(x), ConvNorm(4, norm='none')
  once = reader(a, train=False)
  return end(lif(once + reader(a, train=False)))


@folds
def norm_called_twice_with_the_same_reader(x):
  norm, reader = SpikeNorm(norm='psp_bn'), ConvNorm(4, norm='none')
  for _ in range(3):
    x = reader(norm(lif(x), train=False), train=False)
  return end(lif(x))


@folds
def spiking_mlp(x):
  init = nn.initializers.normal(1.0)
  return spikes(Readout(4, init)(spikes(end(x))))


class Block(nn.Module):
  """A block as of a residual network, with several ways in."""

  @nn.compact
  def __call__(self, x):
    a = spikes(x, name='norm')
    return Identity(name='shortcut')(a) + conv(a, name='conv')

  def as_carry(self, x, _):
    return self(x), None


def stacked(**others):
  every = {'params': 0, 'batch_stats': 0, 'folded': 0}
  return {'variable_axes': every | others, 'split_rngs': {'params': True}}


@folds
def scanned_blocks(x):
  blocks = nn.scan(Block, length=3, methods=['as_carry'], **stacked())
  return end(spikes(blocks(name='blocks').as_carry(x, None)[0]))


@folds
def scanned_blocks_that_share_variables(x):
  blocks = nn.scan(
    Block,
    length=3,
    methods=['as_carry'],
    variable_broadcast=['params', 'batch_stats', 'folded'],
    split_rngs={'params': False},
  )
  return end(blocks(name='blocks').as_carry(x, None)[0])


@folds
def blocks_under_remat(x):
  return end(nn.remat(Block)(name='b')(nn.remat(Block)(name='a')(x)))


@folds
def blocks_under_jit_that_share_a_trace(x):
  return end(nn.jit(Block)(name='b')(nn.jit(Block)(name='a')(x)))


def ensemble(x, **options):
  return nn.vmap(Block, in_axes=None, axis_size=3, **options)(name='blocks')(x)


@folds
def ensemble_along_first_axes(x):
  return end(ensemble(x, **stacked()).sum(0))


@folds
def ensemble_along_last_axes(x):
  axes = dict.fromkeys(('params', 'batch_stats', 'folded'), -1)
  return end(ensemble(x, **stacked(**axes)).sum(0))


@folds
def ensemble_that_shares_variables(x):
  shared = dict.fromkeys(('params', 'batch_stats', 'folded'))
  blocks = nn.vmap(Block, variable_axes=shared, split_rngs={'params': False})
  return end(blocks(name='blocks')(jnp.stack([x, 2 * x])).sum(0))


@folds
def ensemble_of_readers_of_one_norm(x):
  class Readers(nn.Module):
    @nn.compact
    def __call__(self, x):
      return x + conv(a, name='conv')

  a = spikes(x)
  readers = nn.vmap(Readers, in_axes=None, axis_size=3, **stacked())
  return end(readers(name='readers')(x).sum(0))


@folds
def remat_around_a_reader_only(x):
  class Reader(nn.Module):
    @nn.compact
    def __call__(self, x):
      return x + conv(a, name='conv')

  a = spikes(x)
  return end(nn.remat(Reader)(name='reader')(x))


class Listed(nn.Module):
  """Layers in a list of `setup`, called by a method of its own."""

  def setup(self):
    self.convs = [ConvNorm(4, norm='none') for _ in range(2)]
    self.norms = [SpikeNorm(norm='psp_bn') for _ in range(2)]
    self.neurons = LIF()

  def normed(self, x):
    return self.norms[0](self.neurons(x, train=False), train=False)

  def currents(self, a):
    x = self.convs[0](a, train=False)
    a = self.norms[1](self.neurons(x, train=False), train=False)
    return self.convs[1](a, train=False)


@folds
def setup_list_and_other_methods(x):
  layers = Listed(name='layers')
  return end(lif(layers.currents(layers.normed(x))))


@folds
def shared_scope(x):
  class Shared(nn.Module):
    def setup(self):
      self.inner = ConvNorm(4, norm='none')
      nn.share_scope(self, self.inner)

    def __call__(self, x):
      return self.inner(x, train=False)

  return end(lif(Shared(name='shared')(spikes(x))))


class Scaled(ConvNorm):
  """A reader of a user that does something to the currents."""

  @nn.compact
  def __call__(self, x, *, train):
    return jnp.tanh(super().__call__(x, train=train))


@folds
def subclass_of_a_reader(x):
  return end(lif(conv(spikes(x), kind=Scaled)))


@folds
def spikes_in_a_tuple_and_a_dictionary(x):
  class Pair(nn.Module):
    @nn.compact
    def __call__(self, x):
      a = spikes(x, name='norm')
      return {'both': (a, [a])}

  first, (second,) = Pair()(x)['both']
  return end(lif(conv(first) + conv(second)))


@folds
def spikes_that_are_only_looked_at(x):
  a = spikes(x)
  assert isinstance(a, Spikes)
  assert a.ndim == 5
  return end(conv(a, features=a.shape[-1]).astype(a.dtype))


@folds
def network_in_a_network(x):
  """A frozen network of its own, with its own variables."""
  frozen = random_variables(Net(chain, parent=None))
  y = Net(chain, parent=None).apply(frozen, X, train=False)
  return end(spikes(conv(spikes(x)) + y.mean()))


@folds
def reader_of_the_norm_of_another_network(x):
  variables = norm_variables()
  a = SpikeNorm(norm='psp_bn', parent=None).apply(
    variables, lif(x), train=False
  )
  return end(spikes(conv(a)))


def norm_variables():
  return {
    'params': {'psp_bn': {'scale': np.arange(1.0, 5)}},
    'batch_stats': {'psp_bn': {'moment': np.arange(1.0, 5)}},
  }


def fold(model):
  """Returns (variables, folded and stripped ones) of a user's network."""
  variables = random_variables(model)
  readers = readers_of_spikes(model, variables, X)
  return variables, strip(fold_all(variables, readers=readers))


@pytest.mark.parametrize('name', FOLDS)
def test_network_folds_to_the_same_logits(name):
  model = Net(FOLDS[name])
  variables, folded = fold(model)
  assert 'psp_bn' not in str(jax.tree.structure(folded['params']))

  @jax.jit
  def run(variables):
    return model.apply(variables, X, train=False)

  logits = run(variables)
  assert jnp.abs(logits).max() > 1e-2
  np.testing.assert_allclose(logits, run(folded), rtol=1e-4, atol=1e-5)


# ---- networks that are refused, with what the message says

REFUSED = {}


def refused(message):
  def note(function):
    REFUSED[function.__name__] = (function, message)
    return function

  return note


NO_ARRAY = r"expected an array, got the normed spikes of '.*SpikeNorm_\d'"


def other(reader, norm, got):
  return f"{reader}', whose kernel takes in the norm '{norm}', .* got {got}"


@refused(NO_ARRAY)
def residual_sum(x):
  a = spikes(x)
  return end(lif(conv(a) + a))


@refused(NO_ARRAY)
def residual_sum_the_other_way_round(x):
  a = spikes(x)
  return end(lif(a + conv(a)))


@refused(NO_ARRAY)
def concatenation(x):
  return end(lif(jnp.concatenate([spikes(x), spikes(x)], -1)))


@refused(NO_ARRAY)
def lateral_inhibition(x):
  a = spikes(x)
  return end(lif(a - a.mean(-1, keepdims=True)))


@refused(NO_ARRAY)
def flax_convolution(x):
  return end(nn.Conv(4, (3, 3))(spikes(x)))


@refused(NO_ARRAY)
def flax_dense(x):
  return end(nn.Dense(4)(spikes(x)))


@refused(NO_ARRAY)
def flax_dense_in_a_sequence(x):
  return nn.Sequential([spikes, end, nn.Dense(4)])(x)


@refused(NO_ARRAY)
def flax_batch_norm(x):
  return end(nn.BatchNorm(use_running_average=True)(spikes(x)))


@refused(NO_ARRAY)
def flax_layer_norm(x):
  return end(nn.LayerNorm()(spikes(x)))


@refused(NO_ARRAY)
def flax_dropout(x):
  return end(
    nn.Dropout(0.5, deterministic=False, rng_collection='params')(spikes(x))
  )


@refused(NO_ARRAY)
def flax_dropout_in_evaluation(x):
  return end(lif(nn.Dropout(0.5, deterministic=True)(spikes(x))))


@refused(NO_ARRAY)
def flax_attention(x):
  return nn.MultiHeadDotProductAttention(2)(end(spikes(x)))


@refused(NO_ARRAY)
def einsum(x):
  a = end(spikes(x))
  return jnp.einsum('btc,bsc->btc', a, a)


@refused(NO_ARRAY)
def function_of_numpy(x):
  return end(np.tanh(spikes(x)))


@refused(NO_ARRAY)
def synaptic_filter_of_normed_spikes(x):
  return end(synaptic_filter(spikes(x), tau_s=0.5))


@refused(NO_ARRAY)
def neuron_of_normed_spikes(x):
  return end(lif(spikes(x)))


@refused(NO_ARRAY)
def norm_of_normed_spikes(x):
  return end(SpikeNorm(norm='psp_ln')(spikes(x), train=False))


@refused(NO_ARRAY)
def another_function_over_time(x):
  return end(over_time(jnp.tanh, spikes(x)))


@refused(NO_ARRAY)
def tree_map(x):
  return end(jax.tree.map(jnp.tanh, {'a': spikes(x)})['a'])


@refused(NO_ARRAY)
def scan_of_jax_over_the_spikes(x):
  _, y = jax.lax.scan(lambda c, a: (c, a), 0, spikes(x))
  return end(y)


@refused(NO_ARRAY)
def delay_line(x):
  a = spikes(x)
  _, y = jax.lax.scan(lambda r, _: (r, 0), (a, a, a), None, length=2)
  return end(y)


@refused(NO_ARRAY)
def while_loop(x):
  y = jax.lax.while_loop(lambda a: True, lambda a: 2 * a, spikes(x))
  return end(y)


@refused(NO_ARRAY)
def fori_loop(x):
  return end(jax.lax.fori_loop(0, 2, lambda i, a: 2 * a, spikes(x)))


@refused(NO_ARRAY)
def cond(x):
  return end(jax.lax.cond(True, lambda a: a, lambda a: 2 * a, spikes(x)))


@refused(NO_ARRAY)
def vmap(x):
  return end(jax.vmap(lambda a: a + 1)(spikes(x)))


@refused(NO_ARRAY)
def jit(x):
  return end(jax.jit(lambda a: a)(spikes(x)))


@refused(NO_ARRAY)
def checkpoint(x):
  return end(jax.checkpoint(lambda a: 2 * a)(spikes(x)))


@refused(NO_ARRAY)
def eval_shape(x):
  return end(jax.eval_shape(lambda a: a, spikes(x)))


@refused(NO_ARRAY)
def closure_of_a_program(x):
  a = spikes(x)
  return end(jax.jit(lambda y: y + a)(x))


@refused(NO_ARRAY)
def custom_gradient(x):
  f = jax.custom_vjp(lambda a: a)
  f.defvjp(lambda a: (a, None), lambda _, g: (g,))
  return end(f(spikes(x)))


@refused(NO_ARRAY)
def stop_gradient(x):
  return end(lif(jax.lax.stop_gradient(spikes(x))))


@refused(NO_ARRAY)
def scan_of_flax_carries_them(x):
  class Step(nn.Module):
    @nn.compact
    def __call__(self, a, _):
      return a, None

  steps = nn.scan(Step, length=2, **stacked())
  return end(steps()(spikes(x), None)[0])


@refused(NO_ARRAY)
def remat_of_flax_takes_them(x):
  return end(
    lif(
      nn.remat(ConvNorm, static_argnums=())(4, norm='none')(
        spikes(x), train=False
      )
    )
  )


@refused(NO_ARRAY)
def stacked_norm_read_by_an_unstacked_layer(x):
  class Normed(nn.Module):
    @nn.compact
    def __call__(self, x):
      return spikes(x)

  norms = nn.vmap(Normed, in_axes=None, axis_size=2, **stacked())
  return end(norms()(x).mean(0))


@refused('code that takes their .array.*cannot be folded')
def their_array(x):
  return end(lif(spikes(x).array))


@refused('code that takes their .array.*cannot be folded')
def their_array_over_time(x):
  return end(over_time(lambda a: nn.max_pool(a.array, (2, 2)), spikes(x)))


@refused(other("'.*ConvNorm_0", 'SpikeNorm_0', 'an array without it'))
def convolution_of_spikes_and_of_currents(x):
  reader = ConvNorm(4, norm='none')
  return end(lif(reader(spikes(x), train=False) + reader(x, train=False)))


@refused(other("'.*ConvNorm_0", 'SpikeNorm_0', 'an array without it'))
def loop_with_one_convolution_and_one_norm(x):
  norm, reader = SpikeNorm(norm='psp_bn'), ConvNorm(4, norm='none')
  for _ in range(3):
    a = norm(lif(reader(x, train=False)), train=False)
    x = reader(a, train=False)
  return end(x)


@refused(
  other("'.*ConvNorm_0", 'SpikeNorm_0', "the norm 'SpikeNorm_1' as well")
)
def convolution_of_two_norms(x):
  reader = ConvNorm(4, norm='none')
  return end(
    lif(reader(spikes(x), train=False) + reader(spikes(x), train=False))
  )


@refused(
  other("'.*Identity_0", 'SpikeNorm_0', "the norm 'SpikeNorm_1' as well")
)
def identity_of_two_norms(x):
  reader = Identity()
  return end(lif(reader(spikes(x)) + reader(spikes(x))))


@refused("a layer that reads the normed spikes of 'SpikeNorm_0', got none")
def norm_without_a_reader(x):
  spikes(x)
  return end(x)


@refused("expected the network to use 'SpikeNorm_0' in evaluation")
def norm_of_the_initialization_only(x):
  if nn.module._context.module_stack[-1].is_initializing():
    spikes(x)
  return end(x)


@refused("to use 'blocks/norm' in evaluation.*let that pass `folded` on")
def ensemble_that_does_not_pass_folded_on(x):
  axes = {'params': 0, 'batch_stats': 0}
  options = {'variable_axes': axes, 'split_rngs': {'params': True}}
  return end(ensemble(x, **options).sum(0))


@refused("to use 'blocks/norm' in evaluation.*let that pass `folded` on")
def scan_that_does_not_pass_folded_on(x):
  blocks = nn.scan(
    Block,
    length=3,
    methods=['as_carry'],
    variable_axes={'params': 0, 'batch_stats': 0},
    split_rngs={'params': True},
  )
  return end(blocks(name='blocks').as_carry(x, None)[0])


@refused('nn.WeightNorm, say. that keeps `folded` as it is')
def weight_norm_around_a_reader(x):
  reader = nn.WeightNorm(ConvNorm(4, norm='none', name='conv'))
  return end(lif(reader(spikes(x), train=False)))


@refused(r'psp_ln. does not fold')
def norm_that_does_not_fold(x):
  return end(spikes(conv(spikes(x)), norm='psp_ln') + x)


@refused(r"a kernel beside 'bn', as in a ConvNorm, got none")
def flax_batch_norm_called_bn(x):
  x = nn.BatchNorm(use_running_average=True, name='bn')(conv(spikes(x)))
  return end(spikes(x))


@pytest.mark.parametrize(
  'out', [lambda a: a, lambda a: {'out': [a]}, lambda a: (a.ndim, (a, a))]
)
def test_normed_spikes_as_the_output_are_refused(out):
  class Headless(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
      return out(spikes(x, name='norm'))

  model = Headless()
  variables = {c: {'norm': leaves} for c, leaves in norm_variables().items()}
  message = "an output that is an array, got the normed spikes of 'norm'"
  with pytest.raises(InputError, match=message):
    readers_of_spikes(model, variables, X)


@pytest.mark.parametrize(
  'function', [nn.relu, lambda a: jax.pure_callback(np.tanh, X, a)]
)
def test_function_that_asks_its_input_for_nothing_shows_the_spikes(function):
  model = Net(lambda x: end(function(spikes(x))))
  with pytest.raises(TypeError, match='is of type .*Spikes') as error:
    random_variables(model)
  assert 'which only ConvNorm, Readout and' in str(error.value.__cause__)


@pytest.mark.parametrize('name', REFUSED)
def test_network_is_refused_by_name(name):
  body, message = REFUSED[name]
  model = Net(body)
  with pytest.raises(InputError, match=message) as error:
    fold(model)
  assert '\n' not in str(error.value)
