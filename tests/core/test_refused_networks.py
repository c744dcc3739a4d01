"""Networks of users whose norms of spikes do not fold, refused by name."""

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
  random_variables,
  spikes,
  stacked,
)

from mpbn_jax import InputError, readers_of_spikes
from mpbn_jax.layers import ConvNorm, Identity, SpikeNorm, over_time
from mpbn_jax.norm import synaptic_filter

# ---- what may not be done to normed spikes, in a network (more of it, and
# without one: test_spikes.py)


def delay_line(a):
  return jax.lax.scan(lambda r, _: (r, 0), (a, a, a), None, length=2)[1]


def carried_by_a_scan_of_flax(a):
  class Step(nn.Module):
    @nn.compact
    def __call__(self, a, _):
      return a, None

  return nn.scan(Step, length=2, **stacked())()(a, None)[0]


def returned_by_an_ensemble(a):
  class Normed(nn.Module):
    @nn.compact
    def __call__(self, x):
      return spikes(x)

  x = Identity()(a)
  return nn.vmap(Normed, in_axes=None, axis_size=2, **stacked())()(x).mean(0)


USES = {
  'residual sum': lambda a: lif(conv(a) + a),
  'residual sum the other way round': lambda a: lif(a + conv(a)),
  'concatenation': lambda a: lif(jnp.concatenate([a, a], -1)),
  'lateral inhibition': lambda a: lif(a - a.mean(-1, keepdims=True)),
  'neurons': lif,
  'synaptic filter': lambda a: synaptic_filter(a, tau_s=0.5),
  'norm': lambda a: SpikeNorm(norm='psp_bn')(a, train=False),
  'norm that does not fold': lambda a: spikes(a, norm='psp_ln'),
  'flax convolution': lambda a: nn.Conv(4, (3, 3))(a),
  'flax dense': lambda a: nn.Dense(4)(a),
  'flax dense in a sequence': lambda a: nn.Sequential([end, nn.Dense(4)])(a),
  'flax batch norm': lambda a: nn.BatchNorm(use_running_average=True)(a),
  'flax layer norm': lambda a: nn.LayerNorm()(a),
  'flax dropout': lambda a: nn.Dropout(0.5, deterministic=True)(a) + a,
  'flax attention': lambda a: nn.MultiHeadDotProductAttention(2)(end(a)),
  'flax remat': lambda a: nn.remat(ConvNorm)(4, norm='none')(a, train=False),
  'flax scan': carried_by_a_scan_of_flax,
  'flax vmap': returned_by_an_ensemble,
  'attention over steps': lambda a: jnp.einsum('btc,bsc->btc', end(a), end(a)),
  'another function over time': lambda a: over_time(jnp.tanh, a),
  'delay line': delay_line,
  'while loop': lambda a: jax.lax.while_loop(lambda _: True, lambda a: a, a),
  'whole numbers': lambda a: a.astype(int),
}


@pytest.mark.parametrize('use', USES)
def test_use_of_normed_spikes_is_refused_before_anything_is_trained(use):
  model = Net(lambda x: end(USES[use](spikes(x))))
  message = r"expected an array, got the normed spikes of '.*SpikeNorm_\d'"
  with pytest.raises(InputError, match=message) as error:
    random_variables(model)
  assert '\n' not in str(error.value)


# ---- networks that run, and are refused by name where they are folded

REFUSED = {}


def refused(message):
  def note(function):
    REFUSED[function.__name__] = (function, message)
    return function

  return note


def other(reader, norm, got):
  return f"{reader}', whose kernel absorbs the norm '{norm}', .* got {got}"


@refused('expected every layer in an nn.cond, nn.while_loop, ... to belong to')
def reader_from_outside_in_one_branch(x):
  class Branches(nn.Module):
    @nn.compact
    def __call__(self, x):
      reader = ConvNorm(4, norm='none')
      if self.is_initializing():
        reader(a, train=False)
      return nn.cond(
        x.sum() > 0,
        lambda _, x: x + reader(a, train=False),
        lambda _, x: x,
        self,
        x,
      )

  a = spikes(x)
  return end(Branches()(x))


@refused('runs but cannot be traced for that: TypeError: while_loop body')
def loop_of_flax(x):
  class Loop(nn.Module):
    @nn.compact
    def __call__(self, x):
      block = Block(name='block')
      if self.is_initializing():
        block(x)
      return nn.while_loop(
        lambda _, carry: carry[0] < 3,
        lambda _, carry: (carry[0] + 1, block(carry[1])),
        self,
        (0, x),
        carry_variables='folded',
      )[1]

  return end(Loop()(x))


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


@refused('such as nn.WeightNorm. that keeps `folded` as it is')
def weight_norm_around_a_reader(x):
  reader = nn.WeightNorm(ConvNorm(4, norm='none', name='conv'))
  return end(lif(reader(spikes(x), train=False)))


@refused(r'psp_ln. does not fold')
def norm_that_does_not_fold(x):
  return end(spikes(conv(spikes(x)), norm='psp_ln') + x)


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
  assert 'which only ConvNorm, DenseNorm, Readout' in str(error.value.__cause__)


@pytest.mark.parametrize('name', REFUSED)
def test_network_is_refused_by_name(name):
  body, message = REFUSED[name]
  model = Net(body)
  with pytest.raises(InputError, match=message) as error:
    fold(model)
  assert '\n' not in str(error.value)
