"""Recordings on the disk that become the frames of a network."""

import functools
import importlib
import re

import event_files as fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from mpbn_jax.datasets import get_spec
from mpbn_jax.datasets.batches import TrainingBatches, evaluation_batches
from mpbn_jax.datasets.events import cifar10_dvs
from mpbn_jax.datasets.events.frames import to_frames
from mpbn_jax.datasets.events.recordings import Recordings
from mpbn_jax.experiment import build_network

COUNTS = {
  name: {part: source.count for part, source in module.COLLECTIONS.items()}
  for name in fakes.NAMES
  if (module := importlib.import_module(f'mpbn_jax.datasets.events.{name}'))
}
pytestmark = pytest.mark.usefixtures('few_recordings')


def _frames_of(events, name, **options):
  side = fakes.SIDES[name]
  return to_frames(
    events,
    num_steps=fakes.STEPS,
    sensor=(side, side),
    size=get_spec(name).image_shape[:2],
    name='written',
    **options,
  )


@pytest.mark.parametrize('framing', ['count', 'time'])
@pytest.mark.parametrize('name', ['dvs_gesture', 'nmnist'])
def test_splits_are_the_official_parts_in_order(name, framing, tmp_path):
  written = fakes.write(tmp_path, name)
  dataset = fakes.load(tmp_path, name, framing=framing)
  assert set(dataset.splits) == {'train', 'test'}
  for split, part in (('train', 'Train'), ('test', 'Test')):
    expected = [
      (_frames_of(written[path], name, framing=framing), label)
      for label in range(dataset.spec.num_classes)
      for number in range(1, fakes.PER_CLASS + 1)
      if (path := fakes.path_of(name, part, label, number))
    ]
    images, labels = zip(*expected, strict=True)
    np.testing.assert_array_equal(dataset.splits[split].images, images)
    np.testing.assert_array_equal(dataset.splits[split].labels, labels)
    assert dataset.splits[split].images.dtype == np.uint8
    assert dataset.splits[split].labels.dtype == np.int32


@pytest.mark.parametrize('framing', ['count', 'time'])
def test_cifar10_dvs_is_split_by_the_numbers_of_its_files(framing, tmp_path):
  written = fakes.write(tmp_path, 'cifar10_dvs')
  splits = fakes.load(tmp_path, 'cifar10_dvs', framing=framing).splits
  paths = [
    fakes.path_of('cifar10_dvs', '', label, number)  # 2 comes before 10
    for label in range(10)
    for number in range(1, fakes.PER_CLASS + 1)
  ]
  labels = np.repeat(np.arange(10), fakes.PER_CLASS)
  train, test = _parts(labels)
  for name, part in (('train', train), ('test', test)):
    np.testing.assert_array_equal(splits[name].labels, labels[part])
    np.testing.assert_array_equal(
      splits[name].images,
      [
        _frames_of(written[paths[i]], 'cifar10_dvs', framing=framing)
        for i in part
      ],
    )


def _parts(labels):
  """Returns the indices of the parts of CIFAR10-DVS with these labels."""

  class Reader:
    targets = labels

  every = Recordings(Reader, np.arange(len(labels)))
  parts = cifar10_dvs._split({'all': every})
  return parts['train'].positions, parts['test'].positions


def test_cifar10_dvs_has_100_test_recordings_of_each_class():
  labels = np.repeat(np.arange(10), 1000)
  train, test = _parts(labels)
  assert (np.bincount(labels[train]) == 900).all()
  assert (np.bincount(labels[test]) == 100).all()
  both = np.sort(np.concatenate([train, test]))
  np.testing.assert_array_equal(both, np.arange(10_000))
  # Any other rule or seed draws others.
  assert test[:5].tolist() == [3, 7, 21, 29, 66]


@pytest.mark.parametrize('name', fakes.NAMES)
def test_batches_come_from_the_disk(name, tmp_path):
  fakes.write(tmp_path, name)
  dataset = fakes.load(tmp_path, name, roll=2)
  assert isinstance(dataset.splits['train'].images, np.memmap)
  batches = TrainingBatches(dataset, batch_size=16, seed=0)
  shape = (fakes.STEPS, *dataset.spec.image_shape)
  image = batches.batch(1)['image']
  assert type(image) is np.ndarray
  assert image.shape == (16, *shape)
  for batch in evaluation_batches(dataset, 'test', batch_size=7):
    assert batch['image'].shape == (7, *shape)


@pytest.mark.parametrize('name', fakes.NAMES)
def test_hidden_files_are_no_recordings(name, tmp_path):
  fakes.write(tmp_path, name)
  expected = fakes.load(tmp_path, name).splits['train'].labels
  path = tmp_path / fakes.path_of(name, 'Train', 3, 4)
  (path.parent / '.DS_Store').write_bytes(b'of a Macintosh')
  path.with_name(f'._{path.name}').write_bytes(b'of a Macintosh')
  (path.parent / '.hidden').mkdir()
  (path.parent / '.hidden' / path.name).write_bytes(b'of a Macintosh')
  again = fakes.load(tmp_path, name, num_steps=2).splits['train'].labels
  np.testing.assert_array_equal(again, expected)


def test_data_sets_have_as_many_recordings_as_their_archives():
  assert COUNTS == {
    'cifar10_dvs': {'all': 10_000},
    'dvs_gesture': {'train': 1077, 'test': 264},
    'nmnist': {'train': 60_000, 'test': 10_000},
  }


@pytest.mark.parametrize('name', [*fakes.NAMES, 'event_digits'])
def test_configuration_is_of_a_network_for_its_frames(name):
  config = importlib.import_module(f'configs.{name}').get_config()
  assert config.data.name == name
  model, spec, _ = build_network(config)
  x = jnp.zeros((1, *spec.example_shape(config.model.num_steps)))
  init = functools.partial(model.init_with_output, train=False)
  logits, _ = jax.eval_shape(init, jax.random.key(0), x)
  assert logits.shape == (1, spec.num_classes)


def test_command_trains_on_recordings(tmp_path, capsys):
  fakes.write(tmp_path, 'nmnist')
  where = ('--config.data.name=nmnist', f'--config.data.dir={tmp_path}')
  assert runs.run(tmp_path / 'run', *where) == 0
  out = capsys.readouterr().out
  assert 'nmnist: converting 200 recordings to frames' in out
  assert re.search(r'spikes that differ +0 of [1-9]', out)
