"""Archives and directories of CIFAR that are damaged, and refused."""

import json
import pathlib
import re
import shutil

import fake_cifar
import numpy as np
import pytest
import runs
from cifar_directories import check_equal, home, load, prepare, publish
from fake_cifar import ARCHIVES

from mpbn_jax import InputError
from mpbn_jax.datasets.cifar import archives, builder

BINARY, PYTHON = ARCHIVES['cifar10']
pytestmark = pytest.mark.usefixtures('small_cifar')


# ---- wrong archives


def refuse(directory, content, archive=BINARY):
  """Prepares of this content; returns the message that refuses it."""
  path = fake_cifar.lay(directory, archive)
  path.write_bytes(content)
  with pytest.raises(InputError) as caught:
    prepare(directory)
  message = str(caught.value)
  assert '\n' not in message
  assert re.match(
    rf'expected ({path} with |the files of {archive} in {path}, got )', message
  )
  assert 'remove it and download it again from http' in message
  assert path.read_bytes() == content
  assert not home(directory).exists()
  return message


def believe(monkeypatch, archive, content):
  """Makes this the official content of the archive."""
  official = tuple(
    fake_cifar.of_content(one, content) if one.name == archive else one
    for one in archives.ARCHIVES['cifar10']
  )
  monkeypatch.setitem(archives.ARCHIVES, 'cifar10', official)


@pytest.mark.parametrize('archive', [BINARY, PYTHON])
def test_truncated_archive_is_refused(archive, tmp_path):
  content = fake_cifar.packed(archive)
  message = refuse(tmp_path, content[:-1000], archive)
  assert f'{len(content):,} bytes' in message
  assert (
    f'got {len(content) - 1000:,}, it is truncated or another file' in message
  )


def test_longer_file_is_refused(tmp_path):
  message = refuse(tmp_path, fake_cifar.packed(BINARY) + b'x')
  assert 'it is another file' in message


def test_wrong_checksum_names_file_expected_and_got(tmp_path):
  content = bytearray(fake_cifar.packed(BINARY))
  content[1000] ^= 1
  message = refuse(tmp_path, bytes(content))
  expected = archives.ARCHIVES['cifar10'][0].checksum
  got = re.search('sha256 checksum ([0-9a-f]{64}), got ([0-9a-f]{64})', message)
  assert f'sha256:{got[1]}' == expected != f'sha256:{got[2]}'


BIN, PY = 'cifar-10-batches-bin', 'cifar-10-batches-py'
SHORT = fake_cifar.pickled(
  [('labels', [1] * 40), ('data', np.zeros((39, 3072), np.uint8))]
)
# Archive, a file in it, its content (None: not there), and what must be said.
WRONG_LAYOUTS = [
  (BINARY, f'{BIN}/data_batch_3.bin', None, f'got no {BIN}/data_batch_3.bin'),
  (PYTHON, f'{PY}/test_batch', None, f'got no {PY}/test_batch'),
  (
    BINARY,
    f'{BIN}/test_batch.bin',
    bytes(19 * 3073),
    f'{BIN}/test_batch.bin with pixels [19, 3072], not [20, 3072]',
  ),
  (BINARY, f'{BIN}/test_batch.bin', b'abc', 'test_batch.bin unreadable ('),
  (
    BINARY,
    f'{BIN}/test_batch.bin',
    b'\x0a' + bytes(20 * 3073 - 1),
    'with the label 10 for 10 classes',
  ),
  (PYTHON, f'{PY}/data_batch_1', SHORT, 'with pixels [39, 3072], not [40'),
  (
    PYTHON,
    f'{PY}/data_batch_1',
    fake_cifar.pickled([('labels', [1] * 40), ('data', b'no array')]),
    'with something other than pixels',
  ),
  (
    PYTHON,
    f'{PY}/data_batch_1',
    SHORT.replace(b'labels', b'lobels'),
    'data_batch_1 unreadable (',
  ),
]


@pytest.mark.parametrize(('archive', 'file', 'content', 'said'), WRONG_LAYOUTS)
def test_wrong_layout_is_refused(
  archive, file, content, said, tmp_path, monkeypatch
):
  members = fake_cifar.members(archive) | {file: content}
  packed = fake_cifar.pack({k: v for k, v in members.items() if v is not None})
  believe(monkeypatch, archive, packed)
  assert said in refuse(tmp_path, packed, archive)


def test_what_is_no_archive_is_refused(tmp_path, monkeypatch):
  believe(monkeypatch, BINARY, b'<html>not found</html>')
  message = refuse(tmp_path, b'<html>not found</html>')
  assert 'got its first file unreadable (not a gzip file)' in message


def test_archive_that_ends_too_early_is_refused(tmp_path, monkeypatch):
  content = fake_cifar.packed(BINARY)[:300_000]
  believe(monkeypatch, BINARY, content)
  assert ' unreadable (' in refuse(tmp_path, content)


