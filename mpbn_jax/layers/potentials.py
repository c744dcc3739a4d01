"""Membrane potentials of a neuron layer, kept for whoever asks for them."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mpbn_jax import norm as norms
from mpbn_jax.neuron import potentials_of

COLLECTION = 'potentials'


def keep(
  layer: nn.Module,
  currents: jax.Array,
  spikes: jax.Array,
  *,
  tau: jax.Array | float,
  reset: str,
  v_th: jax.Array | float,
  u_res: jax.Array | None,
  normalize: Callable[[jax.Array], jax.Array] | None = None,
  levels: Mapping[str, jax.Array] | None = None,
) -> None:
  """Stores a layer's potentials if the caller of the network asks for them.

      logits, kept = model.apply(
        variables, x, train=False, mutable=['potentials']
      )
      kept['potentials'][<layer>]['before'][0]     # [B, T, ..., C]

  A layer has

  * `before`: the membrane potential after charging, u;
  * `after`: MPBN(u), if it has a norm that is not folded;
  * `v_th`: the firing threshold. A neuron fires if after > v_th, up to
    rounding; without a norm, if before > v_th;
  * `threshold` and `polarity`, if its norm is folded: a neuron fires if
    polarity * before > polarity * threshold.

  The last three have as many axes as u, of length 1 where they are the same for
  all neurons. As in 'intermediates', each is a tuple with one array for each
  time that the layer ran. A network with an `nn.scan` or `nn.vmap` of its own
  passes the collection on: variable_axes={'potentials': 0, ...}.

  The potentials are computed again, from currents and spikes. So a network
  whose caller does not ask for them runs the same program as ever.

  Args:
    layer: the layer.
    currents: [T, B, ..., C].
    spikes: [T, B, ..., C].
    tau: kept fraction of the membrane potential.
    reset: 'hard' or 'soft'.
    v_th: firing threshold.
    u_res: potential before the first step; None is 0.
    normalize: u [T, B, ..., C] -> MPBN(u); None if there is no norm.
    levels: the threshold and polarity of a folded norm.
  """
  # `init` makes every collection mutable, but returns variables to train.
  if layer.is_initializing() or not layer.is_mutable_collection(COLLECTION):
    return
  u = potentials_of(
    currents,
    spikes,
    tau=tau,
    reset=reset,
    v_th=v_th,
    u_res=0.0 if u_res is None else u_res,
    unroll=getattr(layer, 'unroll', 1),
  )
  layer.sow(COLLECTION, 'before', jnp.moveaxis(u, 0, 1))
  if normalize is not None:
    layer.sow(COLLECTION, 'after', jnp.moveaxis(normalize(u), 0, 1))
  for name, level in {'v_th': v_th, **(levels or {})}.items():
    value = jnp.asarray(level, jnp.float32)
    ones = (1,) * (u.ndim - value.ndim)
    layer.sow(COLLECTION, name, value.reshape((*ones, *value.shape)))


def normalized_in_training(
  norm: norms.NormBeforeFiring,
  params: Mapping,
  stats: Mapping,
  layer: Any,
  u: jax.Array,
) -> jax.Array:
  """Returns u [T, B, ..., C] normed with the statistics of their step.

  Args:
    norm: the norm.
    params: its parameters.
    stats: its running statistics before the first step.
    layer: has the settings `momentum` and `stats_groups`.
    u: the potentials.
  """

  def step(stats, u):
    n, stats = norm.train(params, stats, u, momentum=layer.momentum)
    return stats, n

  def of_group(u):
    after, n = jax.lax.scan(step, dict(stats), u)
    return n, after

  n, *_ = norms.in_groups(
    of_group, u, stats=dict(stats), groups=layer.stats_groups, axis=1
  )
  return n
