"""Folded networks on disk: their variables and settings.

One directory holds both, so that the variables are only used with their own
network.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

import mpbn_jax
from mpbn_jax import arrays, job
from mpbn_jax import config as config_lib
from mpbn_jax.arrays import UnreadableError
from mpbn_jax.errors import InputError
from mpbn_jax.files import check_writable, remove_leftovers
from mpbn_jax.lock import hold
from mpbn_jax.models import (
  CONV_SETTINGS,
  LIF_SETTINGS,
  build_model,
  settings_of,
)

_FORMAT = 2  # 1: spike norms beside their neurons
# These affect training and compilation only.
_OF_TRAINING = {
  'autodiff',
  'detach_reset',
  'keep',
  'kernel_init',
  'last_scale',
  'momentum',
  'remat',
  'scale_init',
  'spike_scale_init',
  'stats_groups',
  'surrogate',
  'surrogate_parameter',
  'surrogate_unit',
  'unroll',
}


def folded_path(
  workdir: pathlib.Path, *, step: int, kernels: bool
) -> pathlib.Path:
  """Returns where --mode=fold writes the folded network of a step.

  `folded/640` has folded thresholds only, `folded/640_all` folded kernels too.
  """
  return workdir / 'folded' / f'{step}{"_all" if kernels else ""}'


def save_folded(
  path: pathlib.Path,
  variables: Mapping,
  *,
  model: Mapping,
  step: int,
  kernels: bool,
) -> None:
  """Writes a folded network atomically, replacing an older one.

  In a job, all processes call it, and the first one writes.

  Args:
    path: a directory; its parent is created if needed.
    variables: folded and stripped variables.
    model: `config.model` of the network.
    step: training step of the variables.
    kernels: whether norms were folded into kernels too.

  Raises:
    InputError: it cannot be written, or another process is writing it.
  """
  notes = {
    'format': _FORMAT,
    'model': config_lib.plain(model),
    'step': step,
    'kernels_folded': kernels,
    'mpbn_jax': mpbn_jax.__version__,
    'jax': jax.__version__,
  }
  if job.is_first():
    check_writable(path.parent)
    with hold(path.parent):
      remove_leftovers(path.parent)
      arrays.save(path, dict(variables), notes=notes)
  job.barrier('folded')


def load_folded(
  path: pathlib.Path | str, *, model: nn.Module | None = None
) -> tuple[nn.Module, dict]:
  """Returns (model, variables) of a folded network.

  Args:
    path: a directory that --mode=fold wrote.
    model: the network that the variables should belong to; None builds the
      network that was folded.

  Raises:
    InputError: the directory is missing or damaged; `model` is another network
      (names the differences).

  Example:
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / '640'
    >>> settings = {'name': 'spiking_cnn', 'width': 4, 'num_steps': 3}
    >>> folded = mpbn_jax.strip(mpbn_jax.fold(variables))
    >>> save_folded(path, folded, model=settings, step=640, kernels=False)
    >>> model, folded = load_folded(path)
    >>> model.apply(folded, x, train=False).shape
    (8, 10)
  """
  path = pathlib.Path(path)
  try:
    variables, notes = arrays.read(path)
    if notes.get('format') != _FORMAT:
      raise UnreadableError(
        f'it has format {notes.get("format")}, expected {_FORMAT}'
      )
  except (UnreadableError, PermissionError) as error:
    raise InputError(
      f'expected a folded network in {path}, which cannot be read ({error}): '
      'run --mode=fold again'
    ) from error
  try:
    folded = build_model(notes['model'])
  except InputError as error:
    raise InputError(
      f'expected a network of this version in {path}, got {error}'
    ) from error
  differences = [] if model is None else _differences(model, folded)
  if differences:
    raise InputError(
      f'{path} was folded from another network '
      f'({config_lib.listed(differences)}): leave the model out, since '
      'load_folded returns the right one'
    )
  return folded if model is None else model, variables


def _by_hand(network) -> dict[str, Any]:
  """Returns the settings of factories that no configuration key sets.

  For example {'conv.padding': 0}. A configuration gives the linear layers the
  settings of the convolutions.
  """
  conv, dense, lif = (
    getattr(getattr(network, name), 'keywords', {})
    for name in ('conv', 'dense', 'lif')
  )
  of_conv, of_lif = CONV_SETTINGS.values(), LIF_SETTINGS.values()
  return {
    **{f'conv.{k}': v for k, v in conv.items() if k not in of_conv},
    **{f'dense.{k}': v for k, v in dense.items() if conv.get(k) != v},
    **{f'lif.{k}': v for k, v in lif.items() if k not in of_lif},
  }


def _differences(model, folded) -> list[str]:
  """Returns 'setting: folded -> given' for differences that affect outputs."""

  def settings(network) -> dict[str, Any]:
    values = settings_of(network) | _by_hand(network)
    counted = {
      key: value
      for key, value in values.items()
      if key.rpartition('.')[2] not in _OF_TRAINING
    }
    return {'network': type(network).__name__, **counted}

  ours, theirs = settings(model), settings(folded)
  return [
    f'{name}: {theirs.get(name)!r} -> {ours.get(name)!r}'
    for name in sorted(ours.keys() | theirs.keys())
    if ours.get(name) != theirs.get(name)
  ]
