"""Archives of event cameras that become recordings, whole or not at all."""

import hashlib
import io
import os
import re
import resource
import tarfile
import threading
import zipfile

import event_files as fakes
import pytest

from mpbn_jax import InputError
from mpbn_jax.datasets import downloads, preparation
from mpbn_jax.datasets.events import archives, tonic_readers

KINDS = {
  'cifar10_dvs': 'CIFAR10DVS',
  'dvs_gesture': 'DVSGesture',
  'nmnist': 'NMNIST',
}


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
  fakes.expect_few(monkeypatch)
  monkeypatch.setattr(downloads, 'download', lambda url, path: 'no connection')


def _zip(folders, root):
  """Returns a .zip of these folders of `root`, as bytes."""
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w') as file:
    for folder in folders:
      for path in sorted((root / folder).rglob('*')):
        file.write(path, path.relative_to(root))
  return buffer.getvalue()


def _tar(folder, root):
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode='w:gz') as file:
    file.add(root / folder, folder)
  return buffer.getvalue()


def _archives(name, root):
  """Returns {name of the archive: bytes}, as they are published."""
  if name == 'dvs_gesture':
    parts = ('ibmGestureTrain', 'ibmGestureTest')
    return {f'{part}.tar.gz': _tar(part, root) for part in parts}
  if name == 'nmnist':
    return {f'{p.lower()}.zip': _zip([p], root) for p in ('Train', 'Test')}
  buffer = io.BytesIO()  # of one for each class
  with zipfile.ZipFile(buffer, 'w') as file:
    for folder in sorted(os.listdir(root)):
      file.writestr(f'{folder}.zip', _zip([folder], root))
  return {'CIFAR10DVS.zip': buffer.getvalue()}


@pytest.fixture(scope='module')
def published(tmp_path_factory):
  """Returns {name: (`data.dir` of the recordings, {archive: bytes})}."""

  def publish(name):
    directory = tmp_path_factory.mktemp(name)
    fakes.write(directory, name)
    return directory, _archives(name, directory / KINDS[name])

  return {name: publish(name) for name in KINDS}


@pytest.fixture(params=KINDS)
def archived(request, published, tmp_path, monkeypatch):
  """Returns (name, `data.dir` with the archives, one with the recordings)."""
  name, kind = request.param, KINDS[request.param]
  there, archives = published[name]
  (tmp_path / kind).mkdir()
  for file, content in archives.items():
    (tmp_path / kind / file).write_bytes(content)
    part = 'train' if 'train' in file.lower() else 'test'
    attribute = 'file_md5' if name == 'cifar10_dvs' else f'{part}_md5'
    reader = getattr(tonic_readers, kind)
    monkeypatch.setattr(reader, attribute, hashlib.md5(content).hexdigest())
  return name, tmp_path, there


def _an_archive(directory):
  return max(directory.glob('*/*.zip'), default=None) or max(
    directory.glob('*/*.tar.gz')
  )


def test_archives_become_the_recordings_that_are_in_them(archived):
  name, here, there = archived
  before = fakes.files(here)
  fakes.prepare(here, name)
  recordings = fakes.files(there)
  new = fakes.files(here) - before
  assert {file for file in new if not file.startswith('event_')} == recordings
  for file in recordings:
    assert (here / file).read_bytes() == (there / file).read_bytes()
  assert set(fakes.load(here, name).splits) == {'train', 'test'}


def test_what_is_prepared_is_left_alone(archived, capsys):
  name, here, _ = archived
  fakes.prepare(here, name)
  out = capsys.readouterr().out
  assert ' recordings to frames, ' in out
  assert f'{name} prepared in ' in out
  fakes.remove_recordings(here)  # to make room
  before = fakes.files(here)
  fakes.prepare(here, name)
  (line,) = capsys.readouterr().out.splitlines()
  assert line.startswith(f'{name} is already prepared: {here}')
  assert line.endswith(' test recordings, T = 3')
  assert fakes.files(here) == before


def test_archive_with_another_checksum_is_named_and_kept(archived):
  name, here, _ = archived
  path = _an_archive(here)
  path.write_bytes(path.read_bytes()[:-20])
  before = fakes.files(here)
  with pytest.raises(InputError) as caught:
    fakes.prepare(here, name)
  assert f'expected {path} with the md5 checksum ' in str(caught.value)
  assert 'it is truncated or another file: remove it' in str(caught.value)
  assert path.exists()
  assert not {f for f in fakes.files(here) - before if 'event_frames' in f}


