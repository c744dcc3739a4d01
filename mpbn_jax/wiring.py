"""Wiring of a network: which layers read which normed spikes."""

from collections.abc import Iterator, Mapping
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from mpbn_jax.errors import InputError
from mpbn_jax.layers import Spikes, absorption
from mpbn_jax.norm import NORMS


class Wiring(Mapping):
  """{path of a spike norm: paths of the layers that read it} of a network.

  `readers_of_spikes` returns it and `folding.fold_spike_norms` takes it. The
  mapping is for inspection only: the fold runs the network again, so that no
  reader can be left out.
  """

  __slots__ = ('_model', '_readers', '_variables', '_x')

  def __init__(
    self,
    readers: Mapping[str, tuple[str, ...]],
    *,
    model: nn.Module,
    variables: Mapping,
    x: jax.ShapeDtypeStruct,
  ):
    self._readers, self._model, self._x = dict(readers), model, x
    self._variables = variables

  def __getitem__(self, norm: str) -> tuple[str, ...]:
    return self._readers[norm]

  def __iter__(self) -> Iterator[str]:
    return iter(self._readers)

  def __len__(self) -> int:
    return len(self._readers)

  def __repr__(self) -> str:
    return f'Wiring({self._readers!r})'

  def folded(self, variables: Mapping) -> dict:
    """Returns the `folded` collection with every spike norm in kernels.

    Raises:
      InputError: the variables are not those of this network.
    """
    readers = self._readers
    if _abstract(variables) != self._variables:  # for example, already folded
      readers = _readers(self._model, _abstract(variables), self._x)
    if readers != self._readers:
      raise InputError(
        'expected the readers_of_spikes of the network that the variables '
        f'belong to, which are {readers}, got {self._readers}'
      )
    # The activations are dead code here and are not compiled.
    function = jax.jit(lambda v: _pass(self._model, v, self._x))
    try:
      folded = function(variables)
    except jax.errors.UnexpectedTracerError as error:
      raise InputError(
        'expected every layer in an nn.cond, nn.while_loop, ... to belong to '
        'the module that is passed to its function, got one from outside, into '
        'which no norm of spikes can be folded'
      ) from error
    return _counted(folded, readers)


def readers_of_spikes(model: nn.Module, variables: Mapping, x: Any) -> Wiring:
  """Returns which layers read which spike norm, {norm: layers}.

  Traces the network without computing anything: normed spikes (`layers.Spikes`)
  have a type that only certain layers can read, and these layers record the
  norm.

  Args:
    model: the network.
    variables: its variables, or their shapes.
    x: an input, or its shape (`jax.ShapeDtypeStruct`).

  Returns:
    Paths such as 'stage1_block1_conv1', or 'stage2_blocks/conv1' in a block.

  Raises:
    InputError: a spike norm cannot be folded; the message names it.

  Example:
    >>> import functools
    >>> from mpbn_jax import build_model
    >>> model = build_model({'name': 'spiking_cnn', 'spike_norm': 'psp_bn'})
    >>> x = jax.ShapeDtypeStruct((1, 8, 8, 1), 'float32')
    >>> init = functools.partial(model.init, train=False)
    >>> variables = jax.eval_shape(init, jax.random.key(0), x)
    >>> readers_of_spikes(model, variables, x)['lif4/spike_norm']
    ('head',)
  """
  x = jax.ShapeDtypeStruct(x.shape, x.dtype)
  variables = _abstract(variables)
  readers = _readers(model, variables, x)
  return Wiring(readers, model=model, variables=variables, x=x)


def _abstract(variables):
  """Returns the shapes and dtypes of variables in comparable form."""
  return jax.eval_shape(lambda: variables)


def _pass(model, variables, x):
  """Returns the `folded` collection after the folding pass."""
  x = jnp.zeros(x.shape, x.dtype)
  y, updates = model.apply(variables, x, train=False, mutable=['folded'])
  for leaf in jax.tree.leaves(y):
    if isinstance(leaf, Spikes):
      raise InputError(
        'expected an output that is an array, got the normed spikes of '
        f'{leaf.source!r}: this norm cannot be folded (let an Identity read '
        'them, which returns an array)'
      )
  return updates.get('folded', {})


def _run(model, variables, x):
  model.apply(variables, jnp.zeros(x.shape, x.dtype), train=False)


def _readers(model, variables, x):
  """Returns {norm: layers}; raises if a norm cannot be folded."""
  try:
    folded = jax.eval_shape(lambda v: _pass(model, v, x), variables)
    # Every layer rejects spikes of norms other than the one that it absorbed.
    jax.eval_shape(lambda v: _run(model, v, x), {**variables, 'folded': folded})
  except InputError:
    raise
  except Exception as error:
    _check_runs(model, variables, x)
    reason = str(error).strip().split('\n')[0]
    raise InputError(
      'expected a network whose norms of spikes can be folded, got one that '
      f'runs but cannot be traced for that: {type(error).__name__}: {reason}'
    ) from error
  readers = absorption.readers(folded)
  for norm in _norms_of_spikes(variables.get('params', {})):
    if '/'.join(norm) not in readers:
      raise InputError(_why_not_read(norm, folded))
  return {norm: tuple(sorted(readers[norm])) for norm in sorted(readers)}


def _check_runs(model, variables, x):
  """Raises the network's own errors."""
  try:
    jax.eval_shape(lambda v: _run(model, v, x), variables)
  except flax.errors.FlaxError as error:
    reason = str(error).strip().split(' (http')[0]
    raise InputError(
      f'expected the variables of the network, got others: {reason}'
    ) from error


def _norms_of_spikes(params):
  """Returns the paths of the spike norms that fold."""
  norms = {name: n for name, n in NORMS.items() if n.place == 'spike'}
  leaves = traverse_util.flatten_dict(params)
  return {
    path[:-2]
    for path in leaves
    if len(path) > 1 and path[-2] in norms and norms[path[-2]].fold
  }


def _why_not_read(norm, folded):
  if (*norm, 'readers') in traverse_util.flatten_dict(folded):
    return (
      f'expected a layer that reads the normed spikes of {"/".join(norm)!r}, '
      'got none: remove this norm, or let a ConvNorm, DenseNorm, Readout or '
      'Identity read them'
    )
  return (
    f'expected the network to use {"/".join(norm)!r} in evaluation, got none '
    'that can be folded: remove this norm, or, if an nn.scan or nn.vmap is '
    'around it, let that pass `folded` on (variable_axes)'
  )


def _counted(folded, readers):
  """Returns the collection with the number of readers of every norm."""
  leaves = traverse_util.flatten_dict(folded)
  for norm, layers in readers.items():
    count = (*norm.split('/'), 'readers')
    leaves[count] = jnp.full_like(leaves[count], len(layers))
  return traverse_util.unflatten_dict(leaves)
