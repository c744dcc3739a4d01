"""Which data sets are there? One module each, imported when it is asked for."""

import importlib
from collections.abc import Mapping

from mpbn_jax.datasets.base import Dataset
from mpbn_jax.errors import unknown

# Name to the module whose `load(**settings)` returns the `Dataset`.
DATASETS: dict[str, str] = {'digits': 'mpbn_jax.datasets.digits'}


def load_dataset(config: Mapping) -> Dataset:
  """Returns the data set that `config.data` describes.

  Args:
    config: a mapping with `name`, a key of `DATASETS`, and `shift`.

  Raises:
    InputError: unknown name (lists the known ones).
  """
  if config['name'] not in DATASETS:
    raise unknown('dataset', config['name'], DATASETS)
  module = importlib.import_module(DATASETS[config['name']])
  return module.load(shift=config['shift'])
