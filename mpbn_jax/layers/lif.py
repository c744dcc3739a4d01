"""A layer of leaky integrate-and-fire neurons, with norms of u and spikes."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from mpbn_jax import norm as norms
from mpbn_jax import start as starts
from mpbn_jax.errors import InputError
from mpbn_jax.layers import carry, firing, potentials, variables
from mpbn_jax.layers.attributes import check_positive, check_types
from mpbn_jax.layers.spike_norm import SpikeNorm
from mpbn_jax.layers.spikes import Spikes, check_array
from mpbn_jax.neuron import check_reset, check_tau, lif_scan_from
from mpbn_jax.ops import kept, recurrence
from mpbn_jax.ops.recurrence import Recurrence
from mpbn_jax.surrogate import check_unit, get_surrogate, spike


class LIF(nn.Module):
  """A layer of leaky integrate-and-fire neurons, with MPBN if `norm` says so.

      u = tau * u_res + c;  s = (norm(u) > v_th);  u_res = u * (1 - s)

  Variables: `params/<norm>/{scale, bias}` and `batch_stats/<norm>/{mean, var}`,
  [C] channel-wise or [H, W, C] element-wise; `params/tau_logit`, a scalar, and
  `params/v_th`, [C], if they are learned; `batch_stats/start`, a scalar, if
  neurons start at a running mean. The constants eps and v_th (unless learned)
  are scalars in `batch_stats/<norm>`, and the layer computes with these stored
  values. A layer with another setting raises an error, except inside a
  compiled function, where the stored value is used.

  In training, the statistics are those of each time step, and the running ones
  move at every time step: T times a call. With `stats_groups`, each group of
  the batch moves them as if it were alone, and their mean is stored.

  With a spike norm or a synaptic filter, a `SpikeNorm` named 'spike_norm'
  inside the layer transforms the spikes before they are returned.

  A `threshold` collection with {threshold, polarity, gain, v_th} at this path
  replaces the norm (`fold`): a neuron then fires if
  polarity * u > polarity * threshold, and the norm's variables are not read.
  The variables determine whether a network is folded, so no flag can disagree
  with them.

  Attributes:
    tau: kept fraction of the membrane potential, in [0, 1).
    v_th: firing threshold, also subtracted by a soft reset. With a norm, this
      is the initial value: it is stored with the variables, and the layer uses
      the stored value.
    learn_tau: whether to learn one tau per layer, through a sigmoid, starting
      at `tau` (PLIF, Fang et al. 2021, 2007.05785; unlike there, the input is
      not scaled by the leaking fraction, here 1 - tau).
    learn_v_th: whether to learn one v_th per channel, starting at `v_th` (the
      paper's Sec. 4.2 and the caption of its Table 6).
    norm: norm of the membrane potential, a key of `norm.NORMS`, or 'none'.
    spike_norm: norm of the spikes, a key of `norm.NORMS`, or 'none'.
    spike_scale_init: initial scale of the spike norm.
    tau_s: kept fraction of the synaptic filter between the spikes and their
      norm, in [0, 1); 0 disables the filter.
    surrogate: a name in `surrogate.SURROGATES`.
    surrogate_parameter: its width or slope; None uses its default.
    surrogate_unit: what these count in, 'one' or 'v_th', see
      `surrogate.scaled`.
    reset: 'hard' or 'soft'.
    detach_reset: whether the gradient ignores the spikes in the reset.
    start: potential before the first step, 'zero' or 'mean': a running mean of
      the potentials after the last one (MP-Init, `start.advance`).
    momentum: weight of the new value in running statistics.
    eps: added to variances. This is the initial value: it is stored with the
      variables, and the layer uses the stored value.
    stats_groups: number of groups of the batch with batch statistics of their
      own, see `norm.in_groups`; 1 takes those of the whole batch.
    unroll: whether to unroll the time steps in the compiled program (faster,
      but slower to compile) or to loop over them. More than eight steps of few
      elements are loops in training on a CPU, which is as fast there.
    autodiff: whether JAX derives the backward pass, in place of the one of
      `ops.recurrence`, which is faster and stores less.
    keep: what the forward pass of a network of these neurons keeps for its
      backward pass, a key of `ops.kept.KEEP`. Unless it is 'all', spikes are
      stored as bits, and `SpikingNetwork` computes the rest again. A network of
      another class stores everything.

  Raises:
    InputError: an attribute is unknown or outside its range.

  Example:
    >>> layer = LIF(norm='mpbn_channel')
    >>> currents = jnp.ones((8, 4, 5))  # [B, T, C]
    >>> variables = layer.init(jax.random.key(0), currents, train=False)
    >>> layer.apply(variables, currents, train=False).shape
    (8, 4, 5)
  """

  tau: float = 0.25
  v_th: float = 0.5
  learn_tau: bool = False
  learn_v_th: bool = False
  norm: str = norms.NONE
  spike_norm: str = norms.NONE
  spike_scale_init: float = 1.0
  tau_s: float = 0.0
  surrogate: str = 'rect'
  surrogate_parameter: float | None = None
  surrogate_unit: str = 'one'
  reset: str = 'hard'
  detach_reset: bool = False
  start: str = 'zero'
  momentum: float = norms.MOMENTUM
  eps: float = norms.EPS
  stats_groups: int = 1
  unroll: bool = True
  autodiff: bool = False
  keep: str = 'all'

  def __post_init__(self):
    check_types(self)
    check_positive(self, 'stats_groups')
    norms.check_settings(eps=self.eps, momentum=self.momentum)
    norms.check_norm(self.norm, place='membrane')
    norms.check_norm(self.spike_norm, place='spike')
    norms.check_tau_s(self.tau_s)
    check_tau(self.tau)
    check_reset(self.reset)
    kept.check_keep(self.keep)
    starts.check_start(self.start)
    check_unit(self.surrogate_unit)
    get_surrogate(self.surrogate, parameter=self.surrogate_parameter)
    super().__post_init__()

  @nn.compact
  def __call__(self, currents: jax.Array, *, train: bool) -> jax.Array | Spikes:
    """Returns spikes [B, T, ..., C] of currents [B, T, ..., C].

    `mutable=['intermediates']` returns both, under 'currents' and 'spikes'.
    `mutable=['potentials']` returns the potentials `before` and (with a norm)
    `after` it, see `potentials.keep`.
    If a `given_spikes` collection has {spikes} at this path, they are returned
    in place of the layer's own spikes. Its readers can thus receive another
    network's spikes. With a mutable `carry` collection, as in
    `streaming.step`, neurons start from the potentials that it has.

    Raises:
      InputError: a stored constant differs from the layer's setting (if its
        value is known); training of a folded layer; a learned tau that starts
        at 0; invalid settings or shapes; normed spikes as input.
      TypeError: the currents are not floating.
    """
    check_array(currents)
    variables.check_input('currents', currents)
    tau, v_th = self._tau_and_v_th(currents.shape[-1])
    by_time = jnp.moveaxis(currents, 1, 0).astype(jnp.float32)
    start = self._start()
    first = None if start is None else start.value
    carried = carry.carried(
      self,
      'u_res',
      shape=by_time.shape[1:],
      start=0.0 if first is None else first,
      train=train,
    )
    if carried is not None:
      first = carried.value
    spikes, last = self._spikes(by_time, tau, v_th, train, first)
    if carried is not None:
      carried.advance(last)
    if train and first is not None and not self.is_initializing():
      start.value = starts.advance(first, last, spikes, momentum=self.momentum)
    spikes = jnp.moveaxis(spikes, 0, 1)
    self.sow('intermediates', 'currents', currents)
    self.sow('intermediates', 'spikes', spikes)
    given = self.has_variable('given_spikes', 'spikes')
    if given:
      spikes = self.get_variable('given_spikes', 'spikes')
    spikes = spikes.astype(currents.dtype)
    if train and self.keep != 'all' and not given:  # those may be no bits
      spikes = kept.as_bits(spikes)
    if self.spike_norm == norms.NONE and self.tau_s == 0:
      return spikes
    normalize = SpikeNorm(
      norm=self.spike_norm,
      tau_s=self.tau_s,
      scale_init=self.spike_scale_init,
      momentum=self.momentum,
      eps=self.eps,
      stats_groups=self.stats_groups,
      unroll=self.unroll,
      name='spike_norm',
    )
    return normalize(spikes, train=train)

  def _tau_and_v_th(self, channels):
    tau, v_th = self.tau, self.v_th
    for learns, name in (
      ('learn_tau', 'tau_logit'),
      ('learn_v_th', 'v_th'),
    ):
      if not getattr(self, learns) and self.has_variable('params', name):
        at = variables.path_of(self, name)
        raise InputError(
          f'expected no params/{at} with {learns}=False, got one that would '
          f'not be read: build the model with {learns}=True'
        )
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
      init = nn.initializers.constant(v_th)
      v_th = variables.parameter(self, 'v_th', init, (channels,))
    return tau, v_th

  def _start(self):
    """Returns the variable of the potential before the first step, or None."""
    at = f'batch_stats/{variables.path_of(self, "start")}'
    has = self.has_variable('batch_stats', 'start')
    if self.start == 'zero':
      if has:
        raise InputError(
          f"expected no {at} with start='zero', got one that would not be "
          "read: build the model with start='mean'"
        )
      return None
    if not (has or self.is_mutable_collection('batch_stats')):
      raise InputError(
        f"expected {at}, the running mean that start='mean' starts from, got "
        "none: use the variables of a model with start='mean'"
      )
    return self.variable('batch_stats', 'start', jnp.zeros, (), jnp.float32)

  def _spikes(self, currents, tau, v_th, train, start):
    """Returns the spikes of currents, both [T, B, ..., C], and u_res[T].

    u_res[T], [B, ..., C], is None without a start.
    """
    shape = currents.shape[2:]
    settings = Recurrence(
      surrogate=self.surrogate,
      parameter=self.surrogate_parameter,
      unit=self.surrogate_unit,
      reset=self.reset,
      detach_reset=self.detach_reset,
      unroll=self.unroll,
    )
    keep = functools.partial(
      potentials.keep, self, currents, tau=tau, reset=self.reset, u_res=start
    )

    def evaluated(fire_of, leaves):
      return firing.evaluated(
        settings, fire_of, currents, tau, v_th, leaves, start=start
      )

    if self.has_variable('threshold', 'threshold'):
      variables.refuse_training(train)
      folded = variables.folded_neurons(self, shape)
      if not self.learn_v_th:  # a soft reset subtracts the folded v_th
        v_th = folded['v_th']
      spikes, last = evaluated(firing.folded, folded)
      levels = {name: folded[name] for name in ('threshold', 'polarity')}
      keep(spikes, v_th=v_th, levels=levels)
      return spikes, last

    if self.norm == norms.NONE:
      if not train or self.autodiff:
        spikes, last = evaluated(firing.plain, {})
      else:
        spikes, _, last = recurrence.lif_scan(
          settings, currents, tau, v_th, {}, {}, start
        )
      keep(spikes, v_th=v_th)
      return spikes, last

    norm = norms.NORMS[self.norm]
    own = variables.NormVariables(
      self, shape, eps=self.eps, v_th=None if self.learn_v_th else self.v_th
    )
    # A learned v_th is a parameter of the layer, not a constant of the norm.
    v_th = own.stats.get('v_th', v_th)
    if not train:
      fire = firing.normed(norm.fires, norm.evaluate)
      spikes, last = evaluated(fire, (own.params, own.stats))
      normalize = functools.partial(norm.evaluate, own.params, own.stats)
      keep(spikes, v_th=v_th, normalize=jax.vmap(normalize))
      return spikes, last

    def trained(currents):
      return self._trained(
        norm, settings, currents, tau, v_th, own.params, own.stats, start
      )

    spikes, stats, last = norms.in_groups(
      trained, currents, stats=own.stats, groups=self.stats_groups, axis=1
    )
    normalize = functools.partial(
      potentials.normalized_in_training, norm, own.params, own.stats, self
    )
    keep(spikes, v_th=v_th, normalize=normalize)
    own.advance(stats)
    return spikes, last

  def _trained(self, norm, settings, currents, tau, v_th, params, stats, start):
    """Returns (spikes, new statistics, u_res[T]) of neurons with a norm."""
    # A subclass may train otherwise.
    own_backward = type(norm.train) in (norms.BatchNorm, norms.Affine)
    if own_backward and not self.autodiff:
      settings = dataclasses.replace(
        settings, norm=norm.train, momentum=self.momentum
      )
      affine = {name: params[name] for name in ('scale', 'bias')}
      return recurrence.lif_scan(
        settings, currents, tau, v_th, affine, stats, start
      )
    plain = self.autodiff and norm.custom_backward
    options = {'autodiff': True} if plain else {}

    def fire(stats, u):
      n, stats = norm.train(params, stats, u, momentum=self.momentum, **options)
      return stats, spike(n, v_th, **settings.spike)

    (last, stats), spikes = lif_scan_from(
      (0.0 if start is None else start, stats),
      currents,
      tau=tau,
      fire=fire,
      v_th=v_th,
      **settings.scan,
    )
    return spikes, stats, last
