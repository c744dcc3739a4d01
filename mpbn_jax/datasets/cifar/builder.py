"""CIFAR's images on disk, as a data set of tensorflow-datasets.

The format is ArrayRecord, which does not need TensorFlow. An image is stored as
its 3,072 bytes; PNG would take a quarter less space but six times as long to
read. Data sets prepared by tensorflow-datasets itself (PNG, shuffled) can be
read too: the index in the id of an example restores the order of the archive.
"""

import concurrent.futures
import contextlib
import io
import os
import pathlib
import shutil
from collections.abc import Mapping

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2
from tqdm import tqdm

from mpbn_jax.datasets import preparation
from mpbn_jax.datasets.base import Spec, Split
from mpbn_jax.errors import InputError
from mpbn_jax.files import NO_ROOM

_CHUNK = 2000  # examples decoded at a time


class CifarBuilder(  # type: ignore[call-arg]  # its metaclass is not known
  tfds.core.GeneratorBasedBuilder, skip_registration=True
):
  """Writes images in order, with the ids that tensorflow-datasets would assign.

  Args:
    spec: specification of the data set.
    splits: splits to write.
    bar: progress bar, advanced with every image.
    data_dir: directory in which <name>/<version> is created.
  """

  VERSION = tfds.core.Version('1.0.0')

  def __init__(
    self, *, spec: Spec, splits: dict[str, Split], bar: tqdm, data_dir: str
  ):
    self.name = f'{spec.name}_raw'
    self._spec, self._splits, self._bar = spec, splits, bar
    super().__init__(data_dir=data_dir, file_format='array_record')

  def _info(self):
    features = {
      'id': tfds.features.Text(),
      'image': tfds.features.Tensor(
        shape=self._spec.image_shape, dtype=np.uint8, encoding='bytes'
      ),
      'label': tfds.features.ClassLabel(names=self._spec.class_names),
    }
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(features),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # the archive is on disk and has been read
    # Dropped, because tensorflow-datasets keeps its builders alive.
    splits, self._splits = self._splits, None
    return {
      name: self._generate_examples(name, split)
      for name, split in splits.items()
    }

  def _generate_examples(self, name, split):
    pairs = zip(split.images, split.labels, strict=True)
    for index, (image, label) in enumerate(pairs):
      id_ = f'{name}_{index:05d}'
      yield index, {'id': id_, 'image': image, 'label': label}
      self._bar.update()


def write(
  place: pathlib.Path, *, spec: Spec, splits: Mapping[str, Split]
) -> None:
  """Writes images to an empty directory and verifies them by reading them back.

  Raises:
    OSError: the disk is full (with its errno).
    InputError: the images read back differ.
  """
  work = place / 'work'
  total = sum(len(split.labels) for split in splits.values())
  with (
    tqdm(total=total, desc=spec.name, unit='image', disable=None) as bar,
    _quiet(),
    _errno_kept(place),
  ):
    builder = CifarBuilder(
      spec=spec, splits=dict(splits), bar=bar, data_dir=str(work)
    )
    builder.download_and_prepare()
  for file in pathlib.Path(builder.data_dir).iterdir():
    file.rename(place / file.name)
  shutil.rmtree(work)
  _check_written(place, spec, splits)


def _check_written(place, spec, splits):
  try:
    for name, split in splits.items():
      found = _read(place, spec, {name: len(split.labels)})[name]
      if not np.array_equal(found.images, split.images):
        raise ValueError(f'other images of {name}')
      if not np.array_equal(found.labels, split.labels):
        raise ValueError(f'other labels of {name}')
  except Exception as error:
    raise InputError(
      f'expected to read back what was written to {place}, got something else '
      f'({error}): check that disk, or choose another --config.data.dir'
    ) from error


@contextlib.contextmanager
def _quiet():
  """Silences the progress bars and messages of tensorflow-datasets."""
  tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    tfds.enable_progress_bar()


@contextlib.contextmanager
def _errno_kept(place):
  """Restores the errno of an OSError that arrives as text only."""
  try:
    yield
  except (OSError, RuntimeError) as error:  # ArrayRecord raises the latter
    for number in NO_ROOM:
      if os.strerror(number) in str(error):
        raise OSError(number, os.strerror(number), str(place)) from error
    raise


# ---- reading


def read(
  place: pathlib.Path, *, spec: Spec, counts: Mapping[str, int]
) -> dict[str, Split]:
  """Returns the splits of a prepared directory, in the archive's order.

  Args:
    place: directory written by `write` or by tensorflow-datasets.
    spec: specification of the data set.
    counts: {split: number of images}.

  Raises:
    InputError: the files are damaged or incomplete.
  """
  try:
    return _read(place, spec, counts)
  except Exception as error:  # damaged files may raise anything
    text = ' '.join(str(error).split()) or type(error).__name__
    raise InputError(
      f'expected {spec.name!r}, prepared in {place}, which cannot be read '
      f'({text[:200]}): remove that directory, then run '
      f'{preparation.command(spec.name, place.parent.parent)}'
    ) from error


def _read(place, spec, counts):
  builder = tfds.builder_from_directory(place)
  return {
    name: _read_split(builder, name, spec, count)
    for name, count in counts.items()
  }


def _read_split(builder, name, spec, count):
  # 1.8 s for all images; the decoding of tensorflow-datasets takes 8.6 s.
  source = builder.as_data_source(
    name, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
  )
  if len(source) != count:
    raise ValueError(f'{len(source):,} of {count:,} examples of {name}')
  images = np.empty((count, *spec.image_shape), np.uint8)
  labels = np.empty(count, np.int32)
  seen = np.zeros(count, bool)
  png = isinstance(builder.info.features['image'], tfds.features.Image)
  decode = _decode_png if png else _decode_bytes
  for start in range(0, count, _CHUNK):
    records = source.__getitems__(range(start, min(start + _CHUNK, count)))
    ids, found, encoded = zip(*map(_parse, records), strict=True)
    # 'train_00042' is image 42 of the archive.
    index = [int(id_.rpartition(b'_')[2]) for id_ in ids]
    images[index] = decode(encoded).reshape(-1, *spec.image_shape)
    labels[index] = found
    seen[index] = True
  if not seen.all():
    raise ValueError(f'ids of {name} that do not number its examples')
  return Split(images, labels)


def _parse(record):
  """Returns (id, label, encoded image) of a serialized example."""
  features = tf_example_pb2.Example.FromString(record).features.feature
  return (
    features['id'].bytes_list.value[0],
    features['label'].int64_list.value[0],
    features['image'].bytes_list.value[0],
  )


def _decode_bytes(encoded):
  return np.frombuffer(b''.join(encoded), np.uint8)


def _decode_png(encoded):
  with concurrent.futures.ThreadPoolExecutor() as threads:
    return np.stack(list(threads.map(_decode_one, encoded)))


def _decode_one(content):
  return np.asarray(PIL.Image.open(io.BytesIO(content)))
