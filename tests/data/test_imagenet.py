"""ImageNet's images: found, decoded and cropped, wherever they lie."""

import dataclasses
import io
import math
import os

import numpy as np
import pytest
from imagenet_files import (
  CLASSES,
  PER_CLASS,
  SPEC,
  config,
  drawn,
  encoded,
  load,
  load_from_registry,
  pixels,
  read,
  write_records,
)
from PIL import Image

from mpbn_jax import InputError
from mpbn_jax.datasets import get_spec, imagenet
from mpbn_jax.datasets.batches import TrainingBatches
from mpbn_jax.datasets.encoded import centre, decode
from mpbn_jax.datasets.imagenet import sources


def test_classes_are_the_thousand_sorted_identifiers():
  names = get_spec('imagenet').class_names
  assert len(names) == 1000
  assert list(names) == sorted(set(names))
  assert all(len(name) == 9 and name[0] == 'n' for name in names)
  # Of the first, one in the middle and the last: tench, thresher, toilet roll.
  assert [names[i] for i in (0, 856, 999)] == [
    'n01440764',
    'n04428191',
    'n15075141',
  ]


@pytest.mark.parametrize('name', ['train', 'test'])
def test_labels_of_the_tree_count_the_sorted_folders(name, tree):
  split = load(tree)[name]
  count = {'train': 4, 'test': 2}[name]
  np.testing.assert_array_equal(split.labels, np.repeat([0, 1, 2], count))
  assert split.labels.dtype == np.int32
  images, labels = read(split)
  np.testing.assert_array_equal(labels, split.labels)
  assert images.shape == (3 * count, 32, 32, 3)
  assert images.dtype == np.uint8


def _sorted(images, labels):
  rows = np.column_stack([labels, images.reshape(len(images), -1)])
  return rows[np.lexsort(rows.T)]


@pytest.mark.parametrize('crop', [None, 5])
@pytest.mark.parametrize('name', ['train', 'test'])
def test_tree_and_records_have_the_same_images(name, crop, tree, records):
  found = []
  for root in (tree, records):
    split = load(root)[name]
    crops = None if crop is None else np.full(len(split), crop)
    found.append(_sorted(*read(split, crops)))
    np.testing.assert_array_equal(
      np.sort(split.labels), np.sort(found[-1][:, 0])
    )
  np.testing.assert_array_equal(*found)


@pytest.mark.filterwarnings('ignore:Corrupt EXIF')  # `EncodedImages` does it
@pytest.mark.parametrize('seed', range(5))
def test_every_kind_of_file_is_decoded_to_its_colours(seed):
  kind, image = drawn(seed)
  expected = image.convert('L').convert('RGB') if kind == 'L' else image
  decoded = np.asarray(decode(encoded(seed)), float)
  assert decoded.shape == np.asarray(expected).shape
  assert np.abs(decoded - np.asarray(expected)).mean() < 4  # of 255


def test_jpeg_is_decoded_in_its_full_resolution():
  rng = np.random.default_rng(0)
  image = Image.fromarray(rng.integers(0, 256, (300, 400, 3), np.uint8))
  file = io.BytesIO()
  image.save(file, 'JPEG', quality=90)
  with Image.open(file) as opened:
    expected = np.asarray(opened)
  np.testing.assert_array_equal(np.asarray(decode(file.getvalue())), expected)


def _triangle(size, length):
  """Returns the weights [size, length] of bilinear resizing, antialiased."""
  scale = max(length / size, 1)
  centres = (np.arange(size) + 0.5) * length / size
  distance = (np.arange(length) + 0.5 - centres[:, None]) / scale
  weights = np.maximum(0, 1 - np.abs(distance))
  return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize(('width', 'height'), [(500, 375), (300, 401)])
def test_evaluation_takes_the_centre_224_of_256(width, height, tmp_path):
  image = pixels(0, width, height)
  for part in PER_CLASS:
    folder = tmp_path / 'imagenet' / part / CLASSES[0]
    folder.mkdir(parents=True)
    image.save(folder / 'a.png')
  spec = dataclasses.replace(imagenet.SPEC, class_names=CLASSES[:1])
  splits = imagenet.load(spec, config(tmp_path), num_steps=1)
  found = read(splits['test'])[0][0]
  short = min(width, height)
  rows, columns = 256 * height // short, 256 * width // short
  resized = np.einsum(
    'ah,hwc,bw->abc',
    _triangle(rows, height),
    np.asarray(image, float),
    _triangle(columns, width),
    optimize=True,
  )
  top, left = round((rows - 224) / 2), round((columns - 224) / 2)
  expected = resized[top : top + 224, left : left + 224]
  # Pillow rounds after each of the two directions.
  np.testing.assert_allclose(found, expected, atol=1.01)


@pytest.mark.parametrize(('width', 'height'), [(6, 150), (170, 7), (1, 90)])
def test_centre_of_a_long_image_is_that_of_the_whole(width, height):
  image = pixels(0, width, height)
  short = min(width, height)
  shape = 36 * width // short, 36 * height // short  # 36 for 32, as 256 for 224
  left, top = (round((side - 32) / 2) for side in shape)
  whole = image.resize(shape, Image.Resampling.BILINEAR)
  expected = whole.crop((left, top, left + 32, top + 32))
  np.testing.assert_allclose(
    np.asarray(centre(image, size=(32, 32)), int), expected, atol=1
  )


