"""Splits that were asked for, and batches that are ready in time."""

import contextlib
import io
import json
import re
import signal
import threading
import time

import common
import numpy as np
import pytest
import runs
from hypothesis import given, settings
from hypothesis import strategies as st
from mpbn_jax.configs.default import get_config

from mpbn_jax import InputError
from mpbn_jax.datasets import load_dataset
from mpbn_jax.datasets.batches import TrainingBatches
from mpbn_jax.datasets.prefetch import Prefetch
from mpbn_jax.datasets.splits import divide, sample_stratified

KEY = '--config.'


# ---- splits


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_stratified_sample_has_the_size_and_the_shares_of_all(data):
  labels = np.array(data.draw(st.lists(st.integers(0, 4), min_size=1)))
  size = data.draw(st.integers(0, len(labels)))
  chosen = sample_stratified(labels, size=size, seed=0)
  assert len(chosen) == size
  assert (np.diff(chosen) > 0).all()
  exact = np.bincount(labels, minlength=5) * size / len(labels)
  found = np.bincount(labels[chosen], minlength=5)
  assert np.abs(found - exact).max() < 1


def _loaded(**data):
  config = {**get_config().data, 'name': 'cifar10', 'fake': 60, **data}
  return load_dataset(config, num_steps=1)


def _images(dataset, split):
  examples = dataset.splits[split]
  return examples.read(np.arange(len(examples)))


