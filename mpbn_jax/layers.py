"""Which Flax modules own the variables of a spiking network?

Activations are batch-major, [B, T, H, W, C]: (B, T) merges for free and stays
sharded along B. The mathematics is elsewhere: `neuron.py`, `norm/`, `ops/`.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mpbn_jax import norm as norms
from mpbn_jax.errors import InputError
from mpbn_jax.neuron import Fire, fire_at, lif_scan
from mpbn_jax.ops.convolution import convolution
from mpbn_jax.surrogate import emit, spike


def over_time(function: Callable, x: jax.Array) -> jax.Array:
  """Returns function applied to every step of x: [B, T, ...] -> [B, T, ...].

  Batch-major merging: with B sharded, a time-major merge (T, B) makes XLA
  all-gather and every device compute the whole batch, in silence.
  """
  merged = function(x.reshape((-1, *x.shape[2:])))
  return merged.reshape((*x.shape[:2], *merged.shape[1:]))


def average_pool(
  x: jax.Array, *, window: int, stride: int | None = None, padding: int = 0
) -> jax.Array:
  """Returns the means of square windows: [N, H, W, C] -> [N, H', W', C].

  As PyTorch's AvgPool2d: incomplete windows are dropped, padding is counted.

  Raises:
    InputError: the maps are smaller than the window.
  """
  stride = window if stride is None else stride
  if min(x.shape[1:3]) + 2 * padding < window:
    raise InputError(
      f'average pooling with a window of {window}x{window} came to maps of '
      f'{x.shape[1]}x{x.shape[2]}: this network needs larger images'
    )
  if window == stride and padding == 0:  # no overlap: a reshape and a mean
    n, height, width, channels = x.shape
    height, width = height // window, width // window
    x = x[:, : height * window, : width * window]
    x = x.reshape((n, height, window, width, window, channels))
    return x.mean((2, 4))
  pads = ((padding, padding),) * 2
  return nn.avg_pool(x, (window, window), (stride, stride), pads)


class ConvNorm(nn.Module):
  """A convolution over every step, and the normalization of its currents.

      c = norm(conv(x))

  Variables: params/{kernel, bias?, <norm>/...}, batch_stats/<norm>/.... A
  `folded` collection with {kernel, bias} at this path takes the place of all
  of them (`folding.fold_convolutions`); where the norm told the steps apart,
  the kernel is [T, k, k, C_in, C_out] and the bias [T, C_out] (BNTT), or there
  is a factor [T] beside them (TEBN).

  Attributes:
    features: output channels.
    kernel_size: side of the square kernel.
    stride: of both axes.
    padding: zeros on every side.
    norm: a current norm of `norm.NORMS`, or 'none'.
    use_bias: whether the convolution has a bias of its own.
    scale_init: what the norm's scale starts at.
    gain: what `tdbn` scales the normalized currents by, alpha * v_th.
    kernel_init: initializer of the kernel.
    momentum: weight of the new value in running statistics.
    eps: added to variances.
  """

  features: int
  kernel_size: int = 3
  stride: int = 1
  padding: int = 1
  norm: str = 'bn'
  use_bias: bool = False
  scale_init: float = 1.0
  gain: float = 1.0
  # N(0, 2 / (k * k * C_out))
  kernel_init: Callable = nn.initializers.variance_scaling(
    2.0, 'fan_out', 'normal'
  )
  momentum: float = norms.MOMENTUM
  eps: float = norms.EPS

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool, copies: int = 1
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
    if self.has_variable('folded', 'kernel'):
      return self._folded(x, copies)
    shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
    kernel = self.param('kernel', self.kernel_init, shape)
    bias = None
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, (self.features,))
    y = self._convolve(x, kernel, bias)
    if self.norm == norms.NONE:
      return y

    norm = norms.NORMS[self.norm]
    options = {'copies': copies}
    if norm.per_step:
      self._check_steps(x.shape[1] * copies)
      if copies > 1:
        y = jnp.repeat(y, copies, axis=1)
      options = {}
    params, stats = _norm_variables(
      self,
      y.shape[2:],
      num_steps=y.shape[1],
      gain=self.gain,
      scale_init=self.scale_init,
    )
    if not train:
      return norm.evaluate(params, stats.value, y, eps=self.eps)
    y, new_stats = norm.train(
      params,
      stats.value,
      y,
      momentum=self.momentum,
      eps=self.eps,
      **options,
    )
    _advance(self, stats, new_stats)
    return y

  def _convolve(self, x, kernel, bias):
    side = (self.padding, self.padding)
    product = functools.partial(
      convolution,
      kernel=kernel.astype(x.dtype),  # the master weights stay float32
      strides=(self.stride, self.stride),
      padding=(side, side),
    )
    y = over_time(product, x)
    return y if bias is None else (y + bias).astype(x.dtype)

  def _folded(self, x, copies):
    kernel = self.get_variable('folded', 'kernel')
    bias = self.get_variable('folded', 'bias')
    steps = x.shape[1] * copies
    if kernel.ndim == 5:  # one for each step
      _check_steps_equal(self.norm, kernel.shape[0], steps)
      x = jnp.repeat(x, copies, axis=1)
      currents = [
        self._convolve(x[:, t : t + 1], kernel[t], bias[t])
        for t in range(steps)
      ]
      return jnp.concatenate(currents, axis=1)
    y = self._convolve(x, kernel, bias)
    if self.has_variable('folded', 'factor'):
      factor = self.get_variable('folded', 'factor')
      _check_steps_equal(self.norm, factor.shape[0], steps)
      y = (y * factor[:, None, None, None]).astype(y.dtype)
    return y

  def _check_steps(self, steps):
    if self.has_variable('params', self.norm):
      leaf = norms.NORMS[self.norm].per_step
      built = self.get_variable('params', self.norm)[leaf].shape[0]
      _check_steps_equal(self.norm, built, steps)


def _check_steps_equal(norm, built, steps):
  if built != steps:
    raise InputError(
      f'{norm!r} has parameters for each of its {built} steps, got '
      f'{steps}: use num_steps={built}, or train with num_steps={steps}'
    )


class LIF(nn.Module):
  """A layer of leaky integrate-and-fire neurons with MPBN before firing.

      u = tau * u_res + c;  s = (norm(u) > v_th);  u_res = u * (1 - s)

  Variables: params/<norm>/{scale, bias} and batch_stats/<norm>/{mean, var},
  [C] channel-wise or [H, W, C] element-wise; params/tau_logit, a scalar, and
  params/v_th [C], where they are learned. A `threshold` collection with
  {threshold, polarity} at this path takes the norm's place (`fold`): then a
  neuron fires where polarity * u > polarity * threshold, and the norm's
  variables are not read. The variables say whether a network is folded; no
  flag can disagree with them.

  Attributes:
    tau: kept fraction of the membrane potential, in [0, 1).
    v_th: firing threshold, and what a soft reset subtracts.
    learn_tau: whether tau is learned, one of the layer, through a sigmoid and
      starting at `tau` (PLIF, Fang et al. 2021, 2007.05785).
    learn_v_th: whether v_th is learned, one of each channel, starting at
      `v_th` (the paper's Sec. 4.2 and the caption of its Table 6).
    norm: a membrane norm of `norm.NORMS`, or 'none'.
    surrogate: a name in `surrogate.SURROGATES`.
    surrogate_parameter: its width or slope; None takes its default.
    reset: 'hard' or 'soft'.
    detach_reset: whether the gradient ignores the spikes in the reset.
    momentum: weight of the new value in running statistics.
    eps: added to variances.
    unroll: whether the steps are unrolled in the compiled program (faster,
      longer to compile) or looped over.
  """

  tau: float = 0.25
  v_th: float = 0.5
  learn_tau: bool = False
  learn_v_th: bool = False
  norm: str = norms.NONE
  surrogate: str = 'rect'
  surrogate_parameter: float | None = None
  reset: str = 'hard'
  detach_reset: bool = False
  momentum: float = norms.MOMENTUM
  eps: float = norms.EPS
  unroll: bool = True

  @nn.compact
  def __call__(self, currents: jax.Array, *, train: bool) -> jax.Array:
    """Returns spikes [B, T, ..., C] of currents [B, T, ..., C].

    `mutable=['intermediates']` returns both, under 'currents' and 'spikes'.
    """
    tau, v_th = self._tau_and_v_th(currents.shape[-1])
    fire, state, write = self._predicate(currents.shape[2:], v_th, train)
    spikes, state = lif_scan(
      jnp.moveaxis(currents, 1, 0).astype(jnp.float32),
      tau=tau,
      fire=fire,
      state=state,
      reset=self.reset,
      detach_reset=self.detach_reset,
      v_th=v_th,
      unroll=self.unroll,
    )
    write(state)
    spikes = jnp.moveaxis(spikes, 0, 1)
    self.sow('intermediates', 'currents', currents)
    self.sow('intermediates', 'spikes', spikes)
    return spikes.astype(currents.dtype)

  def _tau_and_v_th(self, channels):
    tau, v_th = self.tau, self.v_th
    if self.learn_tau:
      if not 0 < tau < 1:
        raise InputError(
          'a learned tau is the sigmoid of a parameter and must start inside '
          f'(0, 1), got tau = {tau}: set learn_tau=False or another tau'
        )
      logit = jax.scipy.special.logit
      tau = jax.nn.sigmoid(
        self.param('tau_logit', lambda _: logit(jnp.float32(tau)))
      )
    if self.learn_v_th:
      v_th = self.param('v_th', nn.initializers.constant(v_th), (channels,))
    return tau, v_th

  def _predicate(self, shape, v_th, train) -> tuple[Fire, Any, Callable]:
    """Returns (fire, its state, what to do with the last state)."""
    surrogate = dict(
      surrogate=self.surrogate, parameter=self.surrogate_parameter
    )

    def forget(state):
      del state

    if self.has_variable('threshold', 'threshold'):
      if train:
        raise InputError(
          'a folded network cannot be trained, its statistics are gone: '
          'train the unfolded variables and fold again'
        )
      threshold = self.get_variable('threshold', 'threshold')
      polarity = self.get_variable('threshold', 'polarity')

      def fire_folded(state, u):
        fired = polarity * u > polarity * threshold
        return state, emit(fired, polarity * (u - threshold), **surrogate)

      return fire_folded, None, forget

    if self.norm == norms.NONE:
      return fire_at(v_th, **surrogate), None, forget

    norm = norms.NORMS[self.norm]
    params, stats = _norm_variables(self, shape)

    def fire_train(state, u):
      n, state = norm.train(
        params, state, u, momentum=self.momentum, eps=self.eps
      )
      return state, spike(n, v_th, **surrogate)

    def fire_evaluate(state, u):
      fired = norm.fires(params, stats.value, u, v_th=v_th, eps=self.eps)
      n = norm.evaluate(params, stats.value, u, eps=self.eps)
      return state, emit(fired, n - v_th, **surrogate)

    if train:
      return (
        fire_train,
        stats.value,
        lambda state: _advance(self, stats, state),
      )
    return fire_evaluate, None, forget


def _norm_variables(module, shape, *, scale_init=1.0, **options):
  """Declares the variables of module.norm under its name; shape: [..., C].

  The name in the tree says which normalization the variables belong to: a
  pure function can fold them without the model, and the variables of one
  normalization are never taken for another's.
  """

  init = functools.partial(norms.NORMS[module.norm].init, **options)

  def init_params(key):
    del key  # constants
    params, _ = init(shape)
    return {
      name: value * scale_init if name == 'scale' else value
      for name, value in params.items()
    }

  params = module.param(module.norm, init_params)
  stats = module.variable(
    'batch_stats',
    module.norm,
    lambda: init(shape)[1],
  )
  return params, stats


def _advance(module, stats, new_stats):
  # `init` runs a forward pass too, but must leave the initial statistics.
  if not module.is_initializing():
    stats.value = new_stats
