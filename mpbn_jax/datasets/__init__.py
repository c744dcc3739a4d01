"""The registry of data sets, and loading one from a configuration."""

import contextlib
import importlib
import pathlib
from collections.abc import Iterator, Mapping

from mpbn_jax.datasets import augment, base
from mpbn_jax.datasets.base import Dataset, Spec
from mpbn_jax.datasets.splits import divide
from mpbn_jax.errors import InputError, unknown

# Name to (module, its `Spec`); imported when it is asked for. In the module,
# `load(spec, config, *, num_steps)` returns the splits; where it has one,
# `prepare(spec, config, *, num_steps)` downloads and converts what that reads.
DATASETS: dict[str, tuple[str, str]] = {
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

ON_BAD_IMAGE = ('stop', 'skip')


def get_spec(name: str) -> Spec:
  """Returns what is known of a data set without reading it.

  Raises:
    InputError: unknown name (lists the known ones).
  """
  if name not in DATASETS:
    raise unknown('dataset', name, DATASETS)
  module, attribute = DATASETS[name]
  return getattr(importlib.import_module(module), attribute)


def augmentations(
  config: Mapping, *, spec: Spec
) -> tuple[augment.Augmentation, ...]:
  """Returns the augmentations that `config.data` asks for, in their order.

  All but mixup, which comes last.

  Raises:
    InputError: they, or mixup, do not fit the images of `spec`.
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
  if config['cutout']:
    asked.append(augment.random_cutout(config['cutout']))
  if config['random_erasing']:
    asked.append(_random_erasing(config['random_erasing'], spec))
  return tuple(asked)


def _auto_augment(spec):
  from mpbn_jax.datasets import autoaugment

  if spec.image_shape[-1] != 3 or spec.max_value != 255:
    raise InputError(
      'data.auto_augment needs images of 3 channels up to 255, got '
      f'{spec.image_shape[-1]} up to {spec.max_value} of {spec.name!r}: set '
      '--config.data.auto_augment=false'
    )
  return augment.Augmentation(
    name='auto_augment',
    draw=lambda rng, count: autoaugment.draw(rng, count=count),
    apply=autoaugment.apply,
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
    # The mean of the training images: 0 after normalization.
    fill=tuple(round(mean * spec.max_value) for mean in spec.mean),
  )


def load_dataset(config: Mapping, *, num_steps: int) -> Dataset:
  """Returns the data set that `config.data` describes.

  Args:
    config: `config.data`.
    num_steps: T, of data sets of frames.

  Raises:
    InputError: unknown name (lists the known ones); not to be had here.
  """
  spec = _checked_spec(config)
  asked = augmentations(config, spec=spec)
  splits = divide(
    _read(spec, config, num_steps),
    name=spec.name,
    validation_size=config['validation_size'],
    train_size=config['train_size'],
  )
  dataset = Dataset(spec, splits, asked, mixup=config['mixup'])
  if spec.frames and dataset.example_shape[0] != num_steps:
    raise InputError(
      f'expected recordings of {spec.name!r} in {num_steps} frames, got '
      f'{dataset.example_shape[0]}: set --config.model.num_steps='
      f'{dataset.example_shape[0]}, or frame them anew'
    )
  return dataset


def _checked_spec(config):
  if config['on_bad_image'] not in ON_BAD_IMAGE:
    raise unknown('data.on_bad_image', config['on_bad_image'], ON_BAD_IMAGE)
  return get_spec(config['name'])


def _read(spec, config, num_steps):
  """Returns the splits as the data set has them."""
  if config['fake']:
    return base.fake(spec, num_steps=num_steps, count=config['fake'])
  module = importlib.import_module(DATASETS[spec.name][0])
  with _readable():
    return module.load(spec, _in_home(config), num_steps=num_steps)


def _in_home(config):
  """Returns `config.data` with the home directory in place of a '~'."""
  try:
    directory = pathlib.Path(config['dir']).expanduser()
  except RuntimeError as error:
    raise InputError(
      f'expected the home directory of a user, got {config["dir"]!r}: give '
      'another --config.data.dir'
    ) from error
  return {**config, 'dir': str(directory)}


@contextlib.contextmanager
def _readable() -> Iterator[None]:
  """Makes one line of it when the system does not let its body read a file."""
  try:
    yield
  except OSError as error:
    if error.filename is None:
      raise
    raise InputError(
      f'expected files and directories that can be read, got {error.filename} '
      f'({error.strerror}): mend that, or give another --config.data.dir'
    ) from error


def prepare_dataset(config: Mapping, *, num_steps: int) -> None:
  """Prepares what `load_dataset` reads, and says where; once is enough.

  Args:
    config: `config.data`.
    num_steps: T, of data sets of frames.

  Raises:
    InputError: unknown name (lists the known ones); cannot be prepared here.
  """
  spec = _checked_spec(config)
  module = importlib.import_module(DATASETS[spec.name][0])
  if config['fake'] or not hasattr(module, 'prepare'):
    print(f'{spec.name} needs no preparation: train with it at once')
    return
  with _readable():
    module.prepare(spec, _in_home(config), num_steps=num_steps)
