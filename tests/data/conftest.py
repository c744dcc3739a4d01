"""Fixtures of small data sets, which several files share."""

import shutil

import cifar_directories
import event_files
import imagenet_files
import pytest

from mpbn_jax.datasets import imagenet


@pytest.fixture
def small_cifar(monkeypatch):
  """Puts the small archives in the official ones' place."""
  cifar_directories.publish(monkeypatch)


@pytest.fixture
def few_recordings(monkeypatch):
  """Makes the data sets of events content with a few recordings."""
  event_files.expect_few(monkeypatch)


@pytest.fixture
def dvs(tmp_path):
  """Returns `data.dir` with the recordings of a small CIFAR10-DVS."""
  event_files.write(tmp_path, 'cifar10_dvs')
  return tmp_path


@pytest.fixture
def small_imagenet(monkeypatch):
  """Makes 'imagenet' of the registry the small one."""
  monkeypatch.setattr(imagenet, 'SPEC', imagenet_files.SPEC)


@pytest.fixture(scope='module')
def _tree(tmp_path_factory):
  root = tmp_path_factory.mktemp('tree')
  imagenet_files.write_tree(root)
  return root


@pytest.fixture
def tree(_tree, tmp_path):
  """Returns a `data.dir` with a tree of ImageNet, to be changed at will."""
  return shutil.copytree(_tree, tmp_path / 'tree')


@pytest.fixture(scope='module')
def _records(tmp_path_factory):
  root = tmp_path_factory.mktemp('records')
  imagenet_files.write_records(root)
  return root


@pytest.fixture
def records(_records, tmp_path):
  """Returns a `data.dir` with ImageNet's records, to be changed at will."""
  return shutil.copytree(_records, tmp_path / 'records')
