"""Do CIFAR's images come out of every archive and directory as they went in?"""

import dataclasses
import io
import json
import pathlib
import re
import shutil
import signal

import fake_cifar
import numpy as np
import PIL.Image
import pytest
import runs
import tensorflow_datasets as tfds
from fake_cifar import ARCHIVES
from runs import arrays_of, metrics, the_error
from tensorflow_datasets.image_classification import cifar as theirs

from configs.default import get_config
from mpbn_jax import InputError
from mpbn_jax.datasets import (
  cifar_archive,
  cifar_builder,
  get_spec,
  load_dataset,
  prepare_dataset,
)

OFFICIAL = dict(cifar_archive.SOURCES)
KINDS = [(name, archive) for name in ARCHIVES for archive in ARCHIVES[name]]
BINARY, PYTHON = ARCHIVES['cifar10']


@pytest.fixture(autouse=True)
def small(monkeypatch):
  """Puts the small archives in the official ones' place."""
  for name in ARCHIVES:
    source = fake_cifar.source(name)
    monkeypatch.setitem(cifar_archive.SOURCES, name, source)


def config(directory, name='cifar10'):
  data = get_config().data.to_dict()
  return data | {'name': name, 'dir': str(directory)}


def prepare(directory, name='cifar10'):
  prepare_dataset(config(directory, name), num_steps=1)


def load(directory, name='cifar10'):
  return load_dataset(config(directory, name), num_steps=1).splits


def home(directory, name='cifar10'):
  return directory / f'{name}_raw' / '1.0.0'


def check_equal(splits, expected):
  assert splits.keys() >= expected.keys()
  for name, split in expected.items():
    assert splits[name].images.dtype == np.uint8
    assert splits[name].labels.dtype == np.int32
    np.testing.assert_array_equal(splits[name].images, split.images)
    np.testing.assert_array_equal(splits[name].labels, split.labels)


# ---- archives


def test_official_archives_are_those_that_are_published():
  # Binary: the checksums that tensorflow-datasets has; python: Keras's.
  found = {
    archive.url: (archive.size, archive.sha256)
    for source in OFFICIAL.values()
    for archive in source.archives
  }
  folder = 'https://www.cs.toronto.edu/~kriz/'
  for builder in (theirs.Cifar10, theirs.Cifar100):
    for url, info in builder.url_infos.items():
      assert found.pop(url) == (info.size, info.checksum)
  assert found == {
    f'{folder}cifar-10-python.tar.gz': (
      170498071,
      '6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce',
    ),
    f'{folder}cifar-100-python.tar.gz': (
      169001437,
      '85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7',
    ),
  }
  for source in OFFICIAL.values():
    assert source.counts == {'train': 50000, 'test': 10000}


@pytest.mark.parametrize(('name', 'archive'), KINDS)
def test_images_and_labels_are_those_of_the_archive(name, archive, tmp_path):
  fake_cifar.lay(tmp_path, archive)
  prepare(tmp_path, name)
  splits = load(tmp_path, name)
  check_equal(splits, fake_cifar.splits(name))
  assert splits.keys() == {'train', 'test'}
  # The archive is not needed any more.
  shutil.rmtree(tmp_path / 'downloads')
  check_equal(load(tmp_path, name), fake_cifar.splits(name))


@pytest.mark.parametrize('name', ARCHIVES)
def test_every_archive_gives_the_same_bytes_on_disk(name, tmp_path):
  found = []
  for archive in ARCHIVES[name]:
    fake_cifar.lay(tmp_path / archive, archive)
    prepare(tmp_path / archive, name)
    found.append(runs.snapshot(home(tmp_path / archive, name)))
  assert found[0] == found[1]


def test_prepared_directory_is_one_of_tensorflow_datasets(tmp_path):
  fake_cifar.lay(tmp_path, BINARY)
  prepare(tmp_path)
  builder = tfds.builder_from_directory(home(tmp_path))
  expected = fake_cifar.splits('cifar10')['test']
  source = builder.as_data_source('test')
  for index in (0, 7, 19):
    example = source[index]
    assert example['id'] == f'test_{index:05d}'.encode()
    assert example['label'] == expected.labels[index]
    np.testing.assert_array_equal(example['image'], expected.images[index])
  labels = builder.info.features['label']
  assert tuple(labels.names) == get_spec('cifar10').class_names


