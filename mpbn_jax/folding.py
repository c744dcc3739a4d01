"""How do trained variables become those of a network without normalization?

Pure functions on the tree of variables. The tree says itself what is where: a
layer's normalization stands under its name (`layers.py`), so no model is
needed and nothing can disagree with it.
"""

from collections.abc import Callable, Iterator, Mapping

import jax

from mpbn_jax import norm as norms
from mpbn_jax.errors import InputError

Variables = dict


def fold(
  variables: Mapping,
  *,
  v_th: jax.Array | float = 0.5,
  eps: float = norms.EPS,
) -> Variables:
  """Returns the variables with every membrane norm folded into thresholds.

      theta = (v_th - bias) * sqrt(var + eps) / scale + mean   (Eq. 10, 13)
      polarity = -1 where scale < 0, else +1
      s = 1 if polarity * u > polarity * theta else 0

  The formula holds for real numbers. In float32 it misses the number that
  separates firing from not firing by some units in the last place, so that
  number is found by bisection over the very predicate that the unfolded
  network evaluates (`norm.separating_threshold`): for every finite u for
  which u - mean is finite, both decide alike. Where scale = 0 the threshold
  is -inf (bias > v_th: fires always) or +inf (never fires).

  A pure function, and jit-able. The result is an ordinary set of variables of
  the same model, with a `threshold` collection beside the others; they are
  kept (`strip` drops what is no longer read).

  Args:
    variables: {'params', 'batch_stats', ...} of a network, as from
      `model.init` or a checkpoint.
    v_th: firing threshold, `config.model.v_th`; layers that learned theirs
      have it in their variables.
    eps: added to variances, `config.model.eps`.

  Returns:
    `variables` and {'threshold': {<layer>: {'threshold', 'polarity'}}}, [C]
    channel-wise or [H, W, C] element-wise.

  Raises:
    InputError: no membrane norm in the variables, or no running statistics.

  Example:
    >>> folded = fold(variables, v_th=0.5)
    >>> logits = model.apply(strip(folded), x, train=False)
  """
  if not _has_norm(variables, 'membrane'):
    if 'threshold' in variables:
      raise InputError(
        'expected the variables of a trained network, got ones that are '
        'folded and stripped already: fold the unfolded checkpoint'
      )
    raise InputError(
      'expected variables with a normalization of the membrane potential '
      f'({", ".join(norms.names_at("membrane")[1:])}), got none: there is '
      "nothing to fold (was the model built with membrane_norm='none'?)"
    )

  def fold_neurons(name, params, stats, layer):
    own = layer.get('v_th', v_th)
    return norms.NORMS[name].fold(params, stats, v_th=own, eps=eps)

  folded = _collect(variables, 'membrane', fold_neurons)
  return {**variables, 'threshold': folded}


def fold_convolutions(
  variables: Mapping, *, eps: float = norms.EPS
) -> Variables:
  """Returns the variables with every current norm folded into its convolution.

      kernel' = kernel * g, bias' = (bias - mean) * g + norm_bias,
      g = scale / sqrt(var + eps)

  for bn and tdbn. BNTT folds into a kernel and a bias of each step, TEBN into a
  kernel, a bias and a factor of each step.

  Other than `fold` this changes rounding: a spike may flip where its
  potential is within rounding of the threshold. `evaluate.compare` counts.

  Args:
    variables: folded (`fold`) or not; the two steps commute.
    eps: added to variances, `config.model.eps`.

  Returns:
    `variables` and {'folded': {<layer>: {'kernel', 'bias', 'factor'?}}}.

  Raises:
    InputError: no convolution with a normalization that folds.
  """
  if not _has_norm(variables, 'current'):
    raise InputError(
      'expected variables with a normalization after the convolutions, got '
      "none: there is nothing to fold (current_norm='none', or folded and "
      'stripped already)'
    )

  def fold_convolution(name, params, stats, layer):
    norm = norms.NORMS[name]
    if norm.fold is None:
      raise InputError(f'{name!r} does not fold: {norm.why_not}')
    return norm.fold(params, stats, layer['kernel'], layer.get('bias'), eps=eps)

  folded = _collect(variables, 'current', fold_convolution)
  return {**variables, 'folded': folded}


def strip(variables: Mapping) -> Variables:
  """Returns folded variables without what the fold made useless.

  Drops the params and statistics of folded membrane norms, and the params
  and statistics of folded convolutions. That the stripped network runs is the
  proof that the normalization is gone. Keep the unstripped checkpoint: it can
  be trained further.

  Raises:
    InputError: the variables are not folded.
  """
  if 'threshold' not in variables and 'folded' not in variables:
    raise InputError(
      'expected folded variables (a `threshold` or `folded` collection), '
      f'got the collections {", ".join(variables)}: call `fold` first'
    )

  def keep(path, leaf):
    del leaf
    *layer, last = path
    if layer and _is_norm(layer[-1], 'membrane'):
      return not _contains(variables.get('threshold', {}), layer[:-1])
    if layer and _is_norm(layer[-1], 'current'):
      return not _contains(variables.get('folded', {}), layer[:-1])
    if last in ('kernel', 'bias'):
      return not _contains(variables.get('folded', {}), layer)
    return True

  kept = {
    name: _filter(variables.get(name, {}), keep)
    for name in ('params', 'batch_stats')
  }
  others = {k: v for k, v in variables.items() if k not in kept}
  return {**{k: v for k, v in kept.items() if v}, **others}


def _is_norm(key, place):
  return key in norms.NORMS and norms.NORMS[key].place == place


def _norms(params, place, path=()) -> Iterator[tuple[tuple[str, ...], str]]:
  """Yields (path of the layer, name of its norm) of every norm at a place."""
  for key, child in params.items():
    if _is_norm(key, place):
      yield path, key
    elif isinstance(child, Mapping):
      yield from _norms(child, place, (*path, key))


def _has_norm(variables, place):
  return any(True for _ in _norms(variables.get('params', {}), place))


def _collect(variables, place, function: Callable) -> dict:
  """Returns {layer path: function(name, params, stats, layer params)}."""
  result = {}
  for path, name in _norms(variables['params'], place):
    layer = _at(variables['params'], path)
    stats = _at(variables.get('batch_stats', {}), (*path, name))
    if stats is None:
      raise InputError(
        f'expected batch_stats/{"/".join((*path, name))} with the running '
        'statistics, got none: give the params AND the batch_stats'
      )
    node = result
    for key in path:
      node = node.setdefault(key, {})
    node.update(function(name, layer[name], stats, layer))
  return result


def _at(tree, path):
  for key in path:
    if not isinstance(tree, Mapping) or key not in tree:
      return None
    tree = tree[key]
  return tree


def _contains(tree, path):
  return _at(tree, path) is not None


def _filter(tree, keep, path=()):
  result = {}
  for key, child in tree.items():
    if isinstance(child, Mapping):
      child = _filter(child, keep, (*path, key))
      if child:
        result[key] = child
    elif keep((*path, key), child):
      result[key] = child
  return result
