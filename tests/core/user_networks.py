"""Parts of networks that users write, with normed spikes in them."""

import functools
from collections.abc import Callable

import common
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mpbn_jax import fold_all, readers_of_spikes, strip
from mpbn_jax.layers import (
  LIF,
  ConvNorm,
  Identity,
  Readout,
  SpikeNorm,
  average_pool,
  mean_over_space,
  over_time,
)

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
  # The layers' defaults.
  constants = {'eps': 1e-5, 'v_th': 0.5, 'alpha_v_th': 1.0}

  def leaf(path, shape):
    key, shape = path[-1].key, shape.shape
    if key in constants:
      return np.full(shape, constants[key], np.float32)
    values = rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if key == 'kernel':
      values *= 0.2 * rng.choice([-1, 1], shape)
    return values

  return jax.tree_util.tree_map_with_path(leaf, shapes)


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


def ensemble(x, **options):
  return nn.vmap(Block, in_axes=None, axis_size=3, **options)(name='blocks')(x)


def norm_variables():
  return {
    'params': {'psp_bn': {'scale': np.arange(1.0, 5)}},
    'batch_stats': {
      'psp_bn': {'moment': np.arange(1.0, 5), 'eps': np.float32(1e-5)}
    },
  }


def fold(model):
  """Returns (variables, folded and stripped ones) of a user's network."""
  variables = random_variables(model)
  readers = readers_of_spikes(model, variables, X)
  return variables, strip(fold_all(variables, readers=readers))
