"""A few small images in the formats of ImageNet."""

import dataclasses
import io
import pathlib

import numpy as np
from mpbn_jax.configs.default import get_config
from PIL import Image

from mpbn_jax.datasets import imagenet, load_dataset

CLASSES = imagenet.SPEC.class_names[:3]
# The true spec but for the number of classes and pixels: 32 stands for 224.
SPEC = dataclasses.replace(
  imagenet.SPEC, class_names=CLASSES, image_shape=(32, 32, 3)
)
PER_CLASS = {'train': 4, 'val': 2}


def pixels(seed, width, height):
  """Returns a smooth random image, which JPEG keeps nearly as it is."""
  rng = np.random.default_rng(seed)
  coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
  return coarse.resize((width, height), Image.Resampling.BICUBIC)


def drawn(seed):
  """Returns (kind, image): the kinds of files that the true ImageNet has."""
  kind = ('RGB', 'L', 'CMYK', 'PNG', 'EXIF')[seed % 5]
  return kind, pixels(seed, 40 + 7 * (seed % 4), 45 + 3 * (seed % 5))


def encoded(seed):
  """Returns the content of its file."""
  kind, image = drawn(seed)
  file = io.BytesIO()
  if kind == 'PNG':  # named .JPEG
    image.convert('RGBA').save(file, 'PNG')
  elif kind == 'EXIF':  # damaged tags, which Pillow warns of
    tags = b'Exif\0\0II*\0\x08\0\0\0\x05\0\x1a\x01\x05\0\x01\0\0\0\xff\xff'
    image.save(file, 'JPEG', exif=tags)
  else:
    image.convert(kind).save(file, 'JPEG', quality=95)
  return file.getvalue()


def files():
  """Yields (part, class, file name, content); the same at each call."""
  seed = 0
  for part, count in PER_CLASS.items():
    for label in CLASSES:
      for number in range(count):
        yield part, label, f'{label}_{number}.JPEG', encoded(seed)
        seed += 1


def write_tree(root: pathlib.Path) -> None:
  """Writes the usual folder tree."""
  for part, label, name, content in files():
    folder = root / 'imagenet' / part / label
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
  # What lies about in real trees.
  train = root / 'imagenet' / 'train'
  (train / CLASSES[0] / '._n.JPEG').write_bytes(b'mac')
  (train / '.cache').mkdir()
  (train / 'readme.txt').write_text('')


def write_records(root: pathlib.Path, *, num_shards: int | None = None) -> None:
  """Prepares what tensorflow_datasets does, from the same images."""
  import tensorflow_datasets as tfds

  class Imagenet2012(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """tensorflow_datasets' builder but for the archives that it reads."""

    VERSION = tfds.core.Version('5.1.0')

    def _info(self):
      features = {
        'image': tfds.features.Image(encoding_format='jpeg'),
        'label': tfds.features.ClassLabel(names=list(CLASSES)),
        'file_name': tfds.features.Text(),
      }
      return tfds.core.DatasetInfo(
        builder=self, features=tfds.features.FeaturesDict(features)
      )

    def _split_generators(self, dl_manager):
      del dl_manager
      return {
        'train': self._generate_examples('train'),
        'validation': self._generate_examples('val'),
      }

    def _generate_examples(self, wanted):
      for part, label, name, content in files():
        if part == wanted:
          image = {'image': content, 'label': label, 'file_name': name}
          yield name, image

  # The encoder takes bytes as they are, those of PNGs too.
  builder = Imagenet2012(data_dir=root, file_format='array_record')
  config = tfds.download.DownloadConfig(num_shards=num_shards)
  builder.download_and_prepare(download_config=config)


def config(root, **data):
  """Returns `config.data`."""
  return {**get_config().data, 'name': 'imagenet', 'dir': str(root), **data}


def load(root, **data):
  """Returns the splits of these few classes."""
  return imagenet.load(SPEC, config(root, **data), num_steps=1)


def load_from_registry(root, **data):
  """Returns the `Dataset`; for those who use `small_imagenet`."""
  return load_dataset(config(root, **data), num_steps=1)


def read(split, crops=None):
  """Returns (images, labels), all of them."""
  return split.read(np.arange(len(split)), crops)
