"""Data sets, loaded and prepared according to a configuration."""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping

from mpbn_jax.datasets import augment, base
from mpbn_jax.datasets.arrays import from_arrays
from mpbn_jax.datasets.base import Dataset, Spec
from mpbn_jax.datasets.registry import DATASETS, find, get_spec
from mpbn_jax.datasets.splits import divide
from mpbn_jax.errors import InputError, unknown

__all__ = [
  'DATASETS',
  'Dataset',
  'Spec',
  'augmentations',
  'from_arrays',
  'get_spec',
  'load_dataset',
  'prepare_dataset',
]

ON_BAD_IMAGE = ('stop', 'skip')


def augmentations(
  config: Mapping, *, spec: Spec
) -> tuple[augment.Augmentation, ...]:
  """Returns the augmentations of `config.data`, in order.

  Mixup is not included: it mixes images that are already augmented.

  Args:
    config: `config.data`.
    spec: description of the images.

  Raises:
    InputError: an augmentation, or mixup, does not suit the images of `spec`.

  Example:
    >>> from mpbn_jax.configs import digits
    >>> config = digits.get_config().data
    >>> [a.name for a in augmentations(config, spec=get_spec('digits'))]
    ['shift']
  """
  augment.check(config, spec=spec)
  asked = []
  if config['resized_crop']:
    from mpbn_jax.datasets import resized_crop  # needs Pillow

    asked.append(resized_crop.random_resized_crop())
  if config['shift']:
    asked.append(augment.random_shift(config['shift']))
  if config['roll']:
    asked.append(augment.random_roll(config['roll']))
  if config['flip']:
    asked.append(augment.random_flip())
  if config['auto_augment']:
    asked.append(_auto_augment(spec))
  if config['rand_augment']:
    asked.append(_rand_augment(config, spec))
  if config['cutout']:
    asked.append(augment.random_cutout(config['cutout']))
  if config['random_erasing']:
    asked.append(_random_erasing(config['random_erasing'], spec))
  return tuple(asked)


def _auto_augment(spec):
  from mpbn_jax.datasets import autoaugment

  _check_rgb('data.auto_augment', spec, off='false')
  return augment.Augmentation(
    name='auto_augment',
    draw=lambda rng, count: autoaugment.draw(rng, count=count),
    apply=autoaugment.apply,
  )


def _rand_augment(config, spec):
  from mpbn_jax.datasets import randaugment

  _check_rgb('data.rand_augment', spec, off='0')
  return randaugment.random_augment(
    config['rand_augment'], level=config['rand_augment_magnitude']
  )


def _check_rgb(key, spec, *, off):
  if spec.frames or spec.image_shape[-1] != 3 or spec.max_value != 255:
    raise InputError(
      f'{key} needs images of 3 channels with values up to 255, got '
      f'{"frames of " * spec.frames}{spec.image_shape[-1]} with values up to '
      f'{spec.max_value} for {spec.name!r}: set --config.{key}={off}'
    )


def _random_erasing(probability, spec):
  if probability > 1:
    raise InputError(
      f'data.random_erasing must be a probability, got {probability}: set '
      '--config.data.random_erasing=0.25, for example'
    )
  return augment.random_erasing(
    probability,
    image_shape=spec.image_shape,
    # The mean of the training images, which is 0 after normalization.
    fill=tuple(round(mean * spec.max_value) for mean in spec.mean),
  )


def load_dataset(config: Mapping, *, num_steps: int) -> Dataset:
  """Returns the data set that `config.data` describes.

  Args:
    config: `config.data`.
    num_steps: T, for data sets of frames.

  Raises:
    InputError: the name is unknown, or the data cannot be read.

  Example:
    >>> from mpbn_jax.configs import digits
    >>> dataset = load_dataset(digits.get_config().data, num_steps=4)
    >>> len(dataset.splits['train']), dataset.example_shape
    (1078, (8, 8, 1))
  """
  spec = _checked_spec(config)
  asked = augmentations(config, spec=spec)
  splits = divide(
    _read(spec, config, num_steps),
    name=spec.name,
    validation_size=config['validation_size'],
    train_size=config['train_size'],
  )
  loader, _ = find(spec.name)
  checksum = None if config['fake'] else getattr(loader, 'checksum', None)
  dataset = Dataset(
    spec, splits, asked, mixup=config['mixup'], checksum=checksum
  )
  if spec.frames and dataset.example_shape[0] != num_steps:
    raise InputError(
      f'expected recordings of {spec.name!r} in {num_steps} frames, got '
      f'{dataset.example_shape[0]}: set --config.model.num_steps='
      f'{dataset.example_shape[0]}, or convert them to frames again'
    )
  return dataset


def _checked_spec(config):
  if config['on_bad_image'] not in ON_BAD_IMAGE:
    raise unknown('data.on_bad_image', config['on_bad_image'], ON_BAD_IMAGE)
  return get_spec(config['name'])


def _read(spec, config, num_steps):
  """Returns the splits before validation is held out."""
  if config['fake']:
    return base.fake(spec, num_steps=num_steps, count=config['fake'])
  loader, _ = find(spec.name)
  with _readable():
    return loader.load(spec, _in_home(config), num_steps=num_steps)


def _in_home(config):
  """Returns `config.data` with '~' expanded to the home directory."""
  try:
    directory = pathlib.Path(config['dir']).expanduser()
  except RuntimeError as error:
    raise InputError(
      f'expected the home directory of a user, got {config["dir"]!r}: choose '
      'another --config.data.dir'
    ) from error
  return {**config, 'dir': str(directory)}


@contextlib.contextmanager
def _readable() -> Iterator[None]:
  """Turns a system error while reading a file into a one-line error."""
  try:
    yield
  except OSError as error:
    if error.filename is None:
      raise
    raise InputError(
      f'expected files and directories that can be read, got {error.filename} '
      f'({error.strerror}): fix that, or choose another --config.data.dir'
    ) from error


def prepare_dataset(config: Mapping, *, num_steps: int) -> None:
  """Prepares the files that `load_dataset` reads, unless they exist.

  Prints their location.

  Args:
    config: `config.data`.
    num_steps: T, for data sets of frames.

  Raises:
    InputError: the name is unknown, or the data cannot be prepared.

  Example:
    >>> from mpbn_jax.configs import digits
    >>> prepare_dataset(digits.get_config().data, num_steps=4)
    digits needs no preparation: you can train with it right away
  """
  spec = _checked_spec(config)
  loader, _ = find(spec.name)
  if config['fake'] or not hasattr(loader, 'prepare'):
    print(f'{spec.name} needs no preparation: you can train with it right away')
    return
  with _readable():
    loader.prepare(spec, _in_home(config), num_steps=num_steps)