@pytest.mark.parametrize('size', [(1, 65000), (65000, 1)])
def test_centre_of_a_thin_image_needs_little_memory(size, monkeypatch):
  resize = Image.Image.resize

  def noted(self, shape, *args, **options):
    assert math.prod(shape) < 1e6
    return resize(self, shape, *args, **options)

  monkeypatch.setattr(Image.Image, 'resize', noted)
  found = centre(Image.new('RGB', size, (1, 2, 3)), size=(224, 224))
  assert found.size == (224, 224)
  assert found.getcolors() == [(224 * 224, (1, 2, 3))]


def test_crops_are_of_the_seed_epoch_and_example_alone(tree, small_imagenet):
  options = dict(resized_crop=True, flip=True)
  whole = TrainingBatches(
    load_from_registry(tree, workers=1, **options), batch_size=12, seed=4
  )
  parts = TrainingBatches(
    load_from_registry(tree, workers=3, **options), batch_size=4, seed=4
  )
  for epoch in (0, 1):
    batches = [parts.batch(3 * epoch + i) for i in range(3)]
    for name, value in whole.batch(epoch).items():
      together = np.concatenate([batch[name] for batch in batches])
      np.testing.assert_array_equal(together, value)
  first, second = (whole.batch(epoch) for epoch in (0, 1))
  assert len(np.unique(first['image'].reshape(12, -1), axis=0)) == 12
  for image in first['image']:
    assert not (image == second['image']).all((1, 2, 3)).any()


def test_hosts_read_their_parts(tree, small_imagenet):
  dataset = load_from_registry(tree, resized_crop=True)
  alone = TrainingBatches(dataset, batch_size=6, seed=4).batch(1)
  parts = [
    TrainingBatches(dataset, batch_size=6, seed=4, host=(i, 2)).batch(1)
    for i in range(2)
  ]
  for name, value in alone.items():
    together = np.concatenate([part[name] for part in parts])
    np.testing.assert_array_equal(together, value)


def test_validation_is_held_out_of_records(records, small_imagenet):
  dataset = load_from_registry(records, validation_size=3)
  for name, count in (('train', 9), ('validation', 3), ('test', 6)):
    images, labels = read(dataset.splits[name])
    assert len(images) == count
    np.testing.assert_array_equal(np.bincount(labels), count // 3)


def _open_shards():
  links = [f'/proc/self/fd/{fd}' for fd in os.listdir('/proc/self/fd')]
  targets = [os.readlink(link) for link in links if os.path.lexists(link)]
  return sum('array_record' in target for target in targets)


def test_shards_are_read_with_few_files_open(records, tmp_path, monkeypatch):
  write_records(tmp_path / 'sharded', num_shards=5)
  monkeypatch.setattr(sources, '_OPEN', 3)
  before = _open_shards()
  few, many = (load(root)['train'] for root in (records, tmp_path / 'sharded'))
  assert len(few) == len(many) == 12
  for _ in range(2):
    found = read(many)
    np.testing.assert_array_equal(_sorted(*found), _sorted(*read(few)))
    np.testing.assert_array_equal(found[1], many.labels)
  assert _open_shards() - before <= 1 + 3


def test_both_splits_need_fewer_files_than_any_system_allows():
  assert 2 * sources._OPEN < 256 - 100  # macOS; 100 for all else


def test_labels_of_records_are_kept_until_the_files_change(records):
  expected = load(records)['train'].labels
  (kept,) = records.glob('mpbn_jax/imagenet2012-train-*.npy')
  np.save(kept, expected[::-1])
  np.testing.assert_array_equal(load(records)['train'].labels, expected[::-1])
  (shard,) = records.glob('imagenet2012/*/imagenet2012-train.array_record-*')
  os.utime(shard, (0, 0))
  np.testing.assert_array_equal(load(records)['train'].labels, expected)


@pytest.mark.parametrize(
  'damage', ['empty', 'truncated', 'junk', 'zip', 'others']
)
def test_damaged_labels_are_named_and_read_anew(damage, records, caplog):
  expected = load(records)['train'].labels
  (kept,) = records.glob('mpbn_jax/imagenet2012-train-*.npy')
  whole = kept.read_bytes()
  if damage == 'others':
    np.save(kept, expected[:-1])
  else:
    parts = {'empty': b'', 'truncated': whole[:-4]}
    parts |= {'junk': b'junkjunk', 'zip': b'PK\3\4'}
    kept.write_bytes(parts[damage])
  np.testing.assert_array_equal(load(records)['train'].labels, expected)
  assert f'{kept} is damaged (' in caplog.text
  assert kept.read_bytes() == whole


@pytest.mark.parametrize('size', [0, 1000, 2**16])  # a block: read as empty
def test_truncated_shard_is_named_while_labels_are_read(size, records):
  (shard,) = records.glob('imagenet2012/*/imagenet2012-train.array_record-*')
  assert shard.stat().st_size > size
  os.truncate(shard, size)
  with pytest.raises(InputError) as caught:
    _ = load(records)['train'].labels
  message = str(caught.value)
  assert f'record 0 of {records}/imagenet2012/5.1.0, split' in message
  assert '\n' not in message


def test_labels_need_no_place_to_be_kept(records):
  (records / 'mpbn_jax').write_text('a file is in the way')
  assert len(load(records)['test'].labels) == 6


def test_preparing_says_what_is_there(tree, capsys):
  imagenet.prepare(SPEC, config(tree), num_steps=1)
  assert capsys.readouterr().out == (
    'train: 12 images of 3 classes\ntest: 6 images of 3 classes\n'
  )