def test_validation_is_held_out_of_the_training_examples():
  whole, labels = _images(_loaded(), 'train')
  dataset = _loaded(validation_size=20)
  parts = [_images(dataset, name) for name in ('train', 'validation')]
  assert [len(images) for images, _ in parts] == [40, 20]
  together = np.concatenate([images for images, _ in parts])
  order = np.lexsort(together.reshape(60, -1).T)
  expected = np.lexsort(whole.reshape(60, -1).T)
  np.testing.assert_array_equal(together[order], whole[expected])
  for split, (_, found) in zip(('train', 'validation'), parts, strict=True):
    np.testing.assert_array_equal(found, dataset.splits[split].labels)
    np.testing.assert_array_equal(np.bincount(found), len(found) // 10)
  assert labels[expected].tolist() == (
    np.concatenate([found for _, found in parts])[order].tolist()
  )


def test_smaller_training_split_is_chosen_after_validation():
  both = _loaded(validation_size=20, train_size=30)
  held = _images(_loaded(validation_size=20), 'validation')[0]
  np.testing.assert_array_equal(_images(both, 'validation')[0], held)
  images, labels = _images(both, 'train')
  np.testing.assert_array_equal(np.bincount(labels), 3)
  for image in images:
    assert not (image == held).all((1, 2, 3)).any()
  again = _images(_loaded(validation_size=20, train_size=30), 'train')[0]
  np.testing.assert_array_equal(images, again)


@pytest.mark.parametrize(
  ('sizes', 'message'),
  [
    (dict(validation_size=60), 'validation_size must be at most 59 .* got 60'),
    (dict(train_size=61), 'train_size must be at most 60 .* got 61: set'),
    (
      dict(validation_size=20, train_size=41),
      'train_size must be at most 40 .* got 41',
    ),
  ],
)
def test_more_examples_than_there_are_is_refused(sizes, message):
  with pytest.raises(InputError, match=message):
    _loaded(**sizes)


def test_validation_beside_a_split_of_its_own_is_refused():
  message = "'digits' has a validation split of its own, .* = 9: set"
  with pytest.raises(InputError, match=message):
    load_dataset(
      {**get_config().data, 'name': 'digits', 'validation_size': 9}, num_steps=1
    )


def test_nothing_asked_leaves_the_splits_as_they_are():
  splits = _loaded().splits
  assert divide(splits, name='x', validation_size=0, train_size=0) == splits


# Without a validation split.
NO_VALIDATION = (
  KEY + 'data.fake=64',
  KEY + 'data.batch_size=16',
  KEY + 'log.every_steps=2',
)
BEST = KEY + 'evaluation.checkpoint=best'


def _metrics(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_training_without_validation_is_tested_at_the_end(tmp_path, capsys):
  workdir = tmp_path / 'run'
  assert runs.run(workdir, *NO_VALIDATION) == 0
  assert 'test accuracy' in capsys.readouterr().out
  lines = _metrics(workdir)
  assert lines
  assert not [line for line in lines if 'validation_loss' in line]
  assert runs.run(workdir, *NO_VALIDATION, '--mode=evaluate', BEST) == 2
  message = runs.the_error(capsys.readouterr())
  assert 'expected a checkpoint that was measured on validation' in message
  assert 'train with --config.data.validation_size' in message


def test_training_with_validation_held_out_has_a_best(tmp_path, capsys):
  arguments = (*NO_VALIDATION, KEY + 'data.validation_size=16')
  assert runs.run(tmp_path / 'run', *arguments) == 0
  steps = [x['step'] for x in _metrics(tmp_path / 'run') if 'loss' not in x]
  assert steps == [3, 6]  # 48 examples to train on
  assert runs.run(tmp_path / 'run', *arguments, '--mode=evaluate', BEST) == 0


# ---- reading ahead


def test_prefetched_items_come_in_order_and_end():
  with Prefetch(range(100), ahead=2) as ready:
    assert list(ready) == list(range(100))
    assert list(ready) == []


@pytest.mark.parametrize('ahead', [1, 2, 3])
def test_no_more_than_asked_is_made_ahead(ahead):
  made = []

  def items():
    for i in range(50):
      made.append(i)
      yield i

  with Prefetch(items(), ahead=ahead) as ready:
    for taken in range(1, 6):
      next(ready)
      deadline = time.monotonic() + 10
      while len(made) < taken + ahead and time.monotonic() < deadline:
        time.sleep(0.001)
      time.sleep(0.01)  # for one too many
      assert len(made) == taken + ahead
  assert len(made) == 5 + ahead
  assert not _threads()


def _threads():
  return [t for t in threading.enumerate() if t.name == 'prefetch']


def test_what_the_thread_raises_arrives_as_it_is():
  error = InputError('expected this, got that: do so')

  def items():
    yield 1
    raise error

  with Prefetch(items(), ahead=2) as ready:
    assert next(ready) == 1
    for _ in range(2):
      with pytest.raises(InputError) as caught:
        next(ready)
      assert caught.value is error
  assert not _threads()


def test_waiting_is_measured():
  def slow():
    for _ in range(3):
      time.sleep(0.05)
      yield

  with Prefetch(slow(), ahead=2) as ready:
    list(ready)
  assert 0.14 < ready.waited < 5
  with Prefetch(range(3), ahead=3) as ready:
    time.sleep(0.2)
    list(ready)
  assert ready.waited < 0.1


def test_ctrl_c_while_waiting_stops_the_thread():
  def items():
    time.sleep(0.2)
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    time.sleep(0.2)
    yield 1

  with (
    pytest.raises(KeyboardInterrupt),
    Prefetch(items(), ahead=1) as ready,
  ):
    next(ready)
  assert not _threads()


@pytest.fixture(scope='module')
def changed(tmp_path_factory):
  """Returns (work directory, output) of an epoch with every augmentation."""
  workdir = tmp_path_factory.mktemp('changed') / 'run'
  arguments = [
    KEY + f'data.{key}={value}'
    for key, value in common.EVERYTHING.items()
    if key != 'auto_augment'  # needs 3 channels
  ]
  out = io.StringIO()
  with contextlib.redirect_stdout(out):
    assert runs.run(workdir, *arguments, KEY + 'num_epochs=1') == 0
  return workdir, out.getvalue()


def test_training_with_every_augmentation_has_finite_losses(changed):
  losses = [x['loss'] for x in _metrics(changed[0]) if 'loss' in x]
  assert np.isfinite(losses).all()


def test_log_says_the_share_of_the_time_that_training_waited(changed):
  lines = [x for x in _metrics(changed[0]) if 'steps_per_second' in x]
  assert [line['step'] for line in lines] == [5, 10, 15, 16]
  assert all(0 <= line['data_wait'] <= 1 for line in lines)
  assert len(re.findall(r'  wait \d+%  ', changed[1])) == 4


def test_waiting_for_slow_data_is_seen(tmp_path, monkeypatch):
  batch = TrainingBatches.batch

  def slow(self, step):
    time.sleep(0.2)
    return batch(self, step)

  monkeypatch.setattr(TrainingBatches, 'batch', slow)
  assert runs.run(tmp_path / 'run', KEY + 'num_epochs=1') == 0
  waits = [x['data_wait'] for x in _metrics(tmp_path / 'run') if 'loss' in x]
  assert np.median(waits) > 0.3


def test_bad_input_of_the_thread_is_one_line(tmp_path, monkeypatch, capsys):
  batch = TrainingBatches.batch

  def broken(self, step):
    if step == 7:
      raise InputError('expected an image, got none: restore it')
    return batch(self, step)

  monkeypatch.setattr(TrainingBatches, 'batch', broken)
  workdir = tmp_path / 'run'
  assert runs.run(workdir, KEY + 'num_epochs=1') == 2
  _, err = capsys.readouterr()
  assert err == 'error: expected an image, got none: restore it\n'
  assert not _threads()
  # What was trained is kept.
  monkeypatch.undo()
  assert runs.run(workdir, KEY + 'num_epochs=1') == 0
  assert 'continues: step 7 of 16' in capsys.readouterr().out


def test_bad_input_while_evaluating_is_one_line(tmp_path, monkeypatch, capsys):
  def broken(*_, **__):
    raise InputError('expected an image, got none: restore it')
    yield

  monkeypatch.setattr('mpbn_jax.evaluation.evaluation_batches', broken)
  assert runs.run(tmp_path / 'run', *NO_VALIDATION) == 2
  _, err = capsys.readouterr()
  assert err == 'error: expected an image, got none: restore it\n'
  assert not _threads()
