"""Potentials that layers carry from one call to the next, for streaming.

They are in a collection of their own, which only `streaming` makes mutable: at
the path of a neuron layer its membrane potential `u_res`, at that of a synaptic
filter the postsynaptic potential `a`. In any other call, layers start afresh.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mpbn_jax import norm as norms
from mpbn_jax.errors import InputError

COLLECTION = 'carry'


def carries(module: nn.Module) -> bool:
  """Returns whether this call starts where the last one ended."""
  mutable = module.is_mutable_collection
  # `init` makes all collections mutable.
  return mutable(COLLECTION) and not mutable('params')


class Carried:
  """The potential of a layer, before and after a call.

  Attributes:
    value: before the call; its initial value if the collection has none yet.
  """

  def __init__(self, module: nn.Module, name: str, init: jax.Array):
    self._advances = module.has_variable(COLLECTION, name)
    self._variable = module.variable(COLLECTION, name, lambda: init)

  @property
  def value(self) -> jax.Array:
    return self._variable.value

  def advance(self, value: jax.Array) -> None:
    """Stores the potential after the call.

    The call that creates the collection stores none: it returns the potentials
    before the first step (`streaming.initial_state`).
    """
    if self._advances:
      self._variable.value = value


def carried(
  module: nn.Module,
  name: str,
  *,
  shape: tuple[int, ...],
  start: jax.Array | float,
  train: bool,
) -> Carried | None:
  """Returns the potential that a layer starts from, or None for `start`.

  Args:
    module: the layer.
    name: the name of the potential.
    shape: its shape, [B, ..., C].
    start: its value before the first step, a scalar.
    train: whether the layer is trained.

  Raises:
    InputError: the collection is there, but cannot be written; training.
  """
  if not carries(module):
    if module.has_variable(COLLECTION, name) and not module.is_initializing():
      raise InputError(
        f'expected variables without {COLLECTION!r}, got those of a stream at '
        f'{"/".join(module.path)!r}, which would not move on: call '
        'mpbn_jax.streaming.step with them'
      )
    return None
  if train:
    raise InputError(
      'expected train=False where potentials are carried from call to call, '
      'got train=True: train on whole sequences'
    )
  return Carried(module, name, jnp.full(shape, start, jnp.float32))


def check_memoryless(module: nn.Module) -> None:
  """Raises InputError if `module.norm` needs other steps than a stream has.

  `variables.check_steps_equal` refuses norms with parameters per time step.
  """
  name = module.norm
  if not carries(module) or name == norms.NONE:
    return
  norm = norms.NORMS[name]
  if not (norm.memoryless or norm.fold):
    raise InputError(
      f'expected a network whose norms treat every step alone, got {name!r} at '
      f'{"/".join(module.path)!r}: give it whole sequences, or set '
      'memoryless=True in this norm if it does'
    )
