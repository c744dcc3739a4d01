"""Operations on images: Pillow's, bit for bit, at torchvision's magnitudes."""

import numpy as np
import pytest
from pillow_operations import (
  IMAGES,
  PILLOW,
  natural,
  random_images,
  with_pillow,
)

from mpbn_jax.datasets.image_operations import OPERATIONS, SIGNED, magnitudes

MAGNITUDES = magnitudes(10)  # AutoAugment's levels


def _magnitudes(name):
  signs = (1, -1) if name in SIGNED else (1,)
  return sorted({sign * m for m in MAGNITUDES[name] for sign in signs})


@pytest.mark.parametrize('kind', IMAGES)
@pytest.mark.parametrize('name', OPERATIONS)
def test_operation_equals_pillow_bit_for_bit_at_every_level(name, kind):
  images = IMAGES[kind]()
  for magnitude in _magnitudes(name):
    ours = OPERATIONS[name](images, magnitude)
    assert ours.dtype == np.uint8
    np.testing.assert_array_equal(ours, with_pillow(name, images, magnitude))


@pytest.mark.parametrize('degrees', [90, 180, 270, 120.5])
def test_large_rotations_equal_pillow_bit_for_bit(degrees):
  images = random_images()
  ours = OPERATIONS['Rotate'](images, degrees)
  np.testing.assert_array_equal(ours, with_pillow('Rotate', images, degrees))


@pytest.mark.parametrize('name', OPERATIONS)
def test_operation_leaves_its_argument_as_it_was(name):
  images = natural().copy()
  OPERATIONS[name](images, MAGNITUDES[name][9])
  np.testing.assert_array_equal(images, natural())


def test_signed_operations_are_those_of_torchvision():
  unsigned = {'Posterize', 'Solarize', 'AutoContrast', 'Equalize', 'Invert'}
  assert set(SIGNED) == set(OPERATIONS) - unsigned


@pytest.mark.parametrize('level', [1, 4, 8])
def test_magnitudes_between_the_ends_are_torchvisions(level):
  share = level / 9
  expected = {
    'ShearX': 0.3 * share,
    'ShearY': 0.3 * share,
    'TranslateX': 150 / 331 * share,
    'TranslateY': 150 / 331 * share,
    'Rotate': 30 * share,
    'Brightness': 0.9 * share,
    'Color': 0.9 * share,
    'Contrast': 0.9 * share,
    'Sharpness': 0.9 * share,
    'Posterize': 8 - round(4 * share),
    'Solarize': 255 * (1 - share),
    'AutoContrast': 0,
    'Equalize': 0,
    'Invert': 0,
  }
  assert {name: m[level] for name, m in MAGNITUDES.items()} == pytest.approx(
    expected
  )


def test_every_operation_has_magnitudes_and_a_reference():
  assert set(OPERATIONS) == set(MAGNITUDES) == set(PILLOW)
  assert all(len(levels) == 10 for levels in MAGNITUDES.values())


def test_magnitudes_end_where_torchvision_ends():
  assert MAGNITUDES['ShearX'][9] == pytest.approx(0.3)
  assert MAGNITUDES['Rotate'][9] == pytest.approx(30)
  assert MAGNITUDES['Color'][9] == pytest.approx(0.9)
  assert (MAGNITUDES['Solarize'][0], MAGNITUDES['Solarize'][9]) == (255, 0)
  # `8 - (torch.arange(10) / ((10 - 1) / 4)).round().int()`
  assert MAGNITUDES['Posterize'] == (8, 8, 7, 7, 6, 6, 5, 5, 4, 4)


@pytest.mark.parametrize(('level', 'pixels'), [(3, 4), (8, 12), (9, 14)])
def test_translation_of_32_pixels_is_cut_as_in_torchvision(level, pixels):
  images = random_images()
  moved = OPERATIONS['TranslateX'](images, MAGNITUDES['TranslateX'][level])
  np.testing.assert_array_equal(moved[:, :, pixels:], images[:, :, :-pixels])
  assert (moved[:, :, :pixels] == 128).all()
