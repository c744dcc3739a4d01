"""Random crop, erasing and mixup, as their papers describe them."""

import functools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpbn_jax.configs.default import get_config

from mpbn_jax import InputError, losses
from mpbn_jax.datasets import augment, augmentations, get_spec, resized_crop
from mpbn_jax.datasets.resized_crop import rectangle


def _random_images(shape):
  return np.random.default_rng(0).integers(1, 256, shape, np.uint8)


def _erasing(probability, dataset='cifar10'):
  config = {**get_config().data, 'random_erasing': probability}
  (erasing,) = augmentations(config, spec=get_spec(dataset))
  return erasing


def _reference_rectangle(rng, height, width, area, aspect):
  """Returns torchvision's rectangle of the next numbers, one by one."""
  down, right = rng.random((1, 2))[0]
  for _ in range(10):
    pixels = rng.uniform(*area) * height * width
    ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
    w = round(math.sqrt(pixels * ratio))
    h = round(math.sqrt(pixels / ratio))
    if 0 < w <= width and 0 < h <= height:
      top = math.floor(down * (height - h + 1))
      return top, math.floor(right * (width - w + 1)), h, w
  return None


def _reference_crop(rng, height, width):
  found = _reference_rectangle(rng, height, width, (0.08, 1), (3 / 4, 4 / 3))
  if found:
    return found
  ratio, w, h = width / height, width, height
  if ratio < 3 / 4:
    h = round(w / (3 / 4))
  elif ratio > 4 / 3:
    w = round(h * (4 / 3))
  return (height - h) // 2, (width - w) // 2, h, w


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(1, 300), st.integers(1, 300))
def test_resized_crop_takes_the_part_of_the_reference(key, height, width):
  expected = _reference_crop(np.random.default_rng(key), height, width)
  assert rectangle(key, height=height, width=width) == expected


def test_resized_crop_of_a_long_image_falls_back_to_its_centre():
  # 8 % of the area is 4 times as wide as a square that fits.
  assert rectangle(0, height=10, width=2000) == (0, (2000 - 13) // 2, 10, 13)


def _triangle(size, length):
  """Returns the weights [size, length] of bilinear resizing, antialiased."""
  scale = max(length / size, 1)
  centres = (np.arange(size) + 0.5) * length / size
  distance = (np.arange(length) + 0.5 - centres[:, None]) / scale
  weights = np.maximum(0, 1 - np.abs(distance))
  return weights / weights.sum(1, keepdims=True)


def test_resized_crop_resizes_its_part_bilinearly():
  image = _random_images((1, 40, 30, 3))
  top, left, height, width = rectangle(5, height=40, width=30)
  part = image[0, top : top + height, left : left + width].astype(float)
  resized = np.einsum(
    'ah,hwc,bw->abc',
    _triangle(40, height),
    part,
    _triangle(30, width),
    optimize=True,
  )
  cropped = resized_crop.apply(image, np.array([5]))[0]
  # Pillow rounds after each of the two directions.
  np.testing.assert_allclose(cropped, resized, atol=1.01)


def test_erased_rectangles_are_those_of_the_paper():
  erasing = _erasing(0.3, 'imagenet')
  boxes = erasing.draw(np.random.default_rng(0), 20000)
  drawn = boxes[boxes.any(1)]
  assert abs(len(drawn) / 20000 - 0.3) < 0.01
  top, left, height, width = drawn.T
  assert min(top.min(), left.min()) == 0
  assert (top + height).max() == (left + width).max() == 224
  share = height * width / 224**2
  assert 0.019 < share.min() < 0.021
  assert 0.32 < share.max() < 0.335
  assert abs(share.mean() - (0.02 + 0.33) / 2) < 0.004
  aspect = np.log(width / height)
  assert abs(aspect.max() - math.log(3.3)) < 0.03
  assert abs(aspect.min() - math.log(0.3)) < 0.03


def test_erasing_puts_the_mean_where_the_rectangle_is():
  images = _random_images((2, 32, 32, 3))
  fill = [125, 123, 114]  # 255 times the mean of CIFAR-10
  boxes = np.array([[3, 5, 4, 20], [0, 0, 0, 0]])
  erased = _erasing(1.0).apply(images, boxes)
  expected = images.copy()
  expected[0, 3:7, 5:25] = fill
  np.testing.assert_array_equal(erased, expected)
  normalized = get_spec('cifar10').normalize(erased[0, 3, 5])
  np.testing.assert_allclose(normalized, 0, atol=0.01)


def test_erasing_with_probability_one_spares_no_image():
  erasing = _erasing(1.0)
  assert erasing.draw(np.random.default_rng(0), 1000).any(1).all()


def test_probability_above_one_is_refused():
  with pytest.raises(InputError, match='random_erasing must be a probability'):
    _erasing(1.5)


def _asked(dataset, **data):
  return augmentations({**get_config().data, **data}, spec=get_spec(dataset))


@pytest.mark.parametrize(
  ('key', 'most'), [('shift', 31), ('roll', 31), ('cutout', 32)]
)
def test_change_as_large_as_the_image_is_refused(key, most):
  assert [each.name for each in _asked('cifar10', **{key: most})] == [key]
  with pytest.raises(InputError) as caught:
    _asked('cifar10', **{key: most + 1})
  assert str(caught.value) == (
    f'data.{key} must be at most {most} pixels for the 32 x 32 images of '
    f"'cifar10', got {most + 1}: set --config.data.{key} to a smaller number"
  )


def test_mixup_of_counts_of_events_is_refused():
  # It would round single events to none.
  with pytest.raises(
    InputError, match="0.2 for the event counts .*'cifar10_dvs'"
  ):
    _asked('cifar10_dvs', mixup=0.2)
  _asked('cifar10_dvs', mixup=0.0)


def test_mixup_draws_a_permutation_and_beta_weights():
  draw = functools.partial(augment.draw_mixup, np.random.default_rng(0), 20000)
  for alpha in (0.2, 1.0):
    partners, weights = draw(alpha=alpha)
    np.testing.assert_array_equal(np.sort(partners), np.arange(20000))
    assert weights.dtype == np.float32
    assert abs(weights.mean() - 0.5) < 0.01
    # Of Beta(a, a): 1 / (4 (2 a + 1)).
    assert abs(weights.var() - 1 / (4 * (2 * alpha + 1))) < 0.003


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
@pytest.mark.parametrize('name', losses.LOSSES)
def test_loss_of_mixed_images_is_that_of_the_mixed_targets(name, smoothing):
  rng = np.random.default_rng(0)
  step_logits = rng.normal(0, 2, (6, 3, 5)).astype(np.float32)
  weights = rng.random(6).astype(np.float32)
  first, second = rng.integers(0, 5, (2, 6))
  targets = weights[:, None] * np.eye(5)[first]
  targets += (1 - weights[:, None]) * np.eye(5)[second]
  targets = (1 - smoothing) * targets + smoothing / 5
  logits = step_logits if name == 'tet' else step_logits.mean(1)[:, None]
  log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  expected = -(targets[:, None] * log).sum(-1).mean(1)
  loss = functools.partial(
    losses.get_loss(name), step_logits, label_smoothing=smoothing
  )
  batch = {'label': first, 'mix_label': second, 'mix_weight': weights}
  np.testing.assert_allclose(losses.of_labels(loss, batch), expected, rtol=1e-5)


def test_loss_without_mixup_is_that_of_the_labels():
  labels = np.arange(4)
  assert losses.of_labels(lambda x: x, {'label': labels}) is labels
