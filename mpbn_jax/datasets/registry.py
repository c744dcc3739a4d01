"""The registry of data sets."""

import importlib
from typing import Any

from mpbn_jax.datasets.base import Spec
from mpbn_jax.errors import unknown

# Name to (module, name of its `Spec`); the module is imported when it is
# needed. `load(spec, config, *, num_steps)` of the module returns the splits;
# `prepare(spec, config, *, num_steps)`, if there is one, downloads and converts
# what `load` reads. `arrays.from_arrays` registers an object in place of both.
DATASETS: dict[str, Any] = {
  'cifar10': ('mpbn_jax.datasets.cifar', 'CIFAR10'),
  'cifar100': ('mpbn_jax.datasets.cifar', 'CIFAR100'),
  'cifar10_dvs': ('mpbn_jax.datasets.events.cifar10_dvs', 'SPEC'),
  'digits': ('mpbn_jax.datasets.embedded.digits', 'SPEC'),
  'dvs_gesture': ('mpbn_jax.datasets.events.dvs_gesture', 'SPEC'),
  'event_digits': ('mpbn_jax.datasets.embedded.event_digits', 'SPEC'),
  'imagenet': ('mpbn_jax.datasets.imagenet', 'SPEC'),
  'nmnist': ('mpbn_jax.datasets.events.nmnist', 'SPEC'),
  'photo_digits': ('mpbn_jax.datasets.embedded.photo_digits', 'SPEC'),
}


def find(name: str) -> tuple[Any, Spec]:
  """Returns (what has `load`, and perhaps `prepare`; the `Spec`).

  Raises:
    InputError: unknown name (lists the known ones).
  """
  if name not in DATASETS:
    raise unknown('dataset', name, DATASETS)
  entry = DATASETS[name]
  if not isinstance(entry, tuple):
    return entry, entry.spec
  module, attribute = entry
  loader = importlib.import_module(module)
  return loader, getattr(loader, attribute)


def get_spec(name: str) -> Spec:
  """Returns the description of a data set; reads no data.

  Raises:
    InputError: unknown name (lists the known ones).
  """
  return find(name)[1]
