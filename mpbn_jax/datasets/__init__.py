"""Which data sets are there, and how is one loaded from a configuration?"""

import importlib
from collections.abc import Mapping

from mpbn_jax.datasets import augment, base
from mpbn_jax.datasets.base import Dataset, Spec
from mpbn_jax.errors import InputError, unknown

# Name to (module, its `Spec`); imported when it is asked for. Of the module,
# where it has them: `load(spec, config, *, num_steps)` returns the splits,
# `prepare(spec, config, *, num_steps)` downloads and converts what it reads.
DATASETS: dict[str, tuple[str, str]] = {
  'cifar10': ('mpbn_jax.datasets.cifar', 'CIFAR10'),
  'cifar100': ('mpbn_jax.datasets.cifar', 'CIFAR100'),
  'cifar10_dvs': ('mpbn_jax.datasets.cifar10_dvs', 'SPEC'),
  'digits': ('mpbn_jax.datasets.digits', 'SPEC'),
  'imagenet': ('mpbn_jax.datasets.imagenet', 'SPEC'),
  'photo_digits': ('mpbn_jax.datasets.photo_digits', 'SPEC'),
}


def get_spec(name: str) -> Spec:
  """Returns what is known of a data set without reading it.

  Raises:
    InputError: unknown name (lists the known ones).
  """
  if name not in DATASETS:
    raise unknown('dataset', name, DATASETS)
  module, attribute = DATASETS[name]
  return getattr(importlib.import_module(module), attribute)


def augmentations(config: Mapping) -> tuple[augment.Augmentation, ...]:
  """Returns the augmentations that `config.data` asks for, in their order."""
  asked = []
  if config['shift']:
    asked.append(augment.random_shift(config['shift']))
  if config['roll']:
    asked.append(augment.random_roll(config['roll']))
  if config['flip']:
    asked.append(augment.random_flip())
  if config['auto_augment']:
    from mpbn_jax.datasets import autoaugment

    asked.append(
      augment.Augmentation(
        name='auto_augment',
        draw=lambda rng, count: autoaugment.draw(rng, count=count),
        apply=autoaugment.apply,
      )
    )
  if config['cutout']:
    asked.append(augment.random_cutout(config['cutout']))
  return tuple(asked)


def load_dataset(config: Mapping, *, num_steps: int) -> Dataset:
  """Returns the data set that `config.data` describes.

  Args:
    config: `config.data`.
    num_steps: T, of data sets of frames.

  Raises:
    InputError: unknown name (lists the known ones); not to be had here.
  """
  spec = get_spec(config['name'])
  if config['auto_augment'] and spec.image_shape[-1] != 3:
    raise InputError(
      'data.auto_augment needs images of 3 channels, got '
      f'{spec.image_shape[-1]} of {spec.name!r}: set data.auto_augment=false'
    )
  if config['fake']:
    return base.fake(
      spec,
      num_steps=num_steps,
      count=config['fake'],
      augmentations=augmentations(config),
    )
  module = importlib.import_module(DATASETS[spec.name][0])
  if not hasattr(module, 'load'):
    raise InputError(
      f'{spec.name!r} cannot be read yet: set --config.data.fake=256 to try '
      'its configuration on random examples, or --config.data.name=digits'
    )
  return Dataset(
    spec, module.load(spec, config, num_steps=num_steps), augmentations(config)
  )
