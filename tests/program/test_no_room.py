"""Full and read-only disks, vanished directories: one line, nothing lost."""

import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
import runs
from runs import the_error

import mpbn_jax
from mpbn_jax import arrays, files, record
from mpbn_jax.checkpoint import Checkpoints, steps_in
from mpbn_jax.files import NotWrittenError
from mpbn_jax.folded import save_folded


def the_line(capfd):
  """Returns the one line on the standard error, of Python or not."""
  err = capfd.readouterr().err
  assert err.startswith('error: expected to write ')
  assert err.count('\n') == 1
  return err


@pytest.fixture
def small_disk(tmp_path):
  """Returns a file system of one megabyte."""
  place = tmp_path / 'disk'
  place.mkdir()
  command = ('mount', '-t', 'tmpfs', '-o', 'size=1m', 'mpbn_jax', str(place))
  try:
    done = subprocess.run(command, capture_output=True, text=True)
    failure = done.stderr.strip() if done.returncode else ''
  except FileNotFoundError as error:
    failure = str(error)
  if failure:
    pytest.skip(f'no file system may be mounted here ({failure})')
  yield place
  subprocess.run(('umount', str(place)), check=True)


def fill(disk, *, but):
  """Leaves so many bytes free, about; returns the file that takes the rest."""
  filler = disk / 'filler'
  filler.write_bytes(bytes(max(0, shutil.disk_usage(disk).free - but)))
  return filler


