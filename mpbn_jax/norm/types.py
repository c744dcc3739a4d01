"""Types of normalizations, one for each place."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar


@dataclasses.dataclass(frozen=True, kw_only=True)
class Norm:
  """A normalization: its place and pure functions of arrays.

  The functions receive the norm's parameters and statistics. The constants that
  they use are stored among the statistics, under the names in `CONSTANTS`,
  which no other statistic may have: a layer compares them with its settings.

  Attributes:
    init: (shape, **settings) -> (params, stats), with the settings that
      `settings` names; shape is the input shape without batch axes, [..., C].
      It takes no random key and may be called more than once. A parameter named
      'scale' is the one that `scale_init` and `last_scale` multiply.
    train: (params, stats, x, *, momentum) -> (y, stats). No gradient flows
      through the statistics.
    evaluate: (params, stats, x) -> y.
    fold: see the subclass; None if the norm cannot be folded.
    why_not: the reason if `fold` is None.
    custom_backward: whether `train` has a backward pass of its own, and an
      argument `autodiff` that replaces it with JAX's.
    memoryless: whether `evaluate` treats every time step alone. It does in any
      case if the norm folds and has no parameters per time step, or is called
      once per step.
  """

  place: ClassVar[str]  # the configuration key is <place>_norm
  settings: ClassVar[tuple[str, ...]]  # keyword arguments of `init`

  init: Callable
  train: Callable
  evaluate: Callable
  fold: Callable | None = None
  why_not: str = ''
  custom_backward: bool = False
  memoryless: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormAfterConvolution(Norm):
  """A normalization of the currents [B, T, ..., C] that a convolution returns.

  `init` also takes num_steps and alpha_v_th, by which tdBN scales. Unless the
  norm has parameters per time step, `train` also takes `copies`, how many equal
  steps each step represents. `fold` is (params, stats, kernel, bias) ->
  {kernel, bias} and optionally a factor, with the output channels last.

  Attributes:
    per_time_step: the parameter or statistic whose first axis is T; '' if the
      norm treats all time steps alike.
  """

  place = 'conv'
  settings = ('eps', 'alpha_v_th', 'num_steps')

  per_time_step: str = ''


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormBeforeFiring(Norm):
  """A normalization of a copy of the membrane potential.

  It is called once per time step, on membrane potentials [B, ..., C]. `init`
  takes v_th, None if it is learned and stored elsewhere. `fold` is (params,
  stats) -> {threshold, polarity, gain}.

  Attributes:
    fires: (params, stats, u) -> bool: whether the normalized potential exceeds
      stats['v_th'], decided exactly.
  """

  place = 'membrane'
  settings = ('eps', 'v_th')

  fires: Callable


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormAfterFiring(Norm):
  """A normalization of postsynaptic potentials [B, T, ..., C].

  `fold` is (params, stats) -> gain, [C] or [T, C], which multiplies the inputs
  of every layer that reads the spikes. A norm that has one is evaluated as this
  product, so `evaluate` must be the same.

  Attributes:
    per_time_step: as in `NormAfterConvolution`.
  """

  place = 'spike'
  settings = ('eps', 'num_steps')

  per_time_step: str = ''
