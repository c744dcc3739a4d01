"""How do trained variables become those of a network without normalization?

Pure functions on the tree of variables. The tree says itself what is where: a
layer's normalization stands under its name (`layers/`), so no model is
needed and nothing can disagree with it.
"""

import functools
from collections.abc import Callable, Iterator, Mapping

import jax

from mpbn_jax import norm as norms
from mpbn_jax.errors import InputError
from mpbn_jax.wiring import Wiring

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

  def fold_neurons(path, name, params, stats, layer):
    del path

    def function(params, stats, v_th):
      return norms.NORMS[name].fold(params, stats, v_th=v_th, eps=eps)

    own = layer.get('v_th')
    if own is None:
      return function(params, stats, v_th)
    for _ in range(own.ndim - 1):  # blocks, stacked
      function = jax.vmap(function)
    return function(params, stats, own)

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
    variables: folded otherwise or not; the folds commute. What is folded
      already stays as it is.
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

  def fold_convolution(path, name, params, stats, layer):
    norm = _foldable(name)
    function = functools.partial(norm.fold, eps=eps)
    for _ in range(_stacked(norm, params)):
      function = jax.vmap(function)
    kernel = _kernel(variables, path)
    if kernel is None:
      raise InputError(
        f'expected a kernel beside {"/".join((*path, name))!r}, as in a '
        f'ConvNorm, got none: give a layer that is not its {name!r} another '
        'name'
      )
    return function(params, stats, kernel, layer.get('bias'))

  folded = _collect(variables, 'current', fold_convolution, done='bias')
  return {**variables, 'folded': _merged(variables.get('folded', {}), folded)}


def fold_spike_norms(variables: Mapping, *, readers: Wiring) -> Variables:
  """Returns the variables with every norm of spikes folded into its readers.

      psp_bn(a) = gain * a, gain = scale / sqrt(moment + eps), so
      kernel' = gain * kernel along the input channels

  of every convolution and linear layer that reads them; an identity shortcut
  becomes a scale of each channel. With moments of each step there is a kernel
  of each step. The network multiplies its kernels in evaluation anyway; the
  fold keeps the products.

  Args:
    variables: folded otherwise or not; the folds commute. What is folded
      already stays as it is.
    readers: the `readers_of_spikes` of their network.

  Returns:
    `variables` and {'folded': {<norm's layer>: {'readers'}, <reader>:
    {'kernel'} or {'scale'}, and 'reads'}}; `readers` counts them, `reads` says
    whose spikes the layer may read from now on.

  Raises:
    InputError: no norm of the spikes; one that does not fold, with the reason
      (neunorm, psp_ln); variables of another network.
    TypeError: other readers than those of `readers_of_spikes`.
  """
  if not isinstance(readers, Wiring):
    raise TypeError(
      'expected the readers that mpbn_jax.readers_of_spikes(model, variables, '
      f'x) returns, got {type(readers).__name__}: pass these'
    )
  if not _has_norm(variables, 'spikes'):
    raise InputError(
      'expected variables with a normalization of the spikes, got none: there '
      "is nothing to fold (spike_norm='none', or folded and stripped already)"
    )
  for path, name in _norms(variables['params'], 'spikes'):
    _foldable(name)
    _running_statistics(variables, path, name)
  return {**variables, 'folded': readers.folded(variables)}


def fold_all(
  variables: Mapping,
  *,
  readers: Wiring | None = None,
  v_th: jax.Array | float = 0.5,
  eps: float = norms.EPS,
) -> Variables:
  """Returns the variables with every normalization folded that they have.

  `fold`, `fold_convolutions` and `fold_spike_norms`, where there is anything
  for them to fold.

  Args:
    variables: of a network.
    readers: the `readers_of_spikes` of their network; only norms of the spikes
      need them.
    v_th: firing threshold, `config.model.v_th`.
    eps: added to variances, `config.model.eps`.

  Raises:
    InputError: a norm that does not fold, with the reason; none at all.
  """
  places = [place for place in norms.PLACES if _has_norm(variables, place)]
  if not places:
    raise InputError(
      'expected variables with a normalization, got none: there is nothing to '
      'fold (every norm is none, or folded and stripped already)'
    )
  if 'membrane' in places:
    variables = fold(variables, v_th=v_th, eps=eps)
  if 'current' in places:
    variables = fold_convolutions(variables, eps=eps)
  if 'spikes' in places:
    variables = fold_spike_norms(variables, readers=readers)
  return variables


def strip(variables: Mapping) -> Variables:
  """Returns folded variables without what the fold made useless.

  Drops the params and statistics of norms that were folded, and the kernels
  and biases that folded ones replace. That the stripped network runs is the
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

  folded = variables.get('folded', {})

  def keep(path, leaf):
    del leaf
    *layer, last = path
    if layer and _is_norm(layer[-1], 'membrane'):
      return not _contains(variables.get('threshold', {}), layer[:-1])
    if layer and _is_norm(layer[-1], 'current'):
      return not _contains(folded, (*layer[:-1], 'bias'))
    if layer and _is_norm(layer[-1], 'spikes'):
      return not _contains(folded, (*layer[:-1], 'readers'))
    return not _contains(folded, path)

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


def _collect(variables, place, function: Callable, *, done='') -> dict:
  """Returns {layer path: function(path, name, params, stats, layer params)}.

  Without the layers for which `folded` has the leaf `done`.
  """
  result: dict = {}
  for path, name in _norms(variables['params'], place):
    if done and _contains(variables.get('folded', {}), (*path, done)):
      continue
    layer = _at(variables['params'], path)
    stats = _running_statistics(variables, path, name)
    new = function(path, name, layer[name], stats, layer)
    result = _merged(result, _nested(path, new))
  return result


def _running_statistics(variables, path, name):
  stats = _at(variables.get('batch_stats', {}), (*path, name))
  if stats is None and _foldable(name):
    raise InputError(
      f'expected batch_stats/{"/".join((*path, name))} with the running '
      'statistics, got none: give the params AND the batch_stats'
    )
  return stats


def _stacked(norm, params):
  """Returns how many first axes of a norm's variables count blocks."""
  own = 2 if norm.per_step == 'scale' else 1
  return params['scale'].ndim - own


def _foldable(name):
  norm = norms.NORMS[name]
  if norm.fold is None:
    raise InputError(f'{name!r} does not fold: {norm.why_not}')
  return norm


def _kernel(variables, layer):
  """Returns the kernel of a layer, the folded one where there is one."""
  kernel = _at(variables.get('folded', {}), (*layer, 'kernel'))
  if kernel is None:
    kernel = _at(variables.get('params', {}), (*layer, 'kernel'))
  return kernel


def _nested(path, leaves):
  for key in reversed(path):
    leaves = {key: leaves}
  return leaves


def _merged(tree, other):
  """Returns a tree with the leaves of both, the other's where both have one."""
  if not (isinstance(tree, Mapping) and isinstance(other, Mapping)):
    return other
  common = {k: _merged(tree[k], other[k]) for k in tree.keys() & other.keys()}
  return {**tree, **other, **common}


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
