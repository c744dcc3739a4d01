"""Images of ImageNet that cannot be decoded, and data that are not there."""

import errno
import json
import logging
import pathlib
import shutil

import numpy as np
import pytest
import runs
from imagenet_files import CLASSES, load, load_from_registry, read
from mpbn_jax.configs.default import get_config
from PIL import Image

from mpbn_jax import InputError, report
from mpbn_jax.datasets import load_dataset
from mpbn_jax.datasets.batches import evaluation_batches

KEY = '--config.'


# ---- images that cannot be decoded


def _bad(root):
  return root / 'imagenet' / 'val' / CLASSES[1] / f'{CLASSES[1]}_0.JPEG'


def _truncate(path):
  path.write_bytes(path.read_bytes()[:-40])


DAMAGE = {
  'truncated': (_truncate, 'truncated'),
  'empty': (lambda path: path.write_bytes(b''), 'neither JPEG nor PNG'),
  'text': (lambda path: path.write_text('no'), 'neither JPEG nor PNG'),
}


@pytest.mark.parametrize('kind', DAMAGE)
def test_bad_image_stops_and_is_named(kind, tree):
  damage, reason = DAMAGE[kind]
  split = load(tree)['test']  # listed before
  damage(_bad(tree))
  with pytest.raises(InputError) as caught:
    read(split)
  message = str(caught.value)
  assert str(_bad(tree)) in message
  assert reason in message
  assert 'on_bad_image=skip' in message
  assert '\n' not in message


@pytest.mark.parametrize('kind', DAMAGE)
def test_skipped_image_is_black_has_no_label_and_is_named_once(
  kind, tree, caplog
):
  whole = read(load(tree)['test'])
  split = load(tree, on_bad_image='skip')['test']
  DAMAGE[kind][0](_bad(tree))
  with caplog.at_level(logging.WARNING):
    for _ in range(2):
      images, labels = read(split)
  np.testing.assert_array_equal(labels, [0, 0, -1, 1, 2, 2])
  assert not images[2].any()
  good = labels >= 0
  np.testing.assert_array_equal(images[good], whole[0][good])
  (warning,) = caplog.messages
  assert str(_bad(tree)) in warning
  assert list(split.unreadable) == [str(_bad(tree))]


def _not_read(split):
  with pytest.raises(InputError) as caught:
    read(split)
  message = str(caught.value)
  assert '\n' not in message
  assert 'fix that or restore the data' in message
  assert 'on_bad_image' not in message
  return message


@pytest.mark.parametrize('mode', ['stop', 'skip'])
def test_missing_image_is_never_skipped(mode, tree):
  split = load(tree, on_bad_image=mode)['test']
  _bad(tree).unlink()
  assert f'to read {_bad(tree)}, got No such file' in _not_read(split)


def _raise(error):
  def function(*_, **__):
    raise error

  return function


# No fault of an image: (what raises it, the error, what the message says).
CAUSES = {
  'files': (pathlib.Path, 'read_bytes', OSError(errno.EMFILE, 'Too many open')),
  'disk': (pathlib.Path, 'read_bytes', OSError(errno.EIO, 'Input/output')),
  'memory': (Image, 'open', MemoryError()),
  'modules': (Image, 'open', OSError(errno.EMFILE, 'Too many open')),
}


@pytest.mark.parametrize('cause', CAUSES)
def test_what_is_no_fault_of_an_image_is_never_skipped(
  cause, tree, monkeypatch
):
  split = load(tree, on_bad_image='skip', workers=1)['test']
  *place, error = CAUSES[cause]
  monkeypatch.setattr(*place, _raise(error))
  message = _not_read(split)
  reason = getattr(error, 'strerror', None) or 'MemoryError'
  assert f'{CLASSES[0]}_0.JPEG, got {reason}:' in message


def test_image_that_cannot_be_resized_is_a_bad_one(tree, monkeypatch, caplog):
  monkeypatch.setattr(Image.Image, 'resize', _raise(ValueError('no size')))
  images, labels = read(load(tree, on_bad_image='skip')['test'])
  assert not images.any()
  assert (labels == -1).all()
  assert 'cannot be decoded (no size): skipped' in caplog.text


@pytest.mark.parametrize('mode', ['stop', 'skip'])
def test_bad_record_is_named_and_never_skipped(mode, records):
  (shard,) = records.glob('imagenet2012/*/*-validation.array_record-*')
  content = bytearray(shard.read_bytes())
  content[100:140] = bytes(40)
  shard.write_bytes(content)
  split = load(records, on_bad_image=mode)['test']
  assert f'record 0 of {records}/imagenet2012/5.1.0, split' in _not_read(split)


def test_skipped_image_of_the_test_set_counts_as_wrong(
  tree, small_imagenet, caplog
):
  dataset = load_from_registry(tree, on_bad_image='skip')
  DAMAGE['text'][0](_bad(tree))
  batches = list(evaluation_batches(dataset, 'test', batch_size=4))
  assert sum(batch['mask'].sum() for batch in batches) == 6
  labels = np.concatenate([batch['label'][batch['mask']] for batch in batches])
  assert (labels == -1).sum() == 1
  assert len(dataset.unreadable) == 1
  del caplog  # keeps the warning off the terminal


