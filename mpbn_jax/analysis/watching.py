"""Functions of every neuron layer, computed as soon as the layer has run."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from mpbn_jax.errors import InputError
from mpbn_jax.evaluation import recorded, stacked_axes
from mpbn_jax.layers import LIF
from mpbn_jax.layers.potentials import COLLECTION
from mpbn_jax.layers.spikes import closed, opened

_GIVEN, _FOUND = 'given', 'found'


def shapes_of(model: nn.Module, variables: Mapping, x: Any) -> dict[str, dict]:
  """Returns what `recorded` returns of each layer, as shapes.

  Args:
    model: the network.
    variables: its variables, or their shapes.
    x: an input, or its shape.

  Raises:
    InputError: a layer is stacked along another axis than the first.
  """

  def run(variables, x):
    return recorded(model, variables, x, potentials=True)[1]

  layers = jax.eval_shape(run, variables, x)
  for name, layer in layers.items():
    axes = stacked_axes(layer)
    leading = axes == tuple(range(len(axes)))
    if not leading or layer['before'].shape != layer['spikes'].shape:
      raise InputError(
        f'expected the potentials and spikes of {name!r} stacked along their '
        f'first axis, got shapes {layer["before"].shape} and '
        f'{layer["spikes"].shape}: give the nn.scan or nn.vmap around it '
        "variable_axes={'potentials': 0, 'intermediates': 0, ...}"
      )
  return layers


def watched(
  model: nn.Module,
  variables: Mapping,
  x: jax.Array,
  function: Callable[[dict, Any], Any],
  *,
  given: Mapping[str, Any],
) -> tuple[jax.Array, dict[str, Any]]:
  """Returns (logits, {layer: function(what it recorded, given)}).

  The next layer waits for the result, so that no more than one layer's spikes
  and potentials are in memory. `recorded` returns those of all layers.

  Args:
    model: a network with `LIF` layers.
    variables: its variables, folded or not.
    x: an input.
    function: (recorded, given) -> a tree of small arrays.
      `recorded` has the spikes and potentials of a layer, or of one block
      inside a scan, [B, T, ..., C].
    given: {layer: arrays}, with one more leading axis for each scan around the
      layer; the names are those of `recorded`. A layer that is not there is
      given None.

  Returns:
    Results with one more leading axis for each scan.
  """
  results: dict[str, tuple[tuple[str, ...], int]] = {}

  def note(call, args, kwargs, context):
    y = call(*args, **kwargs)
    module = context.module
    if not isinstance(module, LIF) or context.method_name != '__call__':
      return y
    run = len(module.variables[COLLECTION].get(_FOUND, ()))
    path = '/'.join(module.path)
    name = f'{path}({run + 1})' if run else path
    of_layer = {
      key: values[-1]
      for key, values in module.variables[COLLECTION].items()
      if key not in (_GIVEN, _FOUND)
    }
    of_layer['spikes'] = module.variables['intermediates']['spikes'][-1]
    own = module.get_variable(COLLECTION, _GIVEN, {}).get(str(run))
    result = function(of_layer, own)
    results[name] = module.path, run
    module.sow(COLLECTION, _FOUND, result)
    (array, *rest), form = opened(y)
    return closed((after(array, result), *rest), form)

  tree: dict = {}
  for name, arrays in given.items():
    path, _, which = name.rstrip(')').partition('(')
    key = (*path.split('/'), _GIVEN, str(int(which or 1) - 1))
    tree[key] = arrays
  with nn.intercept_methods(note):
    logits, kept = model.apply(
      {**variables, COLLECTION: traverse_util.unflatten_dict(tree)},
      x,
      train=False,
      mutable=['intermediates', COLLECTION],
    )
  found = {}
  for layer, (at, number) in results.items():
    node = kept[COLLECTION]
    for part in at:
      node = node[part]
    found[layer] = node[_FOUND][number]
  return logits, found


def after(x: jax.Array, result: Any) -> jax.Array:
  """Returns x, which now depends on a result: a tree of arrays.

  By a condition that is always true, which no compiler knows; a barrier would
  be removed before operations are ordered.
  """
  smallest = [
    jnp.nan_to_num(leaf.astype(jnp.float32).min())
    for leaf in jax.tree.leaves(result)
  ]
  always = jnp.stack(smallest).min() >= jnp.finfo(jnp.float32).min
  return jnp.where(always, x, jnp.zeros_like(x))
