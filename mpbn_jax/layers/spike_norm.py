"""The synaptic filter and the normalization of spikes."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from mpbn_jax import norm as norms
from mpbn_jax.layers import carry, variables
from mpbn_jax.layers.absorption import may_fold
from mpbn_jax.layers.attributes import check_positive, check_types
from mpbn_jax.layers.spikes import Fold, Spikes, check_array


class SpikeNorm(nn.Module):
  """The synaptic filter and the normalization of postsynaptic potentials.

      a[t] = tau_s * a[t-1] + s[t];  y = norm(a)

  Variables: `params/<norm>/...` and `batch_stats/<norm>/...`. After folding
  into its readers (`folding.fold_spike_norms`), `folded/readers` is their
  number, and only the filter is left.

  A norm that folds returns `Spikes`, which only the layers that can absorb the
  norm can read: any other use raises an InputError, so a fold is never wrong.
  In evaluation the spikes carry the norm's gain into the kernels of these
  layers; folding does the same once and for all.

  Attributes:
    norm: a spike norm in `norm.NORMS`, or 'none'.
    tau_s: kept fraction of the filter, in [0, 1); 0 disables the filter.
    scale_init: initial value of the norm's scale.
    momentum: weight of the new value in running statistics.
    eps: added to second moments. This is the initial value: it is stored with
      the variables, and the layer uses the stored value.
    stats_groups: as in `currents.NormedLayer`.
    unroll: whether to unroll the time steps in the compiled program.

  Raises:
    InputError: an attribute is unknown or outside its range.

  Example:
    >>> layer = SpikeNorm(norm='psp_bn')
    >>> spikes = jnp.ones((8, 4, 5))  # [B, T, C]
    >>> variables = layer.init(jax.random.key(0), spikes, train=False)
    >>> layer.apply(variables, spikes, train=False).shape
    (8, 4, 5)
  """

  norm: str = norms.NONE
  tau_s: float = 0.0
  scale_init: float = 1.0
  momentum: float = norms.MOMENTUM
  eps: float = norms.EPS
  stats_groups: int = 1
  unroll: bool = True

  def __post_init__(self):
    check_types(self)
    check_positive(self, 'stats_groups')
    norms.check_settings(eps=self.eps, momentum=self.momentum)
    norms.check_norm(self.norm, place='spike')
    norms.check_tau_s(self.tau_s)
    super().__post_init__()

  @nn.compact
  def __call__(self, spikes: jax.Array, *, train: bool) -> jax.Array | Spikes:
    """Returns [B, T, ..., C] of spikes [B, T, ..., C]."""
    check_array(spikes)
    variables.check_input('spikes', spikes)
    a = self._filtered(spikes, train)
    if self.norm == norms.NONE:
      return a
    folds = may_fold(self)
    if self.has_variable('folded', 'readers'):
      variables.refuse_training(train)
      if not (folds and self.has_variable('params', self.norm)):
        return Spikes(a, path=self.path, fold=Fold.DONE)
    carry.check_memoryless(self)
    variables.check_steps(self, a.shape[1])
    norm = norms.NORMS[self.norm]
    own = variables.NormVariables(
      self,
      a.shape[2:],
      eps=self.eps,
      num_steps=a.shape[1],
      scale_init=self.scale_init,
    )
    if train:
      train_norm = functools.partial(
        norm.train, own.params, own.stats, momentum=self.momentum
      )
      a, stats = norms.in_groups(
        train_norm, a, stats=own.stats, groups=self.stats_groups
      )
      own.advance(stats)
      return Spikes(a, path=self.path) if norm.fold else a
    if not norm.fold:
      return norm.evaluate(own.params, own.stats, a)
    gain = norm.fold(own.params, own.stats)
    if folds:
      self.put_variable('folded', 'readers', jnp.int32(0))
    fold = Fold.NOW if folds else Fold.OPEN
    return Spikes(a, path=self.path, gain=gain, fold=fold)

  def _filtered(self, spikes, train):
    """Returns the postsynaptic potentials of spikes, both [B, T, ..., C]."""
    if self.tau_s == 0:
      return spikes
    shape = (spikes.shape[0], *spikes.shape[2:])
    carried = carry.carried(self, 'a', shape=shape, start=0.0, train=train)
    last, a = norms.synaptic_filter_from(
      0.0 if carried is None else carried.value,
      spikes,
      tau_s=self.tau_s,
      unroll=self.unroll,
    )
    if carried is not None:
      carried.advance(last)
    return a