def test_absent_archive_without_internet_says_where_to_put_it(archived):
  name, here, _ = archived
  for path in here.glob('*/*'):
    path.unlink()
  with pytest.raises(InputError) as caught:
    fakes.prepare(here, name)
  assert re.search(
    rf'\(no connection\): put \S*(zip|gz) into {here / KINDS[name]} and run',
    str(caught.value),
  )
  assert fakes.files(here) == set()


@pytest.mark.parametrize('name', ['dvs_gesture', 'nmnist'])
def test_half_of_the_recordings_is_told_before_a_download(
  name, tmp_path, monkeypatch
):
  fakes.write(tmp_path, name)
  (tmp_path / fakes.path_of(name, 'Train', 3, 4)).unlink()
  monkeypatch.setattr(downloads, 'download', None)
  with pytest.raises(InputError, match='got (99|109): remove that incomplete'):
    fakes.prepare(tmp_path, name)


def test_archive_that_is_downloaded_is_checked_and_unpacked(
  archived, monkeypatch
):
  name, here, there = archived
  server = here / 'server'
  (here / KINDS[name]).rename(server)
  asked = []

  def download(url, path):
    asked.append(url)
    content = (server / path.name.removesuffix('.part')).read_bytes()
    path.write_bytes(content if len(asked) > 1 else content[:100])

  monkeypatch.setattr(downloads, 'download', download)
  with pytest.raises(InputError) as caught:
    fakes.prepare(here, name)
  assert f'expected {asked[0]} with the md5 checksum ' in str(caught.value)
  assert re.search(
    rf'put \S*(zip|gz) into {here / KINDS[name]} and run the same command ag',
    str(caught.value),
  )
  assert not list(here.glob('[!s]*/*'))
  fakes.prepare(here, name)
  assert fakes.files(there) <= fakes.files(here)
  assert all(url.startswith('https://') for url in asked)


def test_unpacking_that_was_killed_is_begun_again(archived):
  name, here, there = archived
  half = here / KINDS[name] / '.unpacked' / 'Train' / '0'
  half.mkdir(parents=True)
  (half / '00001.bin').write_bytes(b'123')
  fakes.prepare(here, name)
  assert fakes.files(there) <= fakes.files(here)
  assert not half.exists()


def test_full_disk_leaves_no_half_of_the_recordings(archived):
  name, here, there = archived
  before = fakes.files(here)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  # As a full disk: the system refuses to write, in the middle of a file.
  resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
  try:
    with pytest.raises(InputError, match=' free'):
      fakes.prepare(here, name)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert fakes.files(here) == before
  fakes.prepare(here, name)
  assert fakes.files(there) <= fakes.files(here)


@pytest.mark.parametrize('archived', ['cifar10_dvs', 'nmnist'], indirect=True)
def test_disk_that_is_too_small_is_seen_before_unpacking(archived, monkeypatch):
  name, here, _ = archived
  usage = preparation.shutil.disk_usage
  monkeypatch.setattr(
    preparation.shutil,
    'disk_usage',
    lambda path: usage(path)._replace(free=100),
  )
  before = fakes.files(here)
  with pytest.raises(InputError, match='for .* bytes .* got 100 bytes free'):
    fakes.prepare(here, name)
  assert fakes.files(here) == before


def test_second_process_waits_for_the_recordings(archived, caplog):
  name, here, there = archived
  location = here / KINDS[name]
  with preparation.exclusive(location, what='the recordings'):
    thread = threading.Thread(target=fakes.prepare, args=(here, name))
    thread.start()
    while 'waiting' not in caplog.text:
      thread.join(0.01)
      assert thread.is_alive()
    assert fakes.files(here).isdisjoint(fakes.files(there))
  thread.join()
  assert fakes.files(there) <= fakes.files(here)
  assert f'the recordings of {KINDS[name]}: another process' in caplog.text


@pytest.mark.parametrize(
  'name', ['../outside', '/tmp/outside', 'inside/../../outside', 'link']
)
def test_member_that_leaves_its_folder_is_refused(name, tmp_path):
  path, target = tmp_path / 'a.tar.gz', tmp_path / 'target'
  with tarfile.open(path, 'w:gz') as file:
    member = tarfile.TarInfo(name)
    if name == 'link':
      member.type, member.linkname = tarfile.SYMTYPE, '/etc/passwd'
    file.addfile(member, io.BytesIO())
  with pytest.raises(InputError, match=f"inside its own folder, got '{name}'"):
    archives._extract(path, target)
  assert not any(target.iterdir())