# ---- what tensorflow-datasets prepared itself


def prepare_theirs(directory, name, **options):
  """Prepares with the features, version and shuffling of their builder."""

  base = {'cifar10': theirs.Cifar10, 'cifar100': theirs.Cifar100}[name]

  class Theirs(base, skip_registration=True):
    def _split_generators(self, dl_manager):
      del dl_manager
      splits = fake_cifar.splits(name)
      return {split: self._examples(split, splits[split]) for split in splits}

    def _examples(self, split, content):
      pairs = zip(content.images, content.labels, strict=True)
      for index, (image, label) in enumerate(pairs):
        png = io.BytesIO()
        PIL.Image.fromarray(image).save(png, 'PNG')
        png.seek(0)
        example = {'id': f'{split}_{index:05d}', 'image': png, 'label': label}
        if name == 'cifar100':
          example['coarse_label'] = label // 5
        yield index, example

  Theirs.name = name
  tfds.disable_progress_bar()
  builder = Theirs(data_dir=str(directory), file_format='array_record')
  builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(**options)
  )
  return builder


@pytest.mark.parametrize('name', ARCHIVES)
def test_what_tensorflow_datasets_prepared_is_read(name, tmp_path, capsys):
  builder = prepare_theirs(tmp_path, name)
  assert pathlib.Path(builder.data_dir) == tmp_path / name / '3.0.2'
  ids = [example['id'] for example in builder.as_data_source('train')]
  assert ids != sorted(ids)  # shuffled
  check_equal(load(tmp_path, name), fake_cifar.splits(name))
  capsys.readouterr()
  prepare(tmp_path, name)
  out = capsys.readouterr().out
  assert out.startswith(f'{name} is prepared already: {tmp_path}/{name}/3.0.2,')


def test_part_of_a_data_set_is_not_taken_for_the_whole(tmp_path):
  prepare_theirs(tmp_path, 'cifar10', max_examples_per_split=7)
  with pytest.raises(InputError, match=r'\(7 of 200 examples of train\): remo'):
    load(tmp_path)


