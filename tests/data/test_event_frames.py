"""Frames of events on the disk: made once, whole, and of what is asked."""

import dataclasses
import errno
import os
import resource
import shutil
import subprocess
import sys

import event_files as fakes
import numpy as np
import pytest
import runs

from mpbn_jax import InputError
from mpbn_jax.datasets import downloads, preparation
from mpbn_jax.datasets.events import cache, cifar10_dvs

FRAMES = 'event_frames'
pytestmark = pytest.mark.usefixtures('few_recordings')


def test_frames_are_made_once(dvs, capsys):
  first = fakes.load(dvs, 'cifar10_dvs').splits
  out = capsys.readouterr().out
  assert 'converting 100 recordings to frames, 1 MB, in ' in out
  fakes.remove_recordings(dvs)
  again = fakes.load(dvs, 'cifar10_dvs').splits
  assert capsys.readouterr().out == ''
  for part, split in first.items():
    np.testing.assert_array_equal(split.images, again[part].images)
    np.testing.assert_array_equal(split.labels, again[part].labels)


def test_other_parameters_make_other_frames(dvs):
  fakes.load(dvs, 'cifar10_dvs')
  fakes.load(dvs, 'cifar10_dvs', framing='time')
  other = fakes.load(dvs, 'cifar10_dvs', num_steps=5)
  assert other.example_shape == (5, 48, 48, 2)
  assert {path.name for path in (dvs / FRAMES).glob('[!.]*')} == {
    'cifar10_dvs-3-count-48x48-v2',
    'cifar10_dvs-3-time-48x48-v2',
    'cifar10_dvs-5-count-48x48-v2',
  }


@pytest.mark.parametrize('size', [0, 60, 5000])
def test_truncated_frames_are_made_anew(size, dvs, caplog):
  first = fakes.load(dvs, 'cifar10_dvs').splits
  expected = {part: np.array(split.images) for part, split in first.items()}
  (path,) = (dvs / FRAMES).glob('*/train_images.npy')
  # Another file: mapped memory of a truncated one ends the process.
  content = path.read_bytes()
  path.unlink()
  path.write_bytes(content[:size])
  again = fakes.load(dvs, 'cifar10_dvs').splits
  assert len(caplog.messages) == 1
  assert f'{path.parent} is damaged: making its frames again' in caplog.text
  for part, split in again.items():
    np.testing.assert_array_equal(split.images, expected[part])


def test_damaged_frames_without_recordings_are_an_error(dvs, monkeypatch):
  fakes.load(dvs, 'cifar10_dvs')
  (path,) = (dvs / FRAMES).glob('*/test_labels.npy')
  path.unlink()
  fakes.remove_recordings(dvs)
  with pytest.raises(
    InputError,
    match=f"{path.parent} is damaged; expected 100 recordings of 'cifar10_dvs'",
  ):
    fakes.load(dvs, 'cifar10_dvs')
  message = f'{path.parent} is damaged; expected CIFAR10DVS.zip, got no down'
  monkeypatch.setattr(downloads, 'download', lambda url, path: 'no connection')
  with pytest.raises(InputError, match=message):
    fakes.prepare(dvs, 'cifar10_dvs')


def test_frames_of_other_recordings_are_made_anew(tmp_path, caplog):
  fakes.write(tmp_path, 'dvs_gesture')
  first = len(fakes.load(tmp_path, 'dvs_gesture').splits['train'])
  user = tmp_path / 'DVSGesture' / 'ibmGestureTrain' / 'user01_led'
  shutil.copytree(user, user.with_name('user11_led'))
  again = len(fakes.load(tmp_path, 'dvs_gesture').splits['train'])
  assert (first, again) == (110, 121)
  copies, message = caplog.messages
  assert '11 more than the archive' in copies
  (path,) = (tmp_path / FRAMES).glob('[!.]*')
  assert message == (
    f'{path} was made from 220 recordings, not 231: making its frames again'
  )
  # They stay where recordings are removed, one by one or all.
  shutil.rmtree(user)
  shutil.rmtree(user.with_name('user11_led'))
  assert len(fakes.load(tmp_path, 'dvs_gesture').splits['train']) == 121


