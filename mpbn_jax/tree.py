"""Finding the normalizations in a tree of variables."""

import functools
from collections.abc import Iterator, Mapping

import jax

from mpbn_jax import norm as norms


def leaves_of(name: str) -> tuple[frozenset[str], frozenset[str]]:
  """Returns the names of a norm's (parameters, statistics and constants)."""
  return _leaves(norms.NORMS[name])


@functools.lru_cache  # of the norm: another may take its name
def _leaves(norm):
  settings = dict.fromkeys(norm.settings, 1)
  params, stats = jax.eval_shape(lambda: norm.init((1, 1, 1), **settings))
  return frozenset(params), frozenset(stats)


def _is_ours(name, params, stats, layer):
  """Returns whether a module is a norm of this package.

  A network may contain a module of another package with the same name, such as
  flax's BatchNorm named 'bn'. Our norms store their constants.

  Args:
    name: key in the params.
    params: its params.
    stats: its batch_stats, {} if it has none.
    layer: params of the layer to which it belongs.
  """
  if name not in norms.NORMS or not isinstance(params, Mapping):
    return False
  own_params, own_stats = leaves_of(name)
  if set(params) != own_params:
    return False
  if own_stats <= set(stats) | {'v_th'}:  # v_th may be learned
    return True
  # Ours but incomplete: the folds report what is missing. Only the names of
  # norms after convolutions are common enough to be those of foreign modules.
  lost = not stats and 'kernel' in layer
  return lost or norms.NORMS[name].place != 'conv'


def norms_at(
  variables: Mapping, place: str
) -> Iterator[tuple[tuple[str, ...], str]]:
  """Yields (path of the layer, name of its norm) for every norm at a place."""

  def walk(layer, stats, path):
    for key, child in layer.items():
      own = stats.get(key)
      own = own if isinstance(own, Mapping) else {}
      if _is_ours(key, child, own, layer):
        if norms.NORMS[key].place == place:
          yield path, key
      elif isinstance(child, Mapping):
        yield from walk(child, own, (*path, key))

  yield from walk(
    variables.get('params', {}), variables.get('batch_stats', {}), ()
  )
