"""CIFAR-10 and CIFAR-100, 60,000 colour images each (Krizhevsky, 2009).

`prepare` converts the official archive once; `load` reads the result, or files
prepared by tensorflow-datasets.
"""

import json
import pathlib
import time
from collections.abc import Mapping

from mpbn_jax.datasets import preparation
from mpbn_jax.datasets.base import Spec, Split

_INFO = 'dataset_info.json'

CIFAR10 = Spec(
  name='cifar10',
  image_shape=(32, 32, 3),
  class_names=(
    'airplane',
    'automobile',
    'bird',
    'cat',
    'deer',
    'dog',
    'frog',
    'horse',
    'ship',
    'truck',
  ),
  max_value=255,
  # As in the MPBN paper's code.
  mean=(0.4914, 0.4822, 0.4465),
  std=(0.2023, 0.1994, 0.2010),
)

_FINE_LABELS = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy
bridge bus butterfly camel can castle caterpillar cattle chair chimpanzee clock
cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion
lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange
orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper
snail snake spider squirrel streetcar sunflower sweet_pepper table tank
telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""

CIFAR100 = Spec(
  name='cifar100',
  image_shape=(32, 32, 3),
  class_names=tuple(_FINE_LABELS.split()),  # in their alphabetical order
  max_value=255,
  # As in the MPBN paper's code.
  mean=(0.5071, 0.4867, 0.4408),
  std=(0.2675, 0.2565, 0.2761),
)


def load(spec: Spec, config: Mapping, *, num_steps: int) -> dict[str, Split]:
  """Returns 50,000 training and 10,000 test images, in the archive's order.

  Raises:
    InputError: the data set is not prepared, or it is damaged.
  """
  del num_steps  # images
  root = pathlib.Path(config['dir'])
  place = _prepared(root, spec)
  if place is None:
    raise preparation.not_prepared(spec.name, root)
  return _read(place, spec)


def prepare(spec: Spec, config: Mapping, *, num_steps: int) -> None:
  """Downloads and converts the official archive if needed; prints where.

  Raises:
    InputError: the archive cannot be obtained or is not the official one, the
      directory cannot be written, or the prepared data set is damaged.
  """
  del num_steps
  root = pathlib.Path(config['dir'])
  start = time.monotonic()
  place = _prepared(root, spec)
  if place is None:
    with preparation.exclusive(_home(root, spec), what=spec.name):
      # Another process may have done it while this one waited.
      place = _prepared(root, spec)
      if place is None:
        place = _home(root, spec)
        _convert(place, spec, root / 'downloads' / 'manual')
        _say(place, spec, f'prepared in {time.monotonic() - start:.1f} s')
        return
  _read(place, spec)  # raises if it is damaged
  _say(place, spec, 'is already prepared')


def _home(root, spec):
  """Returns the directory that `prepare` creates, named as in tfds."""
  return root / f'{spec.name}_raw' / '1.0.0'


def _prepared(root, spec):
  """Returns the directory to read, or None."""
  if (_home(root, spec) / _INFO).exists():
    return _home(root, spec)
  # Made by tensorflow-datasets. Without TensorFlow, only ArrayRecord can be
  # read.
  theirs = root / spec.name / '3.0.2'
  try:
    info = json.loads((theirs / _INFO).read_text())
  except (FileNotFoundError, NotADirectoryError, ValueError):
    return None
  return theirs if info.get('fileFormat') == 'array_record' else None


def _convert(place, spec, folder):
  from mpbn_jax.datasets.cifar import archives, builder

  archive, path = archives.obtain(spec.name, folder)
  print(f'converting {path}', flush=True)
  splits = archives.read(path, archive=archive, num_classes=spec.num_classes)
  with preparation.atomic_directory(place) as directory:
    builder.write(directory, spec=spec, splits=splits)


def _read(place, spec):
  # Takes seconds to import; only these data sets need it.
  from mpbn_jax.datasets.cifar import archives, builder

  return builder.read(place, spec=spec, counts=archives.COUNTS)


def _say(place, spec, what):
  from mpbn_jax.datasets.cifar import archives

  counts = archives.COUNTS.items()
  images = ' and '.join(f'{n:,} {split}' for split, n in counts)
  size = sum(file.stat().st_size for file in place.iterdir())
  print(
    f'{spec.name} {what}: {place}, {images} images, '
    f'{preparation.megabytes(size)}'
  )
