"""The registered entries, and what the tests have to know about each."""

import common
from plain_norms import PLAIN
from reference import SURROGATE_DERIVATIVES
from reference_norms import REFERENCES

from mpbn_jax import MODELS, NORMS, SURROGATES
from mpbn_jax.datasets import DATASETS

# Leaves of norms, as `init` returns them.
IDENTITY = {
  'scale': 1,
  'factor': 1,
  'weight': 1,
  'root': 1,
  'var': 1,
  'moment': 1,
  'bias': 0,
  'mean': 0,
}

# (settings, input shape) -> parameters; of the paper's implementation, but
# for spiking_cnn, which is counted by hand:
# 9 * (3 * 64 + 64 * 64 + 64 * 128 + 128 * 128) + 4 * (64 + 64 + 128 + 128)
# + 10 * 129.
COUNTS = [
  ('resnet20', {}, (32, 32, 3), 11_256_010),
  ('resnet20', {'num_classes': 100}, (32, 32, 3), 11_302_180),
  ('resnet20', {}, (48, 48, 2), 11_255_434),
  ('resnet20', {'membrane_norm': 'none'}, (32, 32, 3), 11_247_946),
  (
    'resnet20',
    {'membrane_norm': 'none', 'num_classes': 100},
    (32, 32, 3),
    11_294_116,
  ),
  ('resnet20', {'membrane_norm': 'mpbn_element'}, (32, 32, 3), 11_886_922),
  (
    'resnet20',
    {'membrane_norm': 'mpbn_element', 'num_classes': 100},
    (32, 32, 3),
    11_933_092,
  ),
  ('resnet19', {'width': 128}, (32, 32, 3), 12_578_186),
  ('resnet19', {'width': 128, 'num_classes': 100}, (32, 32, 3), 12_624_356),
  ('resnet19', {'width': 128}, (48, 48, 2), 12_577_034),
  ('vgg16', {}, (32, 32, 3), 14_736_714),
  ('vgg16', {'num_classes': 100}, (32, 32, 3), 14_782_884),
  ('resnet18', {'num_classes': 1000}, (224, 224, 3), 11_697_320),
  ('resnet34', {'num_classes': 1000}, (224, 224, 3), 21_812_904),
  ('spiking_cnn', {}, (8, 8, 3), 262_602),
  # By hand, n = 3: the stem 9 * 3 * 16 + 2 * 16; stage 1, three blocks of
  # 2 * 9 * 16^2 + 8 * 16; the others, (9 * c / 2 + 9 * c + c / 2) * c + 9 * c
  # in the first block and twice 2 * 9 * c^2 + 8 * c, c = 32 and 64; then
  # 2 * 64 + 65 * 10.
  ('preact_resnet', {'width': 16}, (32, 32, 3), 273_850),
]
NEURON_LAYERS = {
  'resnet18': 17,
  'resnet19': 17,
  'resnet20': 19,
  'resnet34': 33,
  'preact_resnet': 19,
  'spiking_cnn': 4,
  'vgg16': 13,
}
IMAGE_SHAPES = {
  'cifar10': (32, 32, 3),
  'cifar100': (32, 32, 3),
  'cifar10_dvs': (48, 48, 2),
  'digits': (8, 8, 1),
  'dvs_gesture': (64, 64, 2),
  'event_digits': (16, 16, 2),
  'imagenet': (224, 224, 3),
  'nmnist': (34, 34, 2),
  'photo_digits': (32, 32, 3),
}
CLASSES = {
  'cifar10': 10,
  'cifar100': 100,
  'cifar10_dvs': 10,
  'digits': 10,
  'dvs_gesture': 11,
  'event_digits': 10,
  'imagenet': 1000,
  'nmnist': 10,
  'photo_digits': 10,
}

# {registry: (its entries, {a table: its keys})}
TABLES = {
  'norms': (
    NORMS,
    {
      'REFERENCES in tests/reference_norms.py': REFERENCES,
      'PLAIN in tests/plain_norms.py': PLAIN,
    },
  ),
  'surrogates': (
    SURROGATES,
    {'SURROGATE_DERIVATIVES in tests/reference.py': SURROGATE_DERIVATIVES},
  ),
  'networks': (
    MODELS,
    {
      'SIDES in tests/common.py': common.SIDES,
      'COUNTS in tests/registered.py': {name for name, *_ in COUNTS},
      'NEURON_LAYERS in tests/registered.py': NEURON_LAYERS,
    },
  ),
  'data sets': (
    DATASETS,
    {
      'IMAGE_SHAPES in tests/registered.py': IMAGE_SHAPES,
      'CLASSES in tests/registered.py': CLASSES,
    },
  ),
}


def known(registry):
  """Returns the entries that every table has.

  Tests are parametrized over these; test_registered.py names the others.
  """
  entries, tables = TABLES[registry]
  return [name for name in entries if all(name in t for t in tables.values())]
