"""Directories of data that cannot be read, told in one line."""

import pathlib

import fake_cifar
import pytest
from cifar_directories import publish

from mpbn_jax import InputError, command_line
from mpbn_jax.datasets import load_dataset, prepare_dataset

ON_DISK = ('cifar10', 'imagenet', 'cifar10_dvs', 'dvs_gesture', 'nmnist')
ARCHIVE = fake_cifar.ARCHIVES['cifar10'][0]


def use(function, directory, name):
  options = f'--config.data.name={name}', f'--config.data.dir={directory}'
  config = command_line.parse(list(options)).config.data
  function(config, num_steps=2)


@pytest.fixture(params=[load_dataset, prepare_dataset])
def function(request):
  return request.param


@pytest.mark.parametrize('name', ON_DISK)
def test_what_the_system_does_not_let_read_is_named(name, function, tmp_path):
  # Who may read everything, as root, may not do this either.
  directory = tmp_path / ('x' * 300)
  with pytest.raises(
    InputError, match=rf'{directory}.* \(File name too long\): fix that, or'
  ):
    use(function, directory, name)


@pytest.mark.parametrize('name', ON_DISK)
def test_home_of_nobody_is_named(name, function):
  with pytest.raises(InputError, match="of a user, got '~no.such.user/data'"):
    use(function, '~no.such.user/data', name)


def test_home_is_expanded(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  with pytest.raises(InputError, match=f'prepared in {tmp_path}/data, got'):
    use(load_dataset, '~/data', 'cifar10')


@pytest.mark.parametrize(
  ('name', 'file', 'said'),
  [
    ('cifar10', 'downloads', 'can be written, got {}'),
    ('cifar10', 'downloads/manual', 'can be written, got {}'),
    ('cifar10', 'cifar10_raw', 'can be written, got {}'),
    ('cifar10', 'cifar10_raw/1.0.0', 'expected nothing at {}'),
    ('nmnist', 'NMNIST', r'can be read, got {}\S* \(Not a directory\)'),
    ('dvs_gesture', '', r'can be read, got {}\S* \(Not a directory\)'),
  ],
)
def test_file_in_the_place_of_a_directory_is_named(
  name, file, said, tmp_path, monkeypatch
):
  publish(monkeypatch)
  data = tmp_path / 'data'
  if file.startswith('cifar10_raw'):
    fake_cifar.lay(data, ARCHIVE)
  path = data / file
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text('mine')
  with pytest.raises(InputError, match=said.format(path)):
    use(prepare_dataset, data, name)
  assert path.read_text() == 'mine'


@pytest.mark.parametrize(
  ('name', 'directory'),
  [
    ('cifar10', f'downloads/manual/{ARCHIVE}'),
    ('cifar10', 'cifar10/3.0.2/dataset_info.json'),
    ('nmnist', 'NMNIST/train.zip'),
  ],
)
def test_directory_in_the_place_of_a_file_is_named(name, directory, tmp_path):
  path = tmp_path / directory
  path.mkdir(parents=True)
  with pytest.raises(InputError, match=rf'got {path} \(Is a directory\)'):
    use(prepare_dataset, tmp_path, name)


def test_error_that_names_no_file_is_a_defect(monkeypatch):
  def broken(*_):
    raise OSError(5, 'of nothing')

  monkeypatch.setattr(pathlib.Path, 'exists', broken)
  with pytest.raises(OSError, match='of nothing'):
    use(load_dataset, '/no/such', 'cifar10')