@pytest.mark.parametrize('text', ['{"fileFormat": "tfrecord"}', '{', None])
def test_what_cannot_be_read_without_tensorflow_is_not_taken(text, tmp_path):
  place = tmp_path / 'cifar10' / '3.0.2'
  place.mkdir(parents=True)
  if text:
    (place / 'dataset_info.json').write_text(text)
  with pytest.raises(InputError, match='got none: run python main.py --mode=p'):
    load(tmp_path)


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
  source = cifar_archive.SOURCES['cifar10']
  archives = tuple(
    fake_cifar.of_content(one, content) if one.name == archive else one
    for one in source.archives
  )
  source = dataclasses.replace(source, archives=archives)
  monkeypatch.setitem(cifar_archive.SOURCES, 'cifar10', source)


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
  expected = cifar_archive.SOURCES['cifar10'].archives[0].sha256
  got = re.search('sha256 checksum ([0-9a-f]{64}), got ([0-9a-f]{64})', message)
  assert got[1] == expected != got[2]


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
    'with the label 10, of 10 classes',
  ),
  (PYTHON, f'{PY}/data_batch_1', SHORT, 'with pixels [39, 3072], not [40'),
  (
    PYTHON,
    f'{PY}/data_batch_1',
    fake_cifar.pickled([('labels', [1] * 40), ('data', b'no array')]),
    'with something else than pixels',
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
  assert 'data_batch_1 unreadable (it wants to call posix.system)' in message
  assert not trace.exists()


# ---- damaged directories


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """Returns a directory with a prepared CIFAR-10; not to be changed."""
  directory = tmp_path_factory.mktemp('prepared')
  fake_cifar.lay(directory, BINARY)
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(
      cifar_archive.SOURCES, 'cifar10', fake_cifar.source('cifar10')
    )
    prepare(directory)
  return directory


def check_damaged(directory, use=load):
  with pytest.raises(InputError) as caught:
    use(directory)
  message = str(caught.value)
  assert '\n' not in message
  assert re.fullmatch(
    rf"expected 'cifar10', prepared in {home(directory)}, got what cannot be "
    r'read \(.+\): remove that directory, then run python main.py '
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
  read = cifar_builder._read

  def damaged(*arguments):
    splits = read(*arguments)
    if 'test' in splits:
      splits['test'].images[3, 2, 1, 0] ^= 1
    return splits

  monkeypatch.setattr(cifar_builder, '_read', damaged)
  with pytest.raises(
    InputError, match='expected to read back what was .*other images of test'
  ):
    prepare(tmp_path)
  assert not home(tmp_path).exists()


# ---- no TensorFlow


def test_no_tensorflow_is_imported(tmp_path):
  # Where one is installed, here one that says so.
  stub = tmp_path / 'path' / 'tensorflow'
  stub.mkdir(parents=True)
  (stub / '__init__.py').write_text('raise SystemExit("TensorFlow imported")')
  fake_cifar.lay(tmp_path, PYTHON)
  arguments = [
    '--config=configs/cifar10.py',
    f'--config.data.dir={tmp_path}',
    f'--workdir={tmp_path}/run',
  ]

  def run(*more):
    process = fake_cifar.start(
      *arguments, *more, environment={'PYTHONPATH': str(stub.parent)}
    )
    return *process.communicate(), process.returncode

  out, err, code = run('--mode=prepare')
  assert (code, err) == (0, '')
  assert 'cifar10 prepared in' in out
  # Ends when the images are read.
  message = the_error(run('--config.data.batch_size=201')[:2])
  assert 'the 200 training examples' in message


# ---- from the archive to the trained network

COUNTS = {'train': 2000, 'test': 200}
STEPS = 2 * 16  # two epochs of 2,000 images in batches of 125
# The data are what this is about: the network is one that compiles quickly.
TRAINING = (
  '--config=configs/cifar10.py',
  '--config.model.name=spiking_cnn',
  '--config.model.width=4',
  '--config.model.num_steps=1',
  '--config.num_epochs=2',
  '--config.data.batch_size=125',
  '--config.log.every_steps=5',
  '--config.log.tensorboard=false',
)


def train(directory, workdir):
  return fake_cifar.start(
    *TRAINING,
    f'--config.data.dir={directory}',
    f'--workdir={workdir}',
    **COUNTS,
  )


@pytest.mark.slow
def test_interrupted_training_ends_with_the_same_bits(tmp_path):
  fake_cifar.lay(tmp_path, BINARY, **COUNTS)
  preparing = fake_cifar.start(
    *TRAINING, '--mode=prepare', f'--config.data.dir={tmp_path}', **COUNTS
  )
  out, err = preparing.communicate()
  assert (preparing.returncode, err) == (0, '')
  assert '2,000 train and 200 test images' in out
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  # First the one that compiles the training step and no more.
  interrupted = train(tmp_path, parts)
  for line in interrupted.stdout:
    if line.startswith('step 5/'):
      interrupted.send_signal(signal.SIGTERM)
      break
  _, err = interrupted.communicate()
  assert interrupted.returncode == 128 + signal.SIGTERM, err
  assert re.match(rf'stopped at step \d+ of {STEPS}, saved in', err)
  both = train(tmp_path, whole), train(tmp_path, parts)
  ends = [process.communicate() for process in both]
  assert [err for _, err in ends] == ['', '']
  assert f'{parts} continues: step ' in ends[1][0]
  ours, other = arrays_of(parts, STEPS), arrays_of(whole, STEPS)
  assert ours.keys() == other.keys()
  for name, array in ours.items():
    assert array.tobytes() == other[name].tobytes(), name
  assert metrics(parts) == metrics(whole)
