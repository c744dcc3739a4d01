"""The variables of a layer, folded or not: declared, looked up and checked.

The name in the tree identifies the normalization to which variables belong: a
pure function can fold them without the model, and the variables of one
normalization are never mistaken for another's. Folded variables are in a
`folded` (or `threshold`) collection at the same path and take precedence: the
variables determine whether a network is folded, and no flag can disagree.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mpbn_jax import norm as norms
from mpbn_jax.errors import InputError
from mpbn_jax.layers import carry


def check_input(what: str, x: Any) -> None:
  """Checks that x is [B, T, ..., C], floating, with at least one step.

  Raises:
    InputError: x has too few axes or no time step.
    TypeError: x is not floating.
  """
  norms.check_floating(what, x)
  if x.ndim < 3 or x.shape[1] < 1:
    raise InputError(
      f'expected {what} [B, T, ..., C] with T >= 1, got shape {x.shape}'
    )


def weight(
  module: nn.Module, name: str, init: Callable, shape: tuple[int, ...]
) -> jax.Array:
  """Returns the folded weight of that name, or declares the parameter.

  It is float32, even with jax_enable_x64.
  """
  if module.has_variable('folded', name):
    folded: jax.Array = module.get_variable('folded', name)
    if folded.shape not in (shape, (*folded.shape[:1], *shape)):
      raise InputError(
        f'expected folded/{path_of(module, name)} of shape {shape}, or one of '
        f'each step, got {folded.shape}: fold the variables of this model'
      )
    return folded
  return parameter(module, name, init, shape)


def parameter(
  module: nn.Module, name: str, init: Callable, shape: tuple[int, ...]
) -> jax.Array:
  """Returns the parameter of that name, or declares it, as float32.

  As `module.param`, it takes parameters out of the boxes that
  `nn.with_partitioning` puts them into.

  Raises:
    InputError: there is one of another shape.
  """
  if not module.has_variable('params', name):
    declared: jax.Array = module.param(name, init, shape, jnp.float32)
    return declared
  # Flax would trace the initializer again, for its shape.
  leaf: jax.Array = nn.unbox(module.get_variable('params', name))
  check_shapes(
    '/'.join(('params', *module.path)),
    {name: leaf},
    {name: jax.ShapeDtypeStruct(shape, jnp.float32)},
  )
  return leaf


class NormVariables:
  """The variables of `module.norm`, under its name.

  Attributes:
    params: its parameters.
    stats: its running statistics and constants; {} if it has none.
  """

  def __init__(self, module, shape, *, scale_init=1.0, **settings):
    """Declares the variables and checks constants that are already stored.

    Args:
      module: the layer.
      shape: shape of the normalized values, [..., C], without batch axes.
      scale_init: initial value of the norm's scale.
      **settings: arguments of the norm's `init`.
    """
    name = module.norm
    init = functools.partial(norms.NORMS[name].init, shape, **settings)

    def init_params(key):
      del key  # constants
      params, _ = init()
      return {
        name: value * scale_init if name == 'scale' else value
        for name, value in params.items()
      }

    self._module, self._stats = module, None
    expected_params, expected = jax.eval_shape(init)
    if module.has_variable('params', name):
      # Flax would trace the initializer again, for its shapes.
      self.params = module.get_variable('params', name)
      at = f'params/{path_of(module, name)}'
      check_shapes(at, self.params, expected_params)
    else:
      self.params = module.param(name, init_params)
    # A leaf without arrays would be lost in a checkpoint.
    if expected:
      self._stats = module.variable('batch_stats', name, lambda: init()[1])
    at = f'batch_stats/{path_of(module, name)}'
    check_shapes(at, self.stats, expected)
    for name in norms.CONSTANTS:
      if name in expected:
        check_constant(module, at, name, self.stats, settings[name])
      elif name in self.stats:
        raise InputError(
          f'expected no {at}/{name} beside a learned {name}, got one: use '
          'the variables of a model with the same settings'
        )

  @property
  def stats(self):
    return {} if self._stats is None else self._stats.value

  def advance(self, stats) -> None:
    """Stores new running statistics."""
    # `init` also runs a forward pass, but must keep the initial statistics.
    if self._stats is not None and not self._module.is_initializing():
      self._stats.value = stats


def path_of(module: nn.Module, *leaf: str) -> str:
  """Returns the path of a layer's variables, such as 'stem/lif1'."""
  return '/'.join((*module.path, *leaf))


