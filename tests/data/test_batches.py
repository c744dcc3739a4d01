"""The last, smaller batch of an epoch: kept or dropped."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import runs

from mpbn_jax import InputError, sharding, training
from mpbn_jax.configs import cifar10, digits, paper
from mpbn_jax.datasets import get_spec
from mpbn_jax.datasets.base import Dataset, Split
from mpbn_jax.datasets.batches import TrainingBatches

COUNT = 22
KEY = '--config.'


def _batches(count=COUNT, *, batch_size=8, last='keep', **options):
  """Returns batches of images whose pixels number them."""
  spec = dataclasses.replace(get_spec('cifar10'), image_shape=(2, 2, 3))
  numbers = np.arange(10, 10 + count, dtype=np.uint8)
  images = np.tile(numbers[:, None, None, None], (1, 2, 2, 3))
  split = Split(images, (np.arange(count) % 10).astype(np.int32))
  dataset = Dataset(spec, {'train': split, 'test': split})
  return TrainingBatches(
    dataset, batch_size=batch_size, seed=0, last=last, **options
  )


def _numbers(batches, steps):
  return [batches.batch(step)['image'][:, 0, 0, 0].tolist() for step in steps]


@pytest.mark.parametrize('epoch', [0, 1, 5])
@pytest.mark.parametrize('count', [22, 24, 9])
def test_every_example_comes_once_an_epoch(count, epoch):
  batches = _batches(count)
  first = epoch * batches.steps_per_epoch
  read = _numbers(batches, range(first, first + batches.steps_per_epoch))
  assert [len(part) for part in read[:-1]] == [8] * (len(read) - 1)
  assert len(read[-1]) == (count - 1) % 8 + 1
  assert sorted(sum(read, [])) == list(range(10, 10 + count))
  assert set(map(len, read)) == set(batches.sizes)


def test_dropping_leaves_the_other_batches_of_an_epoch_as_they_are():
  kept, dropped = _batches(), _batches(last='drop')
  assert (kept.steps_per_epoch, dropped.steps_per_epoch) == (3, 2)
  assert dropped.sizes == (8,)
  assert _numbers(kept, [0, 1]) == _numbers(dropped, [0, 1])
  assert _numbers(kept, [3, 4]) == _numbers(dropped, [2, 3])


def test_hosts_share_the_last_batch_too():
  alone = _numbers(_batches(), range(6))
  hosts = [_batches(host=(i, 2)) for i in range(2)]
  parts = [_numbers(host, range(6)) for host in hosts]
  assert [a + b for a, b in zip(*parts, strict=True)] == alone
  assert [len(part) for part in parts[0]] == [4, 4, 3] * 2


@pytest.mark.parametrize('options', [{'devices': 4}, {'host': (0, 4)}])
def test_last_batch_that_devices_cannot_share_is_refused(options):
  with pytest.raises(InputError, match='leaves 6 of the 22 .* 4 devices'):
    _batches(**options)
  assert _batches(last='drop', **options).steps_per_epoch == 2


def test_what_becomes_of_the_last_batch_is_keep_or_drop():
  with pytest.raises(InputError, match="data.last_batch 'pad'.*drop, keep"):
    _batches(last='pad')


def test_configurations_of_the_paper_keep_it_on_cifar():
  assert cifar10.get_config().data.last_batch == 'keep'
  row = paper.get_config('table1/cifar100/resnet20/mpbn/t2')
  assert row.data.last_batch == 'keep'
  assert digits.get_config().data.last_batch == 'drop'


def test_last_batch_of_one_value_per_statistic_is_refused_before_training():
  cfg = digits.get_config()
  cfg.model.update({'width': 2, 'num_steps': 1})
  cfg.model.membrane_norm = 'mpbn_element'
  cfg.data.update({'train_size': 17, 'batch_size': 16, 'last_batch': 'keep'})
  mesh = sharding.make_mesh(jax.devices()[:1])
  experiment = training.build(cfg, mesh=mesh)
  step = training.make_train_step(experiment)
  init = training.make_init(experiment)
  with pytest.raises(InputError, match='needs at least 2 values'):
    training.check_trainable(experiment, init=init, step=step)


LAST = (
  KEY + 'data.last_batch=keep',
  KEY + 'data.train_size=40',
  KEY + 'data.batch_size=16',
)


def test_run_stopped_before_the_last_batch_ends_with_the_same_bits(
  tmp_path, monkeypatch
):
  assert runs.run(tmp_path / 'whole', *LAST) == 0
  read = TrainingBatches.batch

  def broken(self, step):
    if step == 2:  # the last batch of the first epoch, of 8
      raise InputError('expected an image, got none: restore it')
    return read(self, step)

  monkeypatch.setattr(TrainingBatches, 'batch', broken)
  assert runs.run(tmp_path / 'halves', *LAST) == 2
  monkeypatch.undo()
  assert runs.run(tmp_path / 'halves', *LAST) == 0
  lines = [
    (tmp_path / name / 'summary.json').read_text()
    for name in ('whole', 'halves')
  ]
  whole, halves = map(_comparable, lines)
  assert whole == halves
  assert whole['step'] == 6
  assert whole['epochs'] == 2.0


def _comparable(text):
  summary = json.loads(text)
  return {k: v for k, v in summary.items() if k not in ('seconds', 'date')}