def test_code_in_a_pickle_is_not_run(tmp_path, monkeypatch):
  trace = tmp_path / 'trace'
  code = b'cposix\nsystem\nU' + bytes([len(f'touch {trace}')])
  code += f'touch {trace}'.encode() + b'\x85R.'
  members = fake_cifar.members(PYTHON) | {f'{PY}/data_batch_1': code}
  packed = fake_cifar.pack(members)
  believe(monkeypatch, PYTHON, packed)
  message = refuse(tmp_path, packed, PYTHON)
  assert 'data_batch_1 unreadable (it tries to call posix.system)' in message
  assert not trace.exists()


# ---- damaged directories


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """Returns a directory with a prepared CIFAR-10; not to be changed."""
  directory = tmp_path_factory.mktemp('prepared')
  fake_cifar.lay(directory, BINARY)
  with pytest.MonkeyPatch.context() as patch:
    publish(patch)
    prepare(directory)
  return directory


def check_damaged(directory, use=load):
  with pytest.raises(InputError) as caught:
    use(directory)
  message = str(caught.value)
  assert '\n' not in message
  assert re.fullmatch(
    rf"expected 'cifar10', prepared in {home(directory)}, which cannot be read "
    r'\(.+\): remove that directory, then run python main.py '
    rf'--mode=prepare --config.data.name=cifar10 '
    rf'--config.data.dir={directory}',
    message,
  )


RECORDS = 'cifar10_raw-train.array_record-00000-of-00001'


@pytest.mark.parametrize(
  ('name', 'kept'),
  [
    *((RECORDS, kept) for kept in (0.5, 0.0, None)),
    *(('features.json', kept) for kept in (0.5, 0.0, None)),
    *(('dataset_info.json', kept) for kept in (0.5, 0.0)),
  ],
)
def test_damaged_file_says_how_to_prepare_anew(name, kept, prepared, tmp_path):
  directory = shutil.copytree(prepared, tmp_path / 'data')
  path = home(directory) / name
  if kept is None:
    path.unlink()
  else:
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
  check_damaged(directory)
  check_damaged(directory, use=prepare)
  # And it does help.
  shutil.rmtree(home(directory))
  prepare(directory)
  check_equal(load(directory), fake_cifar.splits('cifar10'))


def test_directory_without_its_description_is_not_overwritten(
  prepared, tmp_path
):
  directory = shutil.copytree(prepared, tmp_path / 'data')
  (home(directory) / 'dataset_info.json').unlink()
  before = runs.snapshot(directory)
  with pytest.raises(InputError, match='got none: run python main.py --mode=p'):
    load(directory)
  with pytest.raises(
    InputError, match=f'nothing at {home(directory)}, got .*re'
  ):
    prepare(directory)
  assert runs.snapshot(directory) == before


def test_a_flipped_bit_never_changes_an_image(prepared, tmp_path):
  directory = shutil.copytree(prepared, tmp_path / 'data')
  path = home(directory) / RECORDS
  content = path.read_bytes()
  refused = 0
  for place in np.linspace(0, len(content) - 1, 60).astype(int):
    flipped = bytearray(content)
    flipped[place] ^= 4
    path.write_bytes(flipped)
    try:
      splits = load(directory)
    except InputError:
      refused += 1
    else:  # in the padding
      check_equal(splits, fake_cifar.splits('cifar10'))
  assert refused > 30


def test_other_examples_in_a_record_file_are_noticed(prepared, tmp_path):
  directory = shutil.copytree(prepared, tmp_path / 'data')
  info = home(directory) / 'dataset_info.json'
  content = json.loads(info.read_text())
  # As many examples as of training, but the ids of a few.
  shards = {split['name']: split for split in content['splits']}
  shards['train']['shardLengths'] = ['180', '20']
  records = home(directory) / 'cifar10_raw-{}.array_record-0000{}-of-0000{}'
  records = str(records)
  train = pathlib.Path(records.format('train', 0, 1))
  test = pathlib.Path(records.format('test', 0, 1))
  train.rename(records.format('train', 0, 2))
  shutil.copy(test, records.format('train', 1, 2))
  info.write_text(json.dumps(content))
  with pytest.raises(InputError, match='ids of train that do not number its'):
    load(directory)


def test_what_is_read_back_otherwise_is_not_kept(tmp_path, monkeypatch):
  fake_cifar.lay(tmp_path, BINARY)
  read = builder._read

  def damaged(*arguments):
    splits = read(*arguments)
    if 'test' in splits:
      splits['test'].images[3, 2, 1, 0] ^= 1
    return splits

  monkeypatch.setattr(builder, '_read', damaged)
  with pytest.raises(
    InputError, match='expected to read back what was .*other images of test'
  ):
    prepare(tmp_path)
  assert not home(tmp_path).exists()
