"""Several hosts and devices: every example comes once."""

import dataclasses
import functools
import json
import socket
import subprocess
import sys

import common
import flax.linen as nn
import host as one_host
import jax
import ml_collections
import numpy as np
import pytest
import runs
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mpbn_jax.configs.default import get_config

from mpbn_jax import InputError, sharding, training
from mpbn_jax.datasets import get_spec, load_dataset
from mpbn_jax.datasets.base import Dataset, Split
from mpbn_jax.datasets.batches import TrainingBatches, evaluation_batches
from mpbn_jax.evaluation import evaluate


def _dataset(count, *, name='cifar10', side=4):
  """Returns a data set of `count` examples in each split."""
  rng = np.random.default_rng(count)

  def split():
    images = rng.integers(0, 256, (count, side, side, 3), np.uint8)
    return Split(images, rng.integers(0, 10, count).astype(np.int32))

  spec = dataclasses.replace(get_spec(name), image_shape=(side, side, 3))
  return Dataset(spec, {'train': split(), 'test': split()})


def _joined(batches):
  return {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}


@pytest.mark.parametrize('count', [2, 4])
def test_parts_of_the_hosts_are_the_batch_of_one(count):
  config = {
    **get_config().data,
    'name': 'cifar10',
    'fake': 60,
    **common.EVERYTHING,
  }
  dataset = load_dataset(config, num_steps=1)

  def batches(host):
    return TrainingBatches(dataset, batch_size=12, seed=3, host=host)

  alone = batches((0, 1))
  hosts = [batches((index, count)) for index in range(count)]
  assert {host.steps_per_epoch for host in hosts} == {5}
  for step in (0, 4, 7):  # the first, the last, one of the next epoch
    parts = [host.batch(step) for host in hosts]
    assert {len(part['label']) for part in parts} == {12 // count}
    together = _joined(parts)
    for name, value in alone.batch(step).items():
      np.testing.assert_array_equal(together[name], value)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 13))
def test_hosts_evaluate_every_example_once(examples, count, share):
  dataset = _dataset(examples)
  split = dataset.splits['test']

  def batches(host):
    size = share * host[1]
    return evaluation_batches(dataset, 'test', batch_size=size, host=host)

  hosts = [list(batches((index, count))) for index in range(count)]
  in_order = [part for parts in zip(*hosts, strict=True) for part in parts]
  assert {len(part['label']) for part in in_order} == {share}
  together = _joined(in_order)
  counted = {name: v[together['mask']] for name, v in together.items()}
  np.testing.assert_array_equal(counted['image'], split.images)
  np.testing.assert_array_equal(counted['label'], split.labels)


def test_batch_that_hosts_cannot_share_says_by_what():
  for make in (TrainingBatches, _evaluation):
    with pytest.raises(
      InputError, match='batch_size must be divisible by the 2 hosts, got 7'
    ):
      make(_dataset(20), batch_size=7, host=(0, 2), seed=0)


def _evaluation(dataset, *, batch_size, host, seed):
  del seed
  return list(
    evaluation_batches(dataset, 'test', batch_size=batch_size, host=host)
  )


@pytest.mark.parametrize('mixup', [0.0, 0.1])
def test_shapes_are_known_without_reading(mixup):
  dataset = dataclasses.replace(_dataset(20), mixup=mixup)
  batches = TrainingBatches(dataset, batch_size=12, seed=3)
  shapes = batches.abstract(batches.sizes[0])
  batch = batches.batch(0)
  assert shapes.keys() == batch.keys()
  for name, value in batch.items():
    assert (shapes[name].shape, shapes[name].dtype) == (
      value.shape,
      value.dtype,
    )


class _Linear(nn.Module):
  """Stands for a network: one product, compiled in no time."""

  @nn.compact
  def __call__(self, x, *, train):
    del train
    return nn.Dense(10)(x.reshape(len(x), -1))


@functools.cache
def _linear():
  model = _Linear()
  x = np.zeros((1, 4, 4, 3), np.float32)
  return model, model.init(jax.random.key(0), x, train=False)


@settings(max_examples=20, deadline=None)
@example(examples=7, devices=2, share=3)
@given(
  examples=st.integers(1, 30),
  devices=st.sampled_from([1, 2, 4]),
  share=st.integers(1, 4),
)
def test_evaluate_counts_every_image_once(examples, devices, share):
  model, variables = _linear()
  dataset = _dataset(examples)
  config = ml_collections.ConfigDict(
    {'evaluation': {'batch_size': share * devices}, 'data': {'prefetch': 2}}
  )
  experiment = training.Experiment(
    config=config,
    model=model,
    dataset=dataset,
    batches=None,
    optimizer=None,
    learning_rate=None,
    mesh=sharding.make_mesh(jax.devices()[:devices]),
    total_steps=0,
  )
  scores = evaluate(experiment, variables, split='test')
  split = dataset.splits['test']
  logits = model.apply(
    variables, dataset.spec.normalize(split.images), train=False
  )
  right = (logits.argmax(-1) == split.labels).sum()
  assert round(scores['accuracy'] * examples, 3) == right
  log = jax.nn.log_softmax(logits)[np.arange(examples), split.labels]
  np.testing.assert_allclose(scores['loss'], -log.mean(), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures('registries')
def test_two_hosts_train_and_evaluate_as_one():
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  processes = [
    subprocess.Popen(
      [sys.executable, 'tests/program/host.py', '2', str(index), str(port)],
      cwd=runs.ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(2)
  ]
  said = []
  for process in processes:
    out, err = process.communicate()
    assert process.returncode == 0, err
    said.append(json.loads(out.splitlines()[-1]))
  assert said[0] == said[1]
  expected = one_host.results(sharding.make_mesh(jax.devices()[:2]))
  np.testing.assert_allclose(said[0]['losses'], expected['losses'], rtol=1e-5)
  np.testing.assert_allclose(
    said[0]['scores']['loss'], expected['scores']['loss'], rtol=1e-5
  )
  assert said[0]['change']['spikes_compared'] > 0
  assert said[0]['change']['spikes_differing'] == 0
  assert said[0]['change'] == expected['change']
  assert (
    pytest.approx(said[0]['scores']['accuracy'])
    == expected['change']['accuracy']
  )
