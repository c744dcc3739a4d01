"""The `photo_digits`: the same for everyone, with disjoint splits."""

import hashlib
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mpbn_jax.datasets import get_spec, load_dataset
from mpbn_jax.datasets.embedded import digits, photo_digits
from mpbn_jax.datasets.embedded.photo_digits import (
  DARKEST_COLOUR,
  DIGIT_SIDES,
  SIZES,
  STRIP_WIDTH,
  STRIPS,
  generate,
)
from mpbn_jax.datasets.splits import split_stratified

ROOT = pathlib.Path(__file__).resolve().parents[2]
SPLITS = tuple(SIZES)
# Of the first 100 images of each split. Where it alone fails, the photographs
# were decoded by another libjpeg than the one in Pillow's wheels.
DIGEST = '08cb6fb207a528c644c19df7c752a5c40f8a6c8bbbec53fa9b4770451e8ab640'

HASH = """
import hashlib
from mpbn_jax.datasets.embedded.photo_digits import SIZES, generate
for name in reversed(SIZES):
  generate(name, count=30)  # what came before changes nothing
parts = [generate(name, count=100) for name in SIZES]
images = b''.join(part.images.tobytes() for part in parts)
print(hashlib.sha256(images).hexdigest())
"""


def _draws(split, count=2000):
  sources = photo_digits._digits()[split]
  return photo_digits._draw(
    split,
    labels=np.arange(count) % 10,
    members=np.bincount(sources.labels),
  )


def _digest():
  images = [generate(name, count=100).images.tobytes() for name in SPLITS]
  return hashlib.sha256(b''.join(images)).hexdigest()


def _load(**config):
  return photo_digits.load(
    get_spec('photo_digits'), {'train_size': 0, **config}, num_steps=2
  )


def test_sizes_and_shape_are_those_that_are_promised():
  splits = _load()
  assert {name: split.images.shape for name, split in splits.items()} == {
    'train': (20_000, 32, 32, 3),
    'validation': (2_000, 32, 32, 3),
    'test': (4_000, 32, 32, 3),
  }


@pytest.mark.parametrize('split', SPLITS)
def test_labels_are_balanced(split):
  assert set(np.bincount(generate(split, count=300).labels)) == {30}
  assert set(np.bincount(generate(split, count=95).labels)) == {9, 10}


@pytest.mark.parametrize('split', SPLITS)
def test_fewer_images_are_the_first_of_more(split):
  few, many = generate(split, count=100), generate(split, count=1203)
  np.testing.assert_array_equal(few.images, many.images[:100])
  np.testing.assert_array_equal(few.labels, many.labels[:100])


def test_images_do_not_depend_on_those_rendered_with_them(monkeypatch):
  together = generate('train', count=100).images
  monkeypatch.setattr(photo_digits, '_BLOCK', 7)
  np.testing.assert_array_equal(generate('train', count=100).images, together)


def test_train_size_gives_the_first_training_images_and_the_whole_test(
  monkeypatch,
):
  sizes = {'train': 60, 'validation': 20, 'test': 40}
  monkeypatch.setattr(photo_digits, 'SIZES', sizes)
  for asked, given in ((0, 60), (33, 33), (60, 60), (61, 60)):
    splits = _load(train_size=asked)
    counts = {name: len(split.labels) for name, split in splits.items()}
    assert counts == {**sizes, 'train': given}
    first = generate('train', count=given)
    np.testing.assert_array_equal(splits['train'].images, first.images)


def test_another_process_makes_the_same_images():
  out = subprocess.run(
    [sys.executable, '-c', HASH],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  ).stdout
  assert out.strip() == _digest()


def test_images_never_change():
  assert _digest() == DIGEST


def test_splits_draw_different_numbers():
  side = [_draws(name)['side'] for name in SPLITS]
  for one, other in ((0, 1), (0, 2), (1, 2)):
    assert 0.5 < (side[one] != side[other]).mean() < 1


def test_every_image_has_a_digit_of_its_label_and_all_digits_are_used():
  for name in SPLITS:
    labels = np.sort(photo_digits._digits()[name].labels)
    drawn = _draws(name, count=SIZES['train'])['digit']
    np.testing.assert_array_equal(labels[drawn], np.arange(len(drawn)) % 10)
    assert set(drawn) == set(range(len(labels)))


def test_handwriting_of_the_splits_is_disjoint_as_of_the_digits():
  sources = photo_digits._digits()
  assert list(sources) == list(SPLITS)
  seen = [{x.tobytes() for x in part.images} for part in sources.values()]
  # No two of the 1,797 are alike, so images stand for their indices.
  assert [len(part) for part in seen] == [1078, 360, 359]
  assert len(set.union(*seen)) == 1797
  from sklearn.datasets import load_digits

  whole = load_digits()
  parts = split_stratified(
    whole.target, shares=digits.SHARES, seed=digits.SPLIT_SEED
  )
  for source, part in zip(sources.values(), parts, strict=True):
    np.testing.assert_array_equal(source.images[..., 0], whole.images[part])