def test_full_disk_keeps_the_checkpoint_and_the_same_command_goes_on(
  small_disk, capfd
):
  workdir = runs.half(small_disk / 'run')
  before = runs.snapshot(workdir / 'checkpoints')
  checkpoint = runs.snapshot(workdir / 'checkpoints' / '16')
  size = sum(map(len, checkpoint.values()))
  filler = fill(small_disk, but=size // 2 + 8192)
  assert runs.run(workdir) == 2
  line = the_line(capfd)
  assert str(workdir / 'checkpoints' / '32') in line
  assert 'No space left on device, ' in line
  assert 'free some space and run the same command again: it will res' in line
  assert runs.snapshot(workdir / 'checkpoints') == before
  filler.unlink()
  assert runs.run(workdir) == 0
  assert f'{workdir} continues: step 16 of 32' in capfd.readouterr().out
  ours, theirs = (
    arrays.read(path / 'checkpoints' / '32')[0]
    for path in (workdir, runs.finished())
  )
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize('mode', ['train', 'fold'])
def test_disk_without_any_room_is_one_line(mode, small_disk, capfd):
  workdir = runs.half(small_disk / 'run')
  before = runs.snapshot(workdir)
  filler = fill(small_disk, but=0)
  assert runs.run(workdir, f'--mode={mode}') == 2
  assert 'No space left on device' in the_line(capfd)
  filler.unlink()
  assert runs.snapshot(workdir) == before


def make_read_only(disk):
  command = ('mount', '-o', 'remount,ro', str(disk))
  subprocess.run(command, check=True)


@pytest.mark.parametrize('mode', ['train', 'evaluate', 'fold'])
def test_read_only_disk_is_one_line(mode, small_disk, capfd):
  workdir = runs.half(small_disk / 'run')
  before = runs.snapshot(small_disk)
  make_read_only(small_disk)
  assert runs.run(workdir, f'--mode={mode}') == 2
  line = the_line(capfd)
  assert f'expected to write {workdir}' in line
  assert '(Read-only file system): make it writable, ' in line
  assert runs.snapshot(small_disk) == before


def test_new_run_on_a_read_only_disk_is_one_line(small_disk, capsys):
  make_read_only(small_disk)
  assert runs.run(small_disk / 'run') == 2
  line = the_error(capsys.readouterr())
  assert f'got {small_disk}/run (Read-only file system): choose anoth' in line


def test_run_on_a_read_only_disk_can_be_read(small_disk):
  runs.half(small_disk / 'run')
  make_read_only(small_disk)
  run = mpbn_jax.load_run(small_disk / 'run')
  expected = arrays.read(runs.finished() / 'checkpoints' / '16')[0]
  jax.tree.map(
    np.testing.assert_array_equal,
    run.variables['params'],
    expected['state']['params'],
  )


@pytest.fixture
def no_long_files():
  """Makes the kernel refuse what is longer than a page, everywhere."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
  yield
  resource.setrlimit(resource.RLIMIT_FSIZE, before)
  signal.signal(signal.SIGXFSZ, handler)


def test_what_the_kernel_does_not_take_is_one_line(tmp_path, no_long_files):
  kernel = np.random.default_rng(0).normal(size=(40, 40))
  tree = {'params': {'kernel': kernel.astype(np.float32)}}
  checkpoints = Checkpoints(tmp_path / 'c')
  with pytest.raises(
    NotWrittenError, match='c/1, .*File too large.*free some space'
  ):
    checkpoints.save(1, {'state': tree})
  with pytest.raises(
    NotWrittenError, match='/7, .*File too large.*free some space'
  ):
    save_folded(tmp_path / '7', tree, model={}, step=7, kernels=False)
  metrics = record.Metrics(tmp_path, step=0, tensorboard=False)
  metrics.write(1, {'n' * 3000: 0.5})
  with pytest.raises(NotWrittenError, match=r'metrics.jsonl.*File too large'):
    metrics.write(2, {'n' * 3000: 0.5})
  names = {path.name for path in tmp_path.rglob('*.*')}
  assert not [name for name in names if name.endswith('.tmp')]


def test_full_event_file_is_one_line(tmp_path, no_long_files):
  metrics = record.Metrics(tmp_path, step=0)
  metrics.write(1, {'n' * 2500: 0.5})
  os.truncate(tmp_path / 'metrics.jsonl', 0)
  metrics.write(2, {'n' * 2500: 0.5})
  with pytest.raises(NotWrittenError, match=r'tfevents.*File too large'):
    metrics.flush()
  with pytest.raises(NotWrittenError, match=r'tfevents.*File too large'):
    metrics.__exit__(None, None, None)


# ---- what vanishes


def vanish(path):
  shutil.rmtree(path)


def become_a_directory(path):
  path.unlink()
  path.mkdir()


def be_another_run(path):
  shutil.rmtree(path)
  shutil.copytree(runs.finished(), path)


@pytest.mark.parametrize(
  ('name', 'change'),
  [
    ('.', vanish),
    ('.', be_another_run),
    ('checkpoints', vanish),
    ('metrics.jsonl', become_a_directory),
    ('metrics.jsonl', pathlib.Path.unlink),
  ],
)
def test_what_vanishes_while_training_is_one_line(
  name, change, tmp_path, capfd, monkeypatch
):
  workdir = runs.half(tmp_path / 'run')
  say = record.Progress.say
  left = []

  def meanwhile(self, step, text):
    say(self, step, text)
    if not left:
      change(workdir / name)
      left.append(sorted(tmp_path.rglob('*')))
      left.append(runs.snapshot(tmp_path))

  monkeypatch.setattr(record.Progress, 'say', meanwhile)
  assert runs.run(workdir) == 2
  err = capfd.readouterr().err
  assert err.startswith('error: expected ')
  assert err.count('\n') == 1
  assert str(workdir) in err
  # Nothing is made anew, and in another run nothing is changed.
  assert sorted(tmp_path.rglob('*')) == left[0]
  if change is not vanish:
    assert runs.snapshot(tmp_path) == left[1]
    assert 16 in steps_in(workdir / 'checkpoints')


# ---- single files


def test_file_is_replaced_wholly_and_keeps_the_rights_of_the_user(tmp_path):
  path = tmp_path / 'x.json'
  files.write_whole(path, 'old')
  mask = os.umask(0o022)
  try:
    files.write_whole(path, b'new')
  finally:
    os.umask(mask)
  assert path.read_text() == 'new'
  assert path.stat().st_mode & 0o777 == 0o644
  assert [p.name for p in tmp_path.iterdir()] == ['x.json']


def test_failing_to_write_leaves_the_old_file_and_no_other(
  tmp_path, monkeypatch
):
  path = tmp_path / 'x.json'
  files.write_whole(path, 'old')

  def full(descriptor):
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(os, 'fsync', full)
    with pytest.raises(NotWrittenError, match='No space left on device, '):
      files.write_whole(path, 'new')
  assert path.read_text() == 'old'
  assert [p.name for p in tmp_path.iterdir()] == ['x.json']


def test_output_that_finds_no_room_is_one_line():
  with open('/dev/full', 'w') as full:
    done = subprocess.run(
      [sys.executable, 'main.py', '--help'],
      cwd=runs.ROOT,
      stdout=full,
      stderr=subprocess.PIPE,
      text=True,
    )
  assert done.returncode == 2
  assert done.stderr.startswith('error: expected room to write')
  assert done.stderr.count('\n') == 1
