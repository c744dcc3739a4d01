"""CIFAR's images out of every archive and directory, as they went in."""

import io
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
from cifar_directories import check_equal, home, load, prepare, publish
from fake_cifar import ARCHIVES
from runs import arrays_of, metrics, the_error
from tensorflow_datasets.image_classification import cifar as theirs

import main
from mpbn_jax import InputError
from mpbn_jax.datasets import get_spec
from mpbn_jax.datasets.cifar import archives

OFFICIAL = dict(archives.ARCHIVES)
OFFICIAL_COUNTS = dict(archives.COUNTS)
KINDS = [(name, archive) for name in ARCHIVES for archive in ARCHIVES[name]]
BINARY, PYTHON = ARCHIVES['cifar10']
pytestmark = pytest.mark.usefixtures('small_cifar')


# ---- archives


def test_official_archives_are_those_that_are_published():
  # Binary: the checksums that tensorflow-datasets has; python: Keras's.
  found = {
    archive.url: (archive.size, archive.checksum.removeprefix('sha256:'))
    for official in OFFICIAL.values()
    for archive in official
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
  assert OFFICIAL_COUNTS == {'train': 50000, 'test': 10000}


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
  assert out.startswith(f'{name} is already prepared: {tmp_path}/{name}/3.0.2,')


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

COUNTS = {'train': 500, 'test': 100}
STEPS = 2 * 5  # two epochs of 500 images in batches of 100
# The data are what this is about: the network is one that compiles quickly.
TRAINING = (
  '--config=configs/cifar10.py',
  '--config.model.name=spiking_cnn',
  '--config.model.width=4',
  '--config.model.num_steps=1',
  '--config.num_epochs=2',
  '--config.data.batch_size=100',
  '--config.evaluation.batch_size=100',
  '--config.log.every_steps=3',
  '--config.log.tensorboard=false',
)


@pytest.mark.slow
def test_interrupted_training_ends_with_the_same_bits(
  tmp_path, capsys, monkeypatch
):
  publish(monkeypatch, **COUNTS)
  fake_cifar.lay(tmp_path, BINARY, **COUNTS)
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'

  def run(workdir, *more):
    directory = f'--config.data.dir={tmp_path}'
    code = main.main([*TRAINING, directory, f'--workdir={workdir}', *more])
    return code, *capsys.readouterr()

  code, out, err = run(whole, '--mode=prepare')
  assert (code, err) == (0, '')
  assert '500 train and 100 test images' in out
  runs.at_step(monkeypatch, 6, lambda: signal.raise_signal(signal.SIGTERM))
  code, _, err = run(parts)
  assert code == 128 + signal.SIGTERM, err
  assert re.match(rf'stopped at step 6 of {STEPS}, saved in', err)
  ends = [run(workdir) for workdir in (whole, parts)]
  assert [err for _, _, err in ends] == ['', '']
  assert f'{parts} continues: step 6' in ends[1][1]
  ours, other = arrays_of(parts, STEPS), arrays_of(whole, STEPS)
  assert ours.keys() == other.keys()
  for name, array in ours.items():
    assert array.tobytes() == other[name].tobytes(), name
  assert metrics(parts) == metrics(whole)