def check_constant(
  module: nn.Module, at: str, name: str, leaves: dict, value: float
) -> None:
  """Raises InputError if a stored constant differs from the layer's setting.

  Inside a compiled function the stored value is unknown, and it is used
  whatever the setting is.

  Args:
    module: the layer.
    at: path of the constant.
    name: name of the constant.
    leaves: leaves stored at that path.
    value: the layer's setting.
  """
  layer = path_of(module) or type(module).__name__
  if name not in leaves:
    raise InputError(
      f'expected {at}/{name}, the constant that {layer!r} was made with, got '
      f'{", ".join(sorted(leaves)) or "none"}: variables of `init` have it, '
      'and `fold` passes it on'
    )
  stored = leaves[name]
  if isinstance(stored, jax.core.Tracer) or isinstance(value, jax.core.Tracer):
    return
  if (np.asarray(stored) == np.asarray(value, np.float32)).all():
    return
  raise InputError(
    f'expected {layer!r} with the {name} = {stored} that its variables were '
    f'made with, got a model with {name} = {value}: build the model with the '
    'stored value, which is what counts'
  )


def check_shapes(at: str, leaves: Mapping, expected: Mapping) -> None:
  """Raises InputError for leaves of other shapes, which would broadcast.

  Args:
    at: path of the leaves.
    leaves: the leaves to check; missing ones are ignored.
    expected: {name: object with a shape}.
  """
  for name in expected.keys() & leaves.keys():
    shape, want = jnp.shape(leaves[name]), tuple(expected[name].shape)
    if shape != want:
      raise InputError(
        f'expected {at}/{name} of shape {want}, got {shape}: use the '
        'variables of a model with the same settings and inputs'
      )


def folded_neurons(module: Any, shape: tuple[int, ...]) -> dict:
  """Returns the folded norm of a layer, {threshold, polarity, ...}.

  Args:
    module: a layer of neurons, with learn_v_th and v_th.
    shape: shape of its membrane potentials, [..., C], without batch axes.

  Raises:
    InputError: a leaf is missing, does not have the shape of the layer's
      channels or elements, or was folded with another v_th.
  """
  names = ['threshold', 'polarity', 'gain'] + ['v_th'] * (not module.learn_v_th)
  leaves: dict[str, jax.Array] = {
    name: module.get_variable('threshold', name)
    for name in names
    if module.has_variable('threshold', name)
  }
  at = '/'.join(('threshold', *module.path))
  if missing := [name for name in names if name not in leaves]:
    raise InputError(
      f'expected {at}/{missing[0]}, got only {", ".join(leaves)}: call `fold` '
      'on the unfolded variables again'
    )
  element = jnp.ndim(leaves['threshold']) > 1
  like = jax.ShapeDtypeStruct(shape if element else shape[-1:], jnp.float32)
  check_shapes(at, leaves, dict.fromkeys(names[:3], like))
  if not module.learn_v_th:
    check_constant(module, at, 'v_th', leaves, module.v_th)
  return leaves


def per_time_step(name: str) -> str:
  """Returns the leaf of a norm whose first axis is T, or '' if none is."""
  return getattr(norms.NORMS.get(name), 'per_time_step', '')


def check_steps(module: Any, steps: int) -> None:
  """Raises InputError if module.norm has another number of time steps."""
  leaf = per_time_step(module.norm)
  for collection in ('params', 'batch_stats'):
    if leaf and module.has_variable(collection, module.norm):
      leaves: Mapping = module.get_variable(collection, module.norm)
      if leaf in leaves:
        check_steps_equal(module, leaves[leaf].shape[0], steps)


def check_steps_equal(module: Any, built: int, steps: int) -> None:
  """Raises InputError if a layer was built for another number of steps.

  A stream has no number of steps.
  """
  streamed = carry.carries(module)
  if built == steps and not streamed:
    return
  what = '/'.join(module.path)
  if per_time_step(getattr(module, 'norm', norms.NONE)):
    what = module.norm
  if streamed:
    raise InputError(
      'expected a network that treats all steps alike, got parameters for each '
      f'of its {built} steps in {what!r}: give it whole sequences, or train '
      'with another norm'
    )
  raise InputError(
    f'{what!r} has parameters for each of its {built} steps, got '
    f'{steps}: use num_steps={built}, or train with num_steps={steps}'
  )


def refuse_training(train: bool) -> None:
  """Raises InputError if a folded layer would be trained."""
  if train:
    raise InputError(
      'a folded network cannot be trained, since its statistics are gone: '
      'train the unfolded variables and fold again'
    )
