"""Folding: the normalizations of a trained network, absorbed by its variables.

Pure functions on the tree of variables. The tree is self-describing: the
variables of each normalization are stored under its name (`layers/`), together
with the constants that it uses. Folding therefore needs no model and no
settings, which could disagree with the variables.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import traverse_util

from mpbn_jax import norm as norms
from mpbn_jax.errors import InputError
from mpbn_jax.tree import leaves_of, norms_at
from mpbn_jax.wiring import Wiring

Variables = dict


def fold(variables: Mapping) -> Variables:
  """Returns the variables with every membrane norm folded into thresholds.

      theta = (v_th - bias) * sqrt(var + eps) / scale + mean   (Eq. 10, 13)
      polarity = -1 where scale < 0, else +1
      s = 1 if polarity * u > polarity * theta else 0

  The formula holds for real numbers. In float32 it is off by a few units in
  the last place, so the threshold is found by bisection over the very predicate
  that the unfolded network evaluates (`norm.separating_threshold`): both
  networks decide alike for every u, including infinities and NaN (silent). For
  a neuron that always or never fires, as with scale = 0, polarity * theta is
  -inf or +inf.

  The folded network has the gradient of the unfolded one with respect to its
  input, up to rounding: the surrogate gradient is evaluated at
  gain * (u - theta), which is MPBN(u) - v_th.

  The function is pure and can be jitted. It returns ordinary variables of the
  same model, with an additional `threshold` collection (`strip` drops variables
  that are no longer read).

  Args:
    variables: {'params', 'batch_stats', ...} of a network, from `model.init` or
      a checkpoint. They include v_th and eps.

  Returns:
    `variables` and a collection 'threshold' with {'threshold', 'polarity',
    'gain', 'v_th'} at the path of each layer, [C] channel-wise or [H, W, C]
    element-wise. gain = scale / sqrt(var + eps), 0 where theta is infinite.
    v_th, a scalar, is what a soft reset subtracts; a learned v_th stays in the
    params.

  Raises:
    InputError: the variables have no membrane norm or no running statistics.

  Example:
    >>> folded = fold(variables)
    >>> logits = model.apply(strip(folded), x, train=False)
  """
  if not _has_norm(variables, 'membrane'):
    if 'threshold' in variables:
      raise InputError(
        'expected the variables of a trained network, got ones that are '
        'already folded and stripped: fold the unfolded checkpoint'
      )
    raise InputError(
      'expected variables with a normalization of the membrane potential '
      f'({", ".join(norms.names_at("membrane")[1:])}), got none: there is '
      "nothing to fold (was the model built with membrane_norm='none'?)"
    )

  def fold_neurons(path, name, params, stats, layer):
    constant, learned = stats.get('v_th'), layer.get('v_th')
    if (constant is None) == (learned is None):
      raise InputError(
        f'expected one v_th, batch_stats/{"/".join((*path, name))}/v_th or a '
        f'learned params/{"/".join((*path, "v_th"))}, got '
        f'{"none" if learned is None else "both"}: use the variables as '
        '`init` and training made them'
      )
    function = _over_blocks(norms.NORMS[name].fold, stats)
    if learned is not None:
      return function(params, {**stats, 'v_th': learned})
    return {**function(params, stats), 'v_th': constant}

  folded = _collect(variables, 'membrane', fold_neurons)
  return {**variables, 'threshold': folded}


def fold_convolutions(variables: Mapping) -> Variables:
  """Returns the variables with every current norm folded into its convolution.

      kernel' = kernel * g, bias' = (bias - mean) * g + norm_bias,
      g = scale / sqrt(var + eps)

  for bn and tdbn. BNTT and TAB fold into one kernel and one bias per step, TEBN
  into one kernel, one bias and one factor per step.

  Unlike `fold`, this changes rounding: a spike may flip if its membrane
  potential is within rounding of the threshold. `evaluation.compare` counts
  such spikes.

  Args:
    variables: with or without other folds; the folds commute. Layers that are
      already folded are left unchanged.

  Returns:
    `variables` and a collection 'folded' with {'kernel', 'bias'}, and with
    'factor' for TEBN, at the path of each layer.

  Raises:
    InputError: no convolution has a normalization that folds, or one is wrapped
      in `nn.WeightNorm` or `nn.SpectralNorm`.

  Example:
    >>> folded = fold_convolutions(fold(variables))
    >>> sorted(folded['folded']['conv2'])
    ['bias', 'kernel']
  """
  _check_no_transform(variables)
  if not _has_norm(variables, 'conv'):
    raise InputError(
      'expected variables with a normalization after the convolutions, got '
      "none: there is nothing to fold (conv_norm='none', or already folded and "
      'stripped)'
    )

  def fold_convolution(path, name, params, stats, layer):
    function = _over_blocks(_foldable(name).fold, stats)
    kernel = _kernel(variables, path)
    if kernel is None:
      raise InputError(
        f'expected a kernel beside {"/".join((*path, name))!r}, as in a '
        f'ConvNorm, got none: rename this layer if it is not the {name!r} of a '
        'kernel'
      )
    return function(params, stats, kernel, layer.get('bias'))

  folded = _collect(variables, 'conv', fold_convolution, done='bias')
  return {**variables, 'folded': _merged(variables.get('folded', {}), folded)}


def _check_no_transform(variables):
  """Raises InputError if a wrapper changes kernels before they are used.

  Flax's `nn.WeightNorm` and `nn.SpectralNorm` keep their variables under names
  such as 'conv/kernel/scale'. Folding would ignore them.
  """
  for tree in (variables.get('params', {}), variables.get('batch_stats', {})):
    for path in traverse_util.flatten_dict(tree):
      if '/kernel/' in path[-1]:
        raise InputError(
          'expected convolutions that use their kernels as they are stored, '
          f'got {"/".join(path)!r}, where a wrapper (such as nn.WeightNorm) '
          'changes one: store the changed kernel in its place before folding'
        )


def fold_spike_norms(
  variables: Mapping, *, readers: Wiring | None
) -> Variables:
  """Returns the variables with every spike norm folded into its readers.

      psp_bn(a) = gain * a, gain = scale / sqrt(moment + eps), so
      kernel' = gain * kernel along the input channels

  for every convolution and linear layer that reads the spikes; an identity
  shortcut gets a scale per channel. Moments per time step yield a kernel per
  time step. In evaluation, the network multiplies its kernels by the gain in
  any case; the fold stores the products.

  Args:
    variables: with or without other folds; the folds commute. Layers that are
      already folded are left unchanged.
    readers: the result of `readers_of_spikes` for the same network.

  Returns:
    `variables` and a collection 'folded'. At the path of each norm it has
    `readers`, their number; at the path of each reader its 'kernel' or 'scale',
    and `reads`, the norm whose spikes the layer may read from now on.

  Raises:
    InputError: there is no spike norm; a spike norm does not fold, with the
      reason (neunorm, psp_ln); the variables are those of another network.
    TypeError: `readers` does not come from `readers_of_spikes`.

  Example:
    >>> settings = {'name': 'spiking_cnn', 'width': 4, 'spike_norm': 'psp_bn'}
    >>> model = mpbn_jax.build_model(settings)
    >>> variables = model.init(jax.random.key(0), x, train=False)
    >>> readers = mpbn_jax.readers_of_spikes(model, variables, x)
    >>> sorted(fold_spike_norms(variables, readers=readers)['folded']['head'])
    ['kernel', 'reads']
  """
  if not isinstance(readers, Wiring):
    raise TypeError(
      'expected the readers that mpbn_jax.readers_of_spikes(model, variables, '
      f'x) returns, got {type(readers).__name__}: pass these'
    )
  if not _has_norm(variables, 'spike'):
    raise InputError(
      'expected variables with a normalization of the spikes, got none: there '
      "is nothing to fold (spike_norm='none', or already folded and stripped)"
    )
  for path, name in norms_at(variables, 'spike'):
    _foldable(name)
    _running_statistics(variables, path, name)
  return {**variables, 'folded': readers.folded(variables)}


def fold_all(
  variables: Mapping,
  *,
  readers: Wiring | None = None,
) -> Variables:
  """Returns the variables with all of their normalizations folded.

  Applies those of `fold`, `fold_convolutions` and `fold_spike_norms` that have
  something to fold.

  Args:
    variables: variables of a network.
    readers: the result of `readers_of_spikes` for the same network; needed for
      spike norms only.

  Raises:
    InputError: a norm does not fold, with the reason, or there is none.

  Example:
    >>> sorted(strip(fold_all(variables)))
    ['folded', 'params', 'threshold']
  """
  places = [place for place in norms.PLACES if _has_norm(variables, place)]
  if not places:
    raise InputError(
      'expected variables with a normalization, got none: there is nothing to '
      'fold (every norm is none, or already folded and stripped)'
    )
  folded = dict(variables)
  if 'membrane' in places:
    folded = fold(folded)
  if 'conv' in places:
    folded = fold_convolutions(folded)
  if 'spike' in places:
    folded = fold_spike_norms(folded, readers=readers)
  return folded


def strip(variables: Mapping) -> Variables:
  """Returns folded variables without those that the fold made obsolete.

  Drops the params and statistics of folded norms, and the kernels and biases
  that folded ones replace. The stripped network still runs, which proves that
  the normalization is gone. Keep the unstripped checkpoint for further
  training.

  Args:
    variables: folded variables, from any of the functions above.

  Raises:
    InputError: the variables are not folded.

  Example:
    >>> folded = fold(variables)
    >>> 'lif1' in folded['batch_stats'], 'lif1' in strip(folded)['batch_stats']
    (True, False)
  """
  if 'threshold' not in variables and 'folded' not in variables:
    raise InputError(
      'expected folded variables (a `threshold` or `folded` collection), '
      f'got the collections {", ".join(variables)}: call `fold` first'
    )

  folded = variables.get('folded', {})
  # Leaves at a layer's path that show that its norm was folded.
  signs = {
    'membrane': (variables.get('threshold', {}), 'threshold'),
    'conv': (folded, 'bias'),
    'spike': (folded, 'readers'),
  }
  gone = {
    (*path, name)
    for place, (tree, leaf) in signs.items()
    for path, name in norms_at(variables, place)
    if _contains(tree, (*path, leaf))
  }

  def keep(path, leaf):
    del leaf
    return path[:-1] not in gone and not _contains(folded, path)

  kept = {
    name: _filter(variables.get(name, {}), keep)
    for name in ('params', 'batch_stats')
  }
  others = {k: v for k, v in variables.items() if k not in kept}
  return {**{k: v for k, v in kept.items() if v}, **others}


def _has_norm(variables, place):
  return any(True for _ in norms_at(variables, place))


def _collect(variables, place, function: Callable, *, done='') -> dict:
  """Returns {layer path: function(path, name, params, stats, layer params)}.

  Skips the layers for which `folded` has the leaf `done`.
  """
  result: dict = {}
  for path, name in norms_at(variables, place):
    if done and _contains(variables.get('folded', {}), (*path, done)):
      continue
    layer = _at(variables['params'], path)
    stats = _running_statistics(variables, path, name)
    new = function(path, name, layer[name], stats, layer)
    result = _merged(result, _nested(path, new))
  return result


def _running_statistics(variables, path, name):
  stats = _at(variables.get('batch_stats', {}), (*path, name)) or {}
  missing = leaves_of(name)[1] - {'v_th', *stats}
  if missing and _foldable(name):
    raise InputError(
      f'expected batch_stats/{"/".join((*path, name))} with the running '
      f'statistics and constants, got no {", ".join(sorted(missing))}: pass '
      'both params and batch_stats, as `init` and training made them'
    )
  return stats


def _over_blocks(function, stats):
  """Returns the function mapped over the leading axes of stacked blocks."""
  constant = next((stats[k] for k in norms.CONSTANTS if k in stats), None)
  if constant is None:
    raise InputError(
      f'expected a constant ({", ".join(norms.CONSTANTS)}) among the '
      f'statistics of a norm that folds, got {", ".join(stats) or "none"}: let '
      'its `init` return eps, which says over how many blocks it is stacked'
    )
  for _ in range(jnp.ndim(constant)):  # a scalar of every block
    function = jax.vmap(function)
  return function


def _foldable(name):
  norm = norms.NORMS[name]
  if norm.fold is None:
    raise InputError(f'{name!r} does not fold: {norm.why_not}')
  return norm


def _kernel(variables, layer):
  """Returns the kernel of a layer, the folded one if it exists."""
  kernel = _at(variables.get('folded', {}), (*layer, 'kernel'))
  if kernel is None:
    kernel = _at(variables.get('params', {}), (*layer, 'kernel'))
  return kernel


def _nested(path, leaves):
  for key in reversed(path):
    leaves = {key: leaves}
  return leaves


def _merged(tree, other):
  """Returns the merged trees; leaves of `other` take precedence."""
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
