"""A convolution over every time step, and the norm of its currents."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from mpbn_jax import norm as norms
from mpbn_jax.errors import InputError
from mpbn_jax.layers import normed, variables
from mpbn_jax.layers.attributes import check_positive, check_types
from mpbn_jax.layers.shapes import over_time
from mpbn_jax.ops.convolution import convolution


class ConvNorm(nn.Module):
  """A convolution over every step, and the normalization of its currents.

      c = norm(conv(x))

  Variables: params/{kernel, bias?, <norm>/...}, batch_stats/<norm>/.... At
  this path of a `folded` collection, a kernel takes the kernel's place (with
  the norm of the spikes that it reads, `folding.fold_spike_norms`), a bias
  that of the bias and the norm (`folding.fold_convolutions`). Where a norm
  told the steps apart, the kernel is [T, k, k, C_in, C_out], the bias
  [T, C_out], or there is a factor [T] beside them (TEBN).

  Attributes:
    features: output channels.
    kernel_size: side of the square kernel.
    stride: of both axes.
    padding: zeros on every side.
    norm: a current norm of `norm.NORMS`, or 'none'.
    use_bias: whether the convolution has a bias of its own.
    scale_init: what the norm's scale starts at.
    v_th: of the neurons that get the currents. `tdbn` scales by it.
    joins: whether a sum joins these currents with those of another `ConvNorm`.
      Then `tdbn` scales by v_th / sqrt(2), so that the sum has the variance of
      one of them.
    kernel_init: initializer of the kernel.
    momentum: weight of the new value in running statistics.
    eps: added to variances. It and what `tdbn` scales by are what the layer
      starts with; they are stored with the variables, and the stored values
      count.
  """

  features: int
  kernel_size: int = 3
  stride: int = 1
  padding: int = 1
  norm: str = 'bn'
  use_bias: bool = False
  scale_init: float = 1.0
  v_th: float = 0.5
  joins: bool = False
  # N(0, 2 / (k * k * C_out))
  kernel_init: Callable = nn.initializers.variance_scaling(
    2.0, 'fan_out', 'normal'
  )
  momentum: float = norms.MOMENTUM
  eps: float = norms.EPS

  def __post_init__(self):
    check_types(self)
    check_positive(self, 'features', 'kernel_size', 'stride')
    norms.check_settings(eps=self.eps, momentum=self.momentum)
    norms.check_norm(self.norm, place='conv')
    super().__post_init__()

  @nn.compact
  def __call__(
    self, x: jax.Array | normed.Spikes, *, train: bool, copies: int = 1
  ) -> jax.Array:
    """Returns currents [B, T, H', W', features] of x [B, T, H, W, C].

    Args:
      x: spikes, or images.
      train: whether batch statistics are used, and running ones advanced.
      copies: how many equal steps each step of x stands for. An image that
        is the same at every step is convolved once, T = 1 with `copies` of
        it; only the unbiased running variance needs to know. A norm that
        tells the steps apart returns them all.
    """
    variables.check_input('images or spikes', x)
    shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
    kernel = variables.weight(self, 'kernel', self.kernel_init, shape)
    x, kernel = normed.read_with(self, x, kernel)
    # A folded bias is the norm's too.
    folded = self.has_variable('folded', 'bias')
    if folded:
      self._check_folded()
    bias = None
    if self.use_bias or folded:
      zeros = nn.initializers.zeros
      bias = variables.weight(self, 'bias', zeros, (self.features,))
    if kernel.ndim == 5:  # one of each step
      x, copies = jnp.repeat(x, copies, axis=1), 1
      y = _convolve_steps(self, x, kernel, bias)
    else:
      y = _convolve(self, x, kernel, bias)

    if folded:
      variables.refuse_training(train)
      return self._times_factor(y, copies)
    if self.norm == norms.NONE:
      return y
    return self._normalize(y, train=train, copies=copies)

  def _check_folded(self):
    """Raises InputError where a part of what was folded is missing."""
    factor = self.norm in norms.NORMS and (
      norms.NORMS[self.norm].per_time_step == 'factor'
    )
    for name in ['kernel'] + ['factor'] * factor:
      if not self.has_variable('folded', name):
        raise InputError(
          f'expected folded/{variables.path_of(self, name)} beside the bias, '
          'got none: call `fold_convolutions` on the unfolded variables again'
        )

  def _times_factor(self, y, copies):
    if not self.has_variable('folded', 'factor'):
      return y
    factor = self.get_variable('folded', 'factor')
    variables.check_steps_equal(self, factor.shape[0], y.shape[1] * copies)
    return (y * factor[:, None, None, None]).astype(y.dtype)

  def _normalize(self, y, *, train, copies):
    norm = norms.NORMS[self.norm]
    options = {'copies': copies}
    if norm.per_time_step:
      variables.check_steps(self, y.shape[1] * copies)
      y, options = jnp.repeat(y, copies, axis=1), {}
    own = variables.NormVariables(
      self,
      y.shape[2:],
      num_steps=y.shape[1],
      gain=self.v_th * (0.5**0.5 if self.joins else 1.0),
      eps=self.eps,
      scale_init=self.scale_init,
    )
    if not train:
      return norm.evaluate(own.params, own.stats, y)
    y, stats = norm.train(
      own.params,
      own.stats,
      y,
      momentum=self.momentum,
      **options,
    )
    own.advance(stats)
    return y


# Functions: a subclass that had methods to replace could do to spikes what no
# fold knows of.
def _convolve(layer, x, kernel, bias):
  side = (layer.padding, layer.padding)
  product = functools.partial(
    convolution,
    kernel=kernel.astype(x.dtype),  # the master weights stay float32
    strides=(layer.stride, layer.stride),
    padding=(side, side),
  )
  y = over_time(product, x)
  return y if bias is None else (y + bias).astype(x.dtype)


def _convolve_steps(layer, x, kernel, bias):
  """Returns the currents where there is a kernel (and bias) of each step."""
  variables.check_steps_equal(layer, kernel.shape[0], x.shape[1])
  steps = range(x.shape[1])
  own_bias = bias is not None and bias.ndim == 2
  biases = [bias[t] if own_bias else bias for t in steps]
  currents = [
    _convolve(layer, x[:, t : t + 1], kernel[t], biases[t]) for t in steps
  ]
  return jnp.concatenate(currents, axis=1)
