"""Directories of small CIFAR data sets: prepared, loaded and compared."""

import fake_cifar
import numpy as np
import runs
from mpbn_jax.configs.default import get_config

from mpbn_jax.datasets import load_dataset, prepare_dataset
from mpbn_jax.datasets.cifar import archives


def publish(monkeypatch, **settings):
  """Puts the small archives in the official ones' place."""
  for kept in ('ARCHIVES', 'COUNTS'):  # `monkeypatch` restores them
    monkeypatch.setattr(archives, kept, getattr(archives, kept))
  fake_cifar.publish(**settings)


def options(directory, name='cifar10'):
  return f'--config.data.name={name}', f'--config.data.dir={directory}'


def config(directory, name='cifar10'):
  data = get_config().data.to_dict()
  return data | {'name': name, 'dir': str(directory)}


def prepare(directory, name='cifar10'):
  prepare_dataset(config(directory, name), num_steps=1)


def load(directory, name='cifar10'):
  return load_dataset(config(directory, name), num_steps=1).splits


def home(directory, name='cifar10'):
  return directory / f'{name}_raw' / '1.0.0'


def files(directory):
  """Returns the files below, but for the lock, which stays."""
  return [name for name in runs.snapshot(directory) if '.lock' not in name]


def check_equal(splits, expected):
  assert splits.keys() >= expected.keys()
  for name, split in expected.items():
    assert splits[name].images.dtype == np.uint8
    assert splits[name].labels.dtype == np.int32
    np.testing.assert_array_equal(splits[name].images, split.images)
    np.testing.assert_array_equal(splits[name].labels, split.labels)
