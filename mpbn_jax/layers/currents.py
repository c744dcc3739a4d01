"""The currents of a layer with a kernel: product, bias and norm, or their fold.

`ConvNorm` and `DenseNorm` share these attributes and differ in the product.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mpbn_jax import norm as norms
from mpbn_jax.errors import InputError
from mpbn_jax.initializers import FAN_OUT
from mpbn_jax.layers import variables
from mpbn_jax.layers.absorption import read_with
from mpbn_jax.layers.attributes import check_positive, check_types
from mpbn_jax.layers.spikes import Spikes
from mpbn_jax.ops import kept

# x [B, T, ..., C_in], kernel -> [B, T, ..., C_out]
Product = Callable[[jax.Array, jax.Array], jax.Array]


class NormedLayer(nn.Module, kw_only=True):
  """The attributes of a layer whose currents are normed.

  Variables: params/{kernel, bias?, <norm>/...}, batch_stats/<norm>/.... A
  `folded` collection may have, at the same path, a kernel that replaces the
  kernel (and absorbs the norm of the spikes that it reads,
  `folding.fold_spike_norms`) and a bias that replaces the bias and the norm
  (`folding.fold_convolutions`). If the folded norm was per time step, kernel
  and bias have a leading axis T, or there is also a factor [T] (TEBN).

  Attributes:
    norm: norm of the currents, a key of `norm.NORMS`, or 'none'.
    use_bias: whether the layer has its own bias.
    scale_init: initial value of the norm's scale.
    v_th: threshold of the neurons that receive the currents. `tdbn` scales by
      it.
    joins: whether these currents are added to those of another such layer.
      `tdbn` then scales by v_th / sqrt(2), so that the sum has the variance of
      a single branch.
    kernel_init: initializer of the kernel.
    momentum: weight of the new value in running statistics.
    eps: added to variances. It and the factor by which `tdbn` scales are
      initial values: they are stored with the variables, and the layer uses the
      stored values.
    stats_groups: number of groups of the batch with batch statistics of their
      own, see `norm.in_groups`; 1 takes those of the whole batch.
    autodiff: whether JAX derives the backward pass of the norm, in place of the
      one that stores less.
  """

  norm: str = 'bn'
  use_bias: bool = False
  scale_init: float = 1.0
  v_th: float = 0.5
  joins: bool = False
  kernel_init: Callable = FAN_OUT
  momentum: float = norms.MOMENTUM
  eps: float = norms.EPS
  stats_groups: int = 1
  autodiff: bool = False

  def __post_init__(self):
    check_types(self)
    check_positive(self, 'stats_groups')
    norms.check_settings(eps=self.eps, momentum=self.momentum)
    norms.check_norm(self.norm, place='conv')
    super().__post_init__()


# Functions, not methods: a subclass could override methods and transform spikes
# in a way that folding does not know of.
def normed_currents(
  layer: NormedLayer,
  x: jax.Array | Spikes,
  *,
  shape: tuple[int, ...],
  product: Product,
  train: bool,
  copies: int = 1,
  groups: int = 1,
) -> jax.Array:
  """Returns norm(product(x, kernel) + bias), [B, T, ..., features].

  Declares the layer's variables.

  Args:
    layer: it owns the variables.
    x: input of the layer.
    shape: shape of its kernel, [..., C_in / groups, features].
    product: linear in both arguments.
    train: whether to use batch statistics and update running statistics.
    copies: how many equal time steps each step of x represents.
    groups: number of channel groups of x.
  """
  array, kernel, bias, folded = weights_of(layer, x, shape=shape, groups=groups)
  if kernel.ndim > len(shape):  # one per time step
    array, copies = jnp.repeat(array, copies, axis=1), 1
    y = _of_each_step(layer, product, array, kernel, bias)
  else:
    y = _product(product, array, kernel, bias)
  y = kept.named(y, kept.PRODUCTS)

  if folded:
    variables.refuse_training(train)
    return _times_factor(layer, y, copies)
  if layer.norm == norms.NONE:
    return y
  return _normalize(layer, y, train=train, copies=copies)


def weights_of(
  layer: NormedLayer,
  x: Any,
  *,
  shape: tuple[int, ...],
  groups: int = 1,
) -> tuple[Any, jax.Array, jax.Array | None, bool]:
  """Returns (x, kernel, bias, folded): what a layer multiplies, and by what.

  Declares kernel and bias.

  Args:
    layer: it owns the variables.
    x: input of the layer.
    shape: shape of its kernel, [..., C_in / groups, features].
    groups: number of channel groups of x.

  Returns:
    x without the type of normed spikes, the kernel with their gain, the bias or
    None, and whether the bias includes the norm. Folded kernels and biases may
    have a leading axis T.
  """
  variables.check_input('images or spikes', x)
  kernel = variables.weight(layer, 'kernel', layer.kernel_init, shape)
  x, kernel = read_with(layer, x, kernel, groups=groups)
  folded = layer.has_variable('folded', 'bias')
  if folded:
    _check_folded(layer)
  bias = None
  if layer.use_bias or folded:
    zeros = nn.initializers.zeros
    bias = variables.weight(layer, 'bias', zeros, shape[-1:])
  return x, kernel, bias, folded


def _check_folded(layer):
  """Raises InputError if a folded leaf is missing."""
  factor = variables.per_time_step(layer.norm) == 'factor'
  for name in ['kernel'] + ['factor'] * factor:
    if not layer.has_variable('folded', name):
      raise InputError(
        f'expected folded/{variables.path_of(layer, name)} beside the bias, '
        'got none: call `fold_convolutions` on the unfolded variables again'
      )


def folded_factor(layer: NormedLayer, *, steps: int) -> jax.Array | None:
  """Returns the factor [T] of a folded norm, or None if it has none."""
  if not layer.has_variable('folded', 'factor'):
    return None
  factor: jax.Array = layer.get_variable('folded', 'factor')
  variables.check_steps_equal(layer, factor.shape[0], steps)
  return factor


def _times_factor(layer, y, copies):
  factor = folded_factor(layer, steps=y.shape[1] * copies)
  if factor is None:
    return y
  factor = factor.reshape((-1, *(1,) * (y.ndim - 2)))
  return (y * factor).astype(y.dtype)


def _normalize(layer, y, *, train, copies):
  norm = norms.NORMS[layer.norm]
  options: dict[str, Any] = {'copies': copies}
  if norm.per_time_step:
    variables.check_steps(layer, y.shape[1] * copies)
    y, options = jnp.repeat(y, copies, axis=1), {}
  if layer.autodiff and norm.custom_backward:
    options['autodiff'] = True
  own = variables.NormVariables(
    layer,
    y.shape[2:],
    num_steps=y.shape[1],
    alpha_v_th=layer.v_th * (0.5**0.5 if layer.joins else 1.0),
    eps=layer.eps,
    scale_init=layer.scale_init,
  )
  if not train:
    return norm.evaluate(own.params, own.stats, y)
  train_norm = functools.partial(
    norm.train, own.params, own.stats, momentum=layer.momentum, **options
  )
  y, stats = norms.in_groups(
    train_norm, y, stats=own.stats, groups=layer.stats_groups
  )
  own.advance(stats)
  return y


def _product(product, x, kernel, bias):
  y = product(x, kernel.astype(x.dtype))  # the master weights stay float32
  return y if bias is None else (y + bias).astype(x.dtype)


def _of_each_step(layer, product, x, kernel, bias):
  """Returns the currents for a kernel (and bias) per time step."""
  variables.check_steps_equal(layer, kernel.shape[0], x.shape[1])
  steps = range(x.shape[1])
  own_bias = bias is not None and bias.ndim == 2
  biases = [bias[t] if own_bias else bias for t in steps]
  currents = [
    _product(product, x[:, t : t + 1], kernel[t], biases[t]) for t in steps
  ]
  return jnp.concatenate(currents, axis=1)