@pytest.mark.slow
def test_run_that_stopped_at_a_bad_image_goes_on_skipping_it(
  tree, small_imagenet, tmp_path, capsys
):
  arguments = [
    KEY + 'data.name=imagenet',
    KEY + f'data.dir={tree}',
    KEY + 'data.batch_size=4',
    KEY + 'data.resized_crop=true',
    KEY + 'evaluation.batch_size=4',
    KEY + 'model.num_classes=3',
  ]
  _truncate(_bad(tree))
  workdir = tmp_path / 'run'
  assert runs.run(workdir, *arguments) == 2
  # Trained; only the test cannot be read.
  err = capsys.readouterr().err
  assert err.startswith(f'error: expected an image in {_bad(tree)}, which')
  assert err.count('\n') == 1
  skip = KEY + 'data.on_bad_image=skip'
  assert runs.run(workdir, *arguments, skip) == 0
  streams = capsys.readouterr()
  assert 'is trained: step 6 of 6' in streams.out
  assert streams.err.count('\n') == 1
  assert str(_bad(tree)) in streams.err
  summary = report.read_summary(workdir)
  assert summary['unreadable_images'] == 1
  assert 'images not decoded' in streams.out
  assert summary['test_accuracy'] * 6 <= 5.01
  assert summary['spikes_differing'] == 0


def test_what_to_do_with_bad_images_is_stop_or_skip():
  with pytest.raises(InputError, match="unknown data.on_bad_image 'ignore'"):
    load_dataset({**get_config().data, 'on_bad_image': 'ignore'}, num_steps=1)


# ---- data that are not there


def _refused(root):
  with pytest.raises(InputError) as caught:
    load(root)
  message = str(caught.value)
  assert '\n' not in message
  return message


def test_nothing_there_says_what_was_looked_for(tmp_path):
  message = _refused(tmp_path / 'none')
  assert f'{tmp_path}/none/imagenet2012/<version>/' in message
  assert f'{tmp_path}/none/imagenet/train' in message
  assert '--config.data.dir' in message


def test_tree_without_its_second_half_is_refused(tree):
  shutil.rmtree(tree / 'imagenet' / 'val')
  assert 'and val (a folder for each class)' in _refused(tree)


def test_missing_and_foreign_folders_are_named(tree):
  train = tree / 'imagenet' / 'train'
  (train / CLASSES[1]).rename(train / 'dogs')
  message = _refused(tree)
  assert f'expected 3 folders in {train}' in message
  assert f'1 missing ({CLASSES[1]}) and 1 others (dogs)' in message


def test_class_without_images_is_refused(tree):
  folder = tree / 'imagenet' / 'train' / CLASSES[2]
  for path in folder.iterdir():
    path.unlink()
  assert f'expected images (.JPEG) in {folder}, got none' in _refused(tree)


def test_interrupted_preparation_is_not_taken_for_prepared(tree, records):
  directory = records / 'imagenet2012'
  directory.rename(tree / 'imagenet2012')
  prepared = tree / 'imagenet2012' / '5.1.0'
  prepared.rename(prepared.with_name('incomplete.AB12_5.1.0'))
  assert 'val' in load(tree)['test']._source.name(0)  # of the tree


@pytest.mark.parametrize('file_format', ['tfrecord', 'array_record'])
def test_records_that_cannot_be_read_do_not_hide_the_tree(
  file_format, tree, records
):
  _change_info(records, lambda info: info.update(fileFormat=file_format))
  (records / 'imagenet2012').rename(tree / 'imagenet2012')
  of_the_tree = 'val' in load(tree)['test']._source.name(0).split('/')
  assert of_the_tree == (file_format == 'tfrecord')


def test_newest_version_is_read(records):
  directory = records / 'imagenet2012'
  shutil.copytree(directory / '5.1.0', directory / '5.0.0')
  (directory / '5.0.0' / 'features.json').unlink()
  assert '5.1.0' in load(records)['test']._source.name(0)


def test_missing_shard_is_named(records):
  (shard,) = records.glob('imagenet2012/*/*-validation.array_record-*')
  shard.unlink()
  assert f'expected the file {shard}, got none' in _refused(records)


def test_damaged_metadata_are_one_line(records):
  path = records / 'imagenet2012' / '5.1.0' / 'dataset_info.json'
  path.write_text(path.read_text()[:50])
  message = _refused(records)
  assert f'in {path.parent}, which cannot be read' in message


def _change_info(records, change):
  path = records / 'imagenet2012' / '5.1.0' / 'dataset_info.json'
  info = json.loads(path.read_text())
  change(info)
  path.write_text(json.dumps(info))


def test_other_file_formats_are_refused(records):
  _change_info(records, lambda info: info.update(fileFormat='tfrecord'))
  message = _refused(records)
  assert 'got tfrecord' in message
  assert '--file_format=array_record' in message


def test_records_without_a_validation_split_are_refused(records):
  _change_info(records, lambda info: info['splits'].pop())
  assert "split 'validation', got only train" in _refused(records)


def test_records_of_other_classes_are_refused(records):
  names = records / 'imagenet2012' / '5.1.0' / 'label.labels.txt'
  names.write_text('\n'.join(CLASSES[::-1]))
  assert 'expected the 3 classes of ImageNet' in _refused(records)
