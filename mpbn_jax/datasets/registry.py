"""The registry of data sets."""

import importlib
from typing import Any

from mpbn_jax.datasets.base import Spec
from mpbn_jax.errors import unknown

# {name: (module, name of its `Spec`)}; modules are imported when needed. A
# module's `load(spec, config, *, num_steps)` returns the splits; the optional
# `prepare(spec, config, *, num_steps)` downloads and converts the files that
# `load` reads. `arrays.from_arrays` registers an object in place of both.
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
  """Returns (object with `load` and optionally `prepare`, the `Spec`).

  Raises:
    InputError: the name is unknown (lists the known ones).
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
  """Returns the description of a data set without reading data.

  Args:
    name: a key of `DATASETS`.

  Raises:
    InputError: the name is unknown (lists the known ones).

  Example:
    >>> get_spec('cifar10').image_shape
    (32, 32, 3)
  """
  return find(name)[1]
