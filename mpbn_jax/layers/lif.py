"""What is a layer of neurons?"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mpbn_jax import norm as norms
from mpbn_jax.errors import InputError
from mpbn_jax.layers import variables
from mpbn_jax.layers.normed import check_array
from mpbn_jax.neuron import Fire, fire_at, lif_scan
from mpbn_jax.surrogate import emit, spike


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
    A `forced` collection with {spikes} at this path is handed on in place of
    the layer's own spikes: so it can be fed another network's.
    """
    check_array(currents)
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
    if self.has_variable('forced', 'spikes'):
      spikes = self.get_variable('forced', 'spikes')
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
      variables.refuse_training(train)
      threshold = self.get_variable('threshold', 'threshold')
      polarity = self.get_variable('threshold', 'polarity')

      def fire_folded(state, u):
        fired = polarity * u > polarity * threshold
        return state, emit(fired, polarity * (u - threshold), **surrogate)

      return fire_folded, None, forget

    if self.norm == norms.NONE:
      return fire_at(v_th, **surrogate), None, forget

    norm = norms.NORMS[self.norm]
    own = variables.NormVariables(self, shape)
    params, stats = own.params, own.stats

    def fire_train(state, u):
      n, state = norm.train(
        params, state, u, momentum=self.momentum, eps=self.eps
      )
      return state, spike(n, v_th, **surrogate)

    def fire_evaluate(state, u):
      fired = norm.fires(params, stats, u, v_th=v_th, eps=self.eps)
      n = norm.evaluate(params, stats, u, eps=self.eps)
      return state, emit(fired, n - v_th, **surrogate)

    if train:
      return fire_train, stats, own.advance
    return fire_evaluate, None, forget
