"""Networks of users that fold to the same logits."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from user_networks import (
  Block,
  Net,
  X,
  conv,
  end,
  ensemble,
  fold,
  lif,
  norm_variables,
  pooled,
  random_variables,
  spikes,
  stacked,
)

from mpbn_jax.layers import (
  LIF,
  ConvNorm,
  Identity,
  Readout,
  SpikeNorm,
  Spikes,
  mean_over_space,
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
def flax_batch_norm_called_bn(x):
  x = nn.BatchNorm(use_running_average=True, name='bn')(conv(spikes(x)))
  return end(spikes(x))


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
def readers_in_both_branches(x):
  class Branches(nn.Module):
    @nn.compact
    def __call__(self, x):
      readers = [ConvNorm(4, norm='none') for _ in range(2)]
      y = sum(reader(a, train=False) for reader in readers)
      return y + nn.cond(
        x.sum() > 0,
        lambda _: readers[0](a, train=False),
        lambda _: 2 * readers[1](a, train=False),
        self,
      )

  a = spikes(x)
  return end(Branches()(x))


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
