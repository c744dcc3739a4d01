"""AutoAugment: the published policy, compared with Pillow's operations."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pillow_operations import PILLOW, natural, random_images, sparse

from mpbn_jax import InputError
from mpbn_jax.datasets import autoaugment
from mpbn_jax.datasets.autoaugment import MAGNITUDES, POLICY
from mpbn_jax.datasets.image_operations import SIGNED


def _one_by_one(images, drawn):
  """The policy with Pillow, an image at a time."""
  results = []
  for x, (row, first, second, *negative) in zip(images, drawn, strict=True):
    image = Image.fromarray(x)
    steps = zip(POLICY[row], (first, second), negative, strict=True)
    for (name, _, level), applied, minus in steps:
      sign = -1 if minus and name in SIGNED else 1
      if applied:
        image = PILLOW[name](image, sign * MAGNITUDES[name][level])
    results.append(np.asarray(image))
  return np.stack(results)


def test_policy_equals_pillow_image_by_image():
  images = np.concatenate([natural(), random_images(), sparse()] * 4)
  drawn = autoaugment.draw(np.random.default_rng(3), count=len(images))
  ours = autoaugment.apply(images, drawn)
  np.testing.assert_array_equal(ours, _one_by_one(images, drawn))


# Table 7 of arXiv:1805.09501, typed anew: operation, tenths of the
# probability, level; a sub-policy a line.
TABLE = """
Invert       1 7  Contrast     2 6
Rotate       7 2  TranslateX   3 9
Sharpness    8 1  Sharpness    9 3
ShearY       5 8  TranslateY   7 9
AutoContrast 5 8  Equalize     9 2
ShearY       2 7  Posterize    3 7
Color        4 3  Brightness   6 7
Sharpness    3 9  Brightness   7 9
Equalize     6 5  Equalize     5 1
Contrast     6 7  Sharpness    6 5
Color        7 7  TranslateX   5 8
Equalize     3 7  AutoContrast 4 8
TranslateY   4 3  Sharpness    2 6
Brightness   9 6  Color        2 8
Solarize     5 2  Invert       0 3
Equalize     2 0  AutoContrast 6 0
Equalize     2 8  Equalize     6 4
Color        9 9  Equalize     6 6
AutoContrast 8 4  Solarize     2 8
Brightness   1 3  Color        7 0
Solarize     4 5  AutoContrast 9 3
TranslateY   9 9  TranslateY   7 9
AutoContrast 9 2  Solarize     8 3
Equalize     8 8  Invert       1 3
TranslateY   7 9  AutoContrast 9 1
"""


def test_policy_is_the_published_one():
  ours = [
    [str(value) for name, p, level in pair for value in (name, p, level)]
    for pair in POLICY
  ]
  theirs = [line.split() for line in TABLE.strip().splitlines()]
  for row in theirs:
    row[1], row[4] = (str(int(row[i]) / 10) for i in (1, 4))
  assert ours == theirs
  assert len(ours) == 25


def test_fill_is_the_colour_of_what_moves_in():
  drawn = np.array([[21, 1, 0, 0, 0]] * 2, np.int8)  # TranslateY down by 14
  images = np.zeros((2, 32, 32, 3), np.uint8)
  moved = autoaugment.apply(images, drawn, fill=(1, 2, 3))
  assert (moved[:, :14] == (1, 2, 3)).all()
  assert not moved[:, 14:].any()


def test_draw_has_the_published_frequencies():
  count = 250_000
  drawn = autoaugment.draw(np.random.default_rng(0), count=count)
  per_row = np.bincount(drawn[:, 0], minlength=25)
  assert per_row.shape == (25,)
  # Six standard deviations of a share of n examples: 3 / sqrt(n) at most.
  np.testing.assert_allclose(per_row / count, 1 / 25, atol=3 / count**0.5)
  for row, pair in enumerate(POLICY):
    mine = drawn[drawn[:, 0] == row]
    tolerance = 3 / len(mine) ** 0.5
    probabilities = [probability for _, probability, _ in pair]
    applied = mine[:, 1:3].mean(0)
    np.testing.assert_allclose(applied, probabilities, atol=tolerance)
    np.testing.assert_allclose(mine[:, 3:].mean(0), 0.5, atol=tolerance)


def test_draw_never_applies_an_operation_of_probability_0():
  drawn = autoaugment.draw(np.random.default_rng(0), count=10_000)
  row = next(i for i, pair in enumerate(POLICY) if pair[1][1] == 0)
  assert not drawn[drawn[:, 0] == row, 2].any()


def test_draw_of_fewer_examples_is_the_start_of_the_draw_of_more():
  few = autoaugment.draw(np.random.default_rng(5), count=7)
  more = autoaugment.draw(np.random.default_rng(5), count=50)
  np.testing.assert_array_equal(few, more[:7])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 96))
def test_result_depends_on_the_image_and_its_row_alone(seed, cut):
  rng = np.random.default_rng(seed)
  images = np.concatenate([natural(), natural()])
  drawn = autoaugment.draw(rng, count=len(images))
  whole = autoaugment.apply(images, drawn)
  order = rng.permutation(len(images))
  parts = [
    autoaugment.apply(images[part], drawn[part])
    for part in (order[:cut], order[cut:])
  ]
  np.testing.assert_array_equal(np.concatenate(parts), whole[order])


def test_apply_leaves_its_arguments_as_they_were():
  images = natural().copy()
  drawn = autoaugment.draw(np.random.default_rng(0), count=len(images))
  before = drawn.copy()
  autoaugment.apply(images, drawn)
  np.testing.assert_array_equal(images, natural())
  np.testing.assert_array_equal(drawn, before)


@pytest.mark.parametrize(
  ('images', 'message'),
  [
    (np.zeros((2, 32, 32, 3), np.float32), r'uint8 .*, got float32 \[2, 32'),
    (np.zeros((2, 32, 32, 1), np.uint8), r'got uint8 \[2, 32, 32, 1\]'),
    (np.zeros((32, 32, 3), np.uint8), r'got uint8 \[32, 32, 3\]'),
  ],
)
def test_apply_refuses_other_images(images, message):
  with pytest.raises(InputError, match=message):
    autoaugment.apply(images, np.zeros((2, 5), np.int8))


@pytest.mark.parametrize(
  ('drawn', 'message'),
  [
    (np.zeros((3, 5), np.int8), r'integers \[2, 5\].*, got int8 \[3, 5\]'),
    (np.zeros((2, 4), np.int8), r'got int8 \[2, 4\]'),
    (np.zeros((2, 5)), r'got float64 \[2, 5\]'),
    (np.full((2, 5), 25), r'sub-policies 0\.\.24'),
    (np.full((2, 5), -1), r'sub-policies 0\.\.24'),
    (np.full((2, 5), 2), r'columns of 0 and 1'),
  ],
)
def test_apply_refuses_other_draws(drawn, message):
  with pytest.raises(InputError, match=message):
    autoaugment.apply(np.zeros((2, 32, 32, 3), np.uint8), drawn)
