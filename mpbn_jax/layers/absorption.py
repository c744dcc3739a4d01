"""Absorption of a spike norm: how a layer takes its gain into the kernel.

The folding pass (`wiring.Wiring`) is the one in which the `folded` collection
is mutable and the parameters are not. Afterwards `folded` has, at the path of

* a norm: `readers`, the number of layers into which it was folded;
* a reader: kernel (or scale), and under `reads` the relative path from the
  reader to the norm, so that the reader only accepts spikes of this norm and no
  other layer accepts them.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mpbn_jax.errors import InputError
from mpbn_jax.layers.spikes import Fold, Spikes, check_merged

_UP = 'up'  # number of levels up, followed by the names down to the norm


def may_fold(module: nn.Module) -> bool:
  """Returns whether this is the folding pass."""
  mutable = module.is_mutable_collection
  return mutable('folded') and not mutable('params')


def read(
  module: nn.Module, x: 'jax.Array | Spikes'
) -> tuple[jax.Array, jax.Array | None]:
  """Returns (array, gain): a reader's input, and the gain of its kernel.

  Args:
    module: the reader.
    x: its input.

  Returns:
    The gain is None if there is none or the kernel already includes it.

  Raises:
    InputError: the reader's kernel absorbed another norm, or not this one.
  """
  mark = None
  if module.has_variable('folded', 'reads'):
    mark = _only_path(module.get_variable('folded', 'reads'))
  if not isinstance(x, Spikes):
    if mark is not None:
      _refuse_other(module, mark, 'an array without it')
    return x, None
  check_merged(x, f'{"/".join(module.path)!r}', merged=False)
  way = _way(module.path, x._path)
  if mark is not None:
    if mark != way or x._fold is Fold.OPEN:
      norm = 'the unfolded norm' if mark == way else 'the norm'
      _refuse_other(module, mark, f'{norm} {x.source!r}')
    return x._array, None
  if x._fold is Fold.DONE:
    raise InputError(
      f'expected {"/".join(module.path)!r}, which reads {x.source!r}, to have '
      'this folded norm in its kernel, got variables without it: fold the '
      'unfolded ones with the readers_of_spikes of this network, and let every '
      'nn.scan or nn.vmap of it pass `folded` on'
    )
  if x._fold is Fold.NOW:
    if not module.is_mutable_collection('folded'):
      raise InputError(
        f'expected {"/".join(module.path)!r} to absorb the norm {x.source!r}, '
        'got a transform around it (such as nn.WeightNorm) that keeps `folded` '
        'as it is: this norm cannot be folded'
      )
    leaf = jnp.int32(1)
    for key in reversed(way):
      leaf = {key: leaf}
    module.put_variable('folded', 'reads', leaf)
  return x._array, x._gain


def read_with(
  module: nn.Module,
  x: 'jax.Array | Spikes',
  kernel: jax.Array,
  *,
  groups: int = 1,
) -> tuple[jax.Array, jax.Array]:
  """Returns (array, kernel times the gain of the spikes); see `read`."""
  array, gain = read(module, x)
  if gain is not None:
    kernel = times_gain(kernel, gain, groups=groups)
    keep(module, x, 'kernel', kernel)
  return array, kernel


def keep(module: nn.Module, x: Any, name: str, value: jax.Array) -> None:
  """Stores a reader's product with a gain during the folding pass."""
  if isinstance(x, Spikes) and x._fold is Fold.NOW:
    module.put_variable('folded', name, value)


def times_gain(
  kernel: jax.Array, gain: jax.Array, *, groups: int = 1
) -> jax.Array:
  """Returns a kernel times the gain of each of its input channels.

  Args:
    kernel: [(T,) (k, k,) C_in / groups, C_out].
    gain: [(T,) C_in].
    groups: number of channel groups.
  """
  if kernel.shape[-2] * groups != gain.shape[-1]:  # would silently broadcast
    raise InputError(
      'expected a kernel with an input channel for each channel of the gain, '
      f'got {kernel.shape} in {groups} groups and {gain.shape}'
    )
  # An output channel reads the inputs of its group: [(T,) C_in / groups, C_out]
  # or, with a single group, [(T,) C_in, 1].
  gain = gain.reshape((*gain.shape[:-1], groups, -1)).swapaxes(-1, -2)
  if groups > 1:
    gain = jnp.repeat(gain, kernel.shape[-1] // groups, axis=-1)
  if gain.ndim == 2:
    return kernel * gain
  space = (1, 1) if kernel.ndim >= 4 else ()
  if kernel.ndim in (2, 4):  # the same at every step
    kernel = kernel[None]
  return kernel * gain.reshape((gain.shape[0], *space, *gain.shape[1:]))


def readers(
  folded: Mapping, path: tuple[str, ...] = ()
) -> dict[str, list[str]]:
  """Returns {path of a norm: paths of the layers that absorbed it}."""
  found: dict[str, list[str]] = {}
  for key, child in folded.items():
    if key == 'reads':
      up, *down = _only_path(child)
      source = (*path[: len(path) - int(up.removeprefix(_UP))], *down)
      found.setdefault('/'.join(source), []).append('/'.join(path))
    elif isinstance(child, Mapping):
      for norm, layers in readers(child, (*path, key)).items():
        found.setdefault(norm, []).extend(layers)
  return found


def _way(start, end):
  """Returns the relative path between two paths, which moves with both."""
  common = 0
  for one, other in zip(start, end, strict=False):
    if one != other:
      break
    common += 1
  return (f'{_UP}{len(start) - common}', *end[common:])


def _only_path(tree):
  """Returns the path to the only leaf of a tree."""
  path = ()
  while hasattr(tree, 'items'):
    ((key, tree),) = tree.items()
    path = (*path, key)
  return path


def _refuse_other(module, mark, got):
  up, *down = mark
  path = module.path
  source = '/'.join((*path[: len(path) - int(up.removeprefix(_UP))], *down))
  raise InputError(
    f'expected {"/".join(path)!r}, whose kernel absorbs the norm {source!r}, '
    f'to read only its spikes, got {got} as well: give that a layer of its own'
  )
