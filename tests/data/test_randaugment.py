"""RandAugment: the paper's operations, compared with Pillow's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpbn_jax.configs.default import get_config
from PIL import Image
from pillow_operations import (
  PILLOW,
  natural,
  random_images,
  sparse,
  with_pillow,
)

from mpbn_jax import InputError
from mpbn_jax.datasets import augmentations, get_spec, randaugment
from mpbn_jax.datasets.image_operations import OPERATIONS, SIGNED
from mpbn_jax.datasets.randaugment import MAGNITUDES, NAMES

OFF = dict(get_config().data)
CHANGING = [name for name in NAMES if name != 'Identity']


def test_operations_are_the_papers():
  assert set(CHANGING) == set(OPERATIONS) - {'Invert'}
  assert len(NAMES) == 14


@pytest.mark.parametrize('name', CHANGING)
def test_operation_equals_pillow_bit_for_bit_at_every_level(name):
  images = np.concatenate([natural()[:6], random_images()[:6]])
  for size in set(MAGNITUDES[name]):
    for magnitude in (size, -size) if name in SIGNED else (size,):
      ours = OPERATIONS[name](images, magnitude)
      np.testing.assert_array_equal(ours, with_pillow(name, images, magnitude))


# (name, M, magnitude) of torchvision with 31 bins and images of 32x32:
# `RandAugment()._augmentation_space(31, (32, 32))[name][0][M]`.
TORCHVISION = [
  ('ShearX', 9, 0.09),
  ('ShearY', 30, 0.3),
  ('TranslateX', 9, 4.350453 / 32),
  ('TranslateY', 30, 14.501511 / 32),
  ('Rotate', 9, 9.0),
  ('Brightness', 9, 0.27),
  ('Color', 10, 0.3),
  ('Contrast', 30, 0.9),
  ('Sharpness', 1, 0.03),
  ('Posterize', 3, 8),
  ('Posterize', 4, 7),
  ('Posterize', 9, 7),
  ('Posterize', 30, 4),
  ('Solarize', 0, 255.0),
  ('Solarize', 9, 178.5),
  ('Solarize', 30, 0.0),
]


@pytest.mark.parametrize(('name', 'level', 'magnitude'), TORCHVISION)
def test_magnitudes_are_torchvisions(name, level, magnitude):
  assert MAGNITUDES[name][level] == pytest.approx(magnitude, abs=1e-7)


def _one_by_one(images, drawn, *, level):
  """The operations with Pillow, an image at a time."""
  results = []
  for x, rows in zip(images, drawn.tolist(), strict=True):
    image = Image.fromarray(x)
    for index, minus in rows:
      name = NAMES[index]
      if name != 'Identity':
        sign = -1 if minus and name in SIGNED else 1
        image = PILLOW[name](image, sign * MAGNITUDES[name][level])
    results.append(np.asarray(image))
  return np.stack(results)


@pytest.mark.parametrize(('operations', 'level'), [(1, 30), (2, 9), (3, 17)])
def test_augmentation_equals_pillow_image_by_image(operations, level):
  images = np.concatenate([natural(), random_images(), sparse()])
  drawn = randaugment.draw(
    np.random.default_rng(3), count=len(images), operations=operations
  )
  ours = randaugment.apply(images, drawn, level=level)
  np.testing.assert_array_equal(ours, _one_by_one(images, drawn, level=level))


def test_identity_changes_nothing():
  drawn = np.zeros((48, 2, 2), np.int8)
  ours = randaugment.apply(natural(), drawn, level=30)
  np.testing.assert_array_equal(ours, natural())


def test_fill_is_the_colour_of_what_moves_in():
  drawn = np.array([[[NAMES.index('TranslateY'), 0]]])  # down by 14
  images = np.zeros((1, 32, 32, 3), np.uint8)
  moved = randaugment.apply(images, drawn, level=30, fill=(1, 2, 3))
  assert (moved[:, :14] == (1, 2, 3)).all()
  assert not moved[:, 14:].any()


def test_draw_is_uniform_over_pairs_of_operations_and_signs():
  count = 400_000
  drawn = randaugment.draw(
    np.random.default_rng(0), count=count, operations=2
  ).astype(int)
  kinds = drawn[..., 0] * 2 + drawn[..., 1]  # 28, equally likely
  pairs = np.bincount(kinds[:, 0] * 28 + kinds[:, 1])
  assert pairs.shape == (28**2,)
  # Six standard deviations of a count, whose variance is at most its mean.
  expected = count / 28**2
  np.testing.assert_allclose(pairs, expected, atol=6 * expected**0.5)


def test_draw_of_fewer_examples_is_the_start_of_the_draw_of_more():
  few, more = (
    randaugment.draw(np.random.default_rng(5), count=count, operations=3)
    for count in (7, 50)
  )
  np.testing.assert_array_equal(few, more[:7])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 48), st.integers(0, 30))
def test_result_depends_on_the_image_and_its_row_alone(seed, cut, level):
  rng = np.random.default_rng(seed)
  drawn = randaugment.draw(rng, count=48, operations=2)
  whole = randaugment.apply(natural(), drawn, level=level)
  order = rng.permutation(48)
  parts = [
    randaugment.apply(natural()[part], drawn[part], level=level)
    for part in (order[:cut], order[cut:])
  ]
  np.testing.assert_array_equal(np.concatenate(parts), whole[order])


def test_apply_leaves_its_arguments_as_they_were():
  images = natural().copy()
  drawn = randaugment.draw(np.random.default_rng(0), count=48, operations=2)
  before = drawn.copy()
  randaugment.apply(images, drawn, level=9)
  np.testing.assert_array_equal(images, natural())
  np.testing.assert_array_equal(drawn, before)


@pytest.mark.parametrize(
  ('images', 'message'),
  [
    (np.zeros((2, 32, 32, 3), np.float32), r'uint8 .*, got float32 \[2, 32'),
    (np.zeros((2, 32, 32, 1), np.uint8), r'got uint8 \[2, 32, 32, 1\]'),
    (np.zeros((2, 4, 32, 32, 3), np.uint8), r'got uint8 \[2, 4, 32, 32, 3\]'),
  ],
)
def test_apply_refuses_other_images(images, message):
  with pytest.raises(InputError, match=f'RandAugment expects .*{message}'):
    randaugment.apply(images, np.zeros((2, 1, 2), np.int8), level=9)


@pytest.mark.parametrize(
  ('drawn', 'message'),
  [
    (np.zeros((3, 1, 2), np.int8), r'\[2, N, 2\].*, got int8 \[3, 1, 2\]'),
    (np.zeros((2, 1, 3), np.int8), r'got int8 \[2, 1, 3\]'),
    (np.zeros((2, 2), np.int8), r'got int8 \[2, 2\]'),
    (np.zeros(2, np.int8), r'got int8 \[2\]'),
    (np.zeros((2, 1, 2)), r'got float64 \[2, 1, 2\]'),
    (np.full((2, 1, 2), (14, 0)), r'operations 0\.\.13'),
    (np.full((2, 1, 2), (-1, 0)), r'operations 0\.\.13'),
    (np.full((2, 1, 2), (1, 2)), r'0 or 1 for its sign'),
  ],
)
def test_apply_refuses_other_draws(drawn, message):
  with pytest.raises(InputError, match=message):
    randaugment.apply(np.zeros((2, 32, 32, 3), np.uint8), drawn, level=9)


@pytest.mark.parametrize('level', [-1, 31])
def test_apply_refuses_other_levels(level):
  with pytest.raises(InputError, match=f'between 0 and 30, got {level}'):
    randaugment.apply(natural(), np.zeros((48, 1, 2), np.int8), level=level)


def test_auto_augment_and_rand_augment_together_are_refused():
  with pytest.raises(
    InputError,
    match='alternatives, got true and 2: set .*auto_augment=false or .*=0',
  ):
    augmentations(
      OFF | dict(auto_augment=True, rand_augment=2), spec=get_spec('cifar10')
    )


@pytest.mark.parametrize('magnitude', [-1, 31])
def test_magnitude_beyond_rand_augments_scale_is_refused(magnitude):
  with pytest.raises(
    InputError,
    match=f'rand_augment_magnitude.* between 0 and 30, got {magnitude}: set',
  ):
    augmentations(
      OFF | dict(rand_augment=2, rand_augment_magnitude=magnitude),
      spec=get_spec('cifar10'),
    )