def test_strips_cover_the_photographs_60_20_20_without_overlap():
  width = photo_digits._photos().shape[2]
  owned = sorted(strip for strips in STRIPS.values() for strip in strips)
  assert owned == list(range(width // STRIP_WIDTH))
  assert [len(STRIPS[name]) for name in SPLITS] == [6, 2, 2]


def _columns(split):
  """Returns [W], whether a column of the photographs is the split's."""
  columns = np.zeros(photo_digits._photos().shape[2], bool)
  for strip in STRIPS[split]:
    columns[strip * STRIP_WIDTH : (strip + 1) * STRIP_WIDTH] = True
  return columns


@pytest.mark.parametrize('split', SPLITS)
def test_split_sees_its_own_strips_alone_and_all_of_them(split, monkeypatch):
  images = generate(split, count=1000).images
  photos, own = photo_digits._photos(), _columns(split)

  def changed(columns):
    negative = np.where(columns[:, None], 255 - photos, photos)
    monkeypatch.setattr(photo_digits, '_photos', lambda: negative)
    return (generate(split, count=1000).images != images).any((1, 2, 3))

  assert not changed(~own).any()
  assert changed(own).all()
  draws = _draws(split, count=20_000)
  corners = np.zeros(photos.shape[:1] + photos.shape[2:3], bool)
  corners[draws['photo'], draws['patch_left']] = True
  corners[draws['photo'], draws['patch_left'] + 31] = True
  np.testing.assert_array_equal(corners, np.stack([own, own]))
  assert set(draws['patch_top']) == set(range(photos.shape[1] - 31))


def test_sides_colours_and_places_cover_their_ranges():
  draws = _draws('train', count=20_000)
  smallest, largest = DIGIT_SIDES
  assert set(draws['side']) == set(range(smallest, largest + 1))
  for colour in ('red', 'green', 'blue'):
    assert set(draws[colour]) == set(range(DARKEST_COLOUR, 256))
  for side in (smallest, largest):
    for edge in ('top', 'left'):
      places = draws[edge][draws['side'] == side]
      assert set(places) == set(range(32 - side + 1))


def _slowly(draws, *, i, sources, photos):
  """Returns image i of the draws, [32, 32, 3], one pixel after the other."""
  draw = {name: int(values[i]) for name, values in draws.items()}
  digit = np.pad(sources[draw['digit']] / 16, 1)  # fades out into zeros
  colour = np.array([draw['red'], draw['green'], draw['blue']])
  image = np.zeros((32, 32, 3))
  for y in range(32):
    for x in range(32):
      row = (y + 0.5 - draw['top']) * 8 / draw['side'] + 0.5
      column = (x + 0.5 - draw['left']) * 8 / draw['side'] + 0.5
      opacity = 0.0
      for r in range(10):
        for c in range(10):
          weight = max(0, 1 - abs(row - r)) * max(0, 1 - abs(column - c))
          opacity += weight * digit[r, c]
      place = draw['photo'], draw['patch_top'] + y, draw['patch_left'] + x
      image[y, x] = (1 - opacity) * photos[place] + opacity * colour
  return image


def test_images_are_those_of_a_slow_bilinear_blend():
  draws = _draws('test', count=4)
  part = photo_digits._digits()['test']
  sources = part.images[np.argsort(part.labels, kind='stable'), ..., 0]
  images = generate('test', count=4).images
  for i in range(4):
    slow = _slowly(draws, i=i, sources=sources, photos=photo_digits._photos())
    # Weights are rounded to 1/256 in both directions, the result to integers.
    assert np.abs(images[i] - slow).max() < 2.5


def test_patches_are_the_photographs_darkened():
  from sklearn.datasets import load_sample_images

  share = photo_digits.PATCH_CONTRAST / 256
  for dark, photo in zip(
    photo_digits._photos(), load_sample_images().images, strict=True
  ):
    assert np.abs(dark - photo * share).max() <= 0.5


def test_dataset_is_read_by_its_name():
  from mpbn_jax.configs.photo_digits import get_config

  config = get_config()
  config.data.train_size = 70
  dataset = load_dataset(config.data, num_steps=config.model.num_steps)
  images, _ = dataset.splits['train'].read(np.arange(70))
  np.testing.assert_array_equal(images, generate('train', count=70).images)
  assert dataset.spec.num_classes == config.model.num_classes


def test_picture_shows_samples_of_every_split(tmp_path):
  path = tmp_path / 'picture.png'
  script = ROOT / 'docs' / 'plot_photo_digits.py'
  subprocess.run(
    [sys.executable, str(script), '--count=3', f'--output={path}'],
    cwd=tmp_path,
    check=True,
  )
  picture = np.asarray(Image.open(path).convert('RGB'))
  for panel in np.array_split(picture, len(SPLITS)):
    grey = (panel == panel[..., :1]).all(-1)
    assert (~grey).mean() > 0.02  # text and frame are grey


def test_committed_picture_is_there_and_small():
  path = ROOT / 'docs' / 'photo_digits.png'
  assert 100_000 < path.stat().st_size < 600_000
