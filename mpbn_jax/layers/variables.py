"""Where do a layer's variables stand, folded or not?

The name in the tree says which normalization variables belong to: a pure
function can fold them without the model, and the variables of one
normalization are never taken for another's. What a fold made stands in a
`folded` (or `threshold`) collection at the same path and is preferred: the
variables say whether a network is folded, no flag can disagree with them.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax

from mpbn_jax import norm as norms
from mpbn_jax.errors import InputError


def weight(
  module: nn.Module, name: str, init: Callable, shape: tuple[int, ...]
) -> jax.Array:
  """Returns the folded weight of that name, or else declares the parameter."""
  if module.has_variable('folded', name):
    return module.get_variable('folded', name)
  return module.param(name, init, shape)


class NormVariables:
  """The variables of `module.norm`, under its name.

  Attributes:
    params: its parameters.
    stats: its running statistics; {} where it has none.
  """

  def __init__(self, module, shape, *, scale_init=1.0, **options):
    """Declares them; shape: of the normalized, [..., C], without batch axes."""
    init = functools.partial(norms.NORMS[module.norm].init, **options)

    def init_params(key):
      del key  # constants
      params, _ = init(shape)
      return {
        name: value * scale_init if name == 'scale' else value
        for name, value in params.items()
      }

    self._module, self._stats = module, None
    self.params = module.param(module.norm, init_params)
    # Without arrays the leaf would be lost in a checkpoint.
    if jax.eval_shape(lambda: init(shape)[1]):
      self._stats = module.variable(
        'batch_stats', module.norm, lambda: init(shape)[1]
      )

  @property
  def stats(self):
    return {} if self._stats is None else self._stats.value

  def advance(self, stats) -> None:
    """Stores new running statistics."""
    # `init` runs a forward pass too, but must leave the initial statistics.
    if self._stats is not None and not self._module.is_initializing():
      self._stats.value = stats


def check_steps(module: nn.Module, steps: int) -> None:
  """Raises InputError where module.norm has parameters of other steps."""
  leaf = norms.NORMS[module.norm].per_step
  for collection in ('params', 'batch_stats'):
    if leaf and module.has_variable(collection, module.norm):
      leaves = module.get_variable(collection, module.norm)
      if leaf in leaves:
        check_steps_equal(module, leaves[leaf].shape[0], steps)


def check_steps_equal(module: nn.Module, built: int, steps: int) -> None:
  """Raises InputError where a layer was built for other steps than it gets."""
  if built == steps:
    return
  norm = norms.NORMS.get(getattr(module, 'norm', None))
  what = '/'.join(module.path)
  if norm is not None and norm.per_step:
    what = module.norm
  raise InputError(
    f'{what!r} has parameters for each of its {built} steps, got '
    f'{steps}: use num_steps={built}, or train with num_steps={steps}'
  )


def refuse_training(train: bool) -> None:
  """Raises InputError where what is folded would be trained."""
  if train:
    raise InputError(
      'a folded network cannot be trained, its statistics are gone: '
      'train the unfolded variables and fold again'
    )