def test_frames_of_too_few_recordings_are_refused(dvs, monkeypatch):
  fakes.load(dvs, 'cifar10_dvs')
  fakes.remove_recordings(dvs)
  more = dataclasses.replace(cifar10_dvs.COLLECTIONS['all'], count=101)
  monkeypatch.setitem(cifar10_dvs.COLLECTIONS, 'all', more)
  with pytest.raises(
    InputError, match='was made from 100 recordings, not 101; expec'
  ):
    fakes.load(dvs, 'cifar10_dvs')


def test_what_a_killed_process_left_is_not_taken_for_frames(dvs):
  whole = fakes.load(dvs, 'cifar10_dvs').splits['train'].images
  (path,) = (dvs / FRAMES).glob('[!.]*')
  half = path.with_name(f'{path.name}.incomplete')
  path.rename(half)
  (half / 'test_images.npy').unlink()
  again = fakes.load(dvs, 'cifar10_dvs').splits['train'].images
  np.testing.assert_array_equal(again, whole)
  assert not half.exists()


LOAD = """
import logging, sys
logging.basicConfig(format='%(message)s', stream=sys.stdout)
sys.path[:0] = ['tests/data', '.']
import event_files, pytest
event_files.expect_few(pytest.MonkeyPatch())
print('starts', flush=True)
splits = event_files.load(sys.argv[1], 'cifar10_dvs').splits
print('sum', splits['train'].images.sum())
"""


def test_of_two_processes_one_waits_and_takes_what_the_other_made(dvs):
  path = cache.place(
    cifar10_dvs.SPEC, fakes.settings(dvs, 'cifar10_dvs'), num_steps=fakes.STEPS
  )
  with preparation.exclusive(path, what='the frames'):
    processes = [
      subprocess.Popen(
        [sys.executable, '-c', LOAD, str(dvs)],
        cwd=runs.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
      )
      for _ in range(2)
    ]
    for process in processes:
      assert process.stdout.readline() == 'starts\n'
      line = process.stdout.readline()
      assert 'another process is preparing it, waiting' in line
  outputs = [process.communicate(timeout=100)[0] for process in processes]
  assert sum(' recordings to frames' in out for out in outputs) == 1, outputs
  sums = {out.splitlines()[-1] for out in outputs}
  expected = fakes.load(dvs, 'cifar10_dvs').splits['train'].images.sum()
  assert sums == {f'sum {expected}'}


def test_full_disk_is_seen_before_the_frames_are_made(dvs, monkeypatch, capsys):
  usage = preparation.shutil.disk_usage
  monkeypatch.setattr(
    preparation.shutil,
    'disk_usage',
    lambda path: usage(path)._replace(free=10**6),
  )
  before = fakes.files(dvs)
  with pytest.raises(
    InputError, match='for 1,382,400 bytes .* 1,000,000 bytes free'
  ):
    fakes.load(dvs, 'cifar10_dvs')
  assert capsys.readouterr().out == ''
  assert fakes.files(dvs) == before


def test_full_disk_leaves_nothing_that_is_taken_for_frames(dvs):
  before = fakes.files(dvs)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  # As a full disk: the system refuses to write, in the middle of a file.
  resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
  try:
    with pytest.raises(
      InputError, match='1,382,400 bytes .* bytes free: free some space'
    ):
      fakes.load(dvs, 'cifar10_dvs')
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert fakes.files(dvs) == before
  assert len(fakes.load(dvs, 'cifar10_dvs').splits['train'].images) == 90


def test_disk_that_is_full_only_at_the_end_leaves_nothing_either(
  dvs, monkeypatch
):
  before = fakes.files(dvs)

  def runs_full(descriptor):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(preparation.os, 'fsync', runs_full)
  with pytest.raises(InputError, match="'No space left on device' .* MB free"):
    fakes.load(dvs, 'cifar10_dvs')
  assert fakes.files(dvs) == before
