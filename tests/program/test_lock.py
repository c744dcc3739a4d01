"""One process at a time in a work directory."""

import datetime
import os
import re
import shutil
import socket
import subprocess
import sys

import pytest
import runs
from runs import the_error

from mpbn_jax import lock, record
from mpbn_jax.checkpoint import Checkpoints
from mpbn_jax.errors import InputError
from mpbn_jax.files import NotWrittenError

HOLDER = """
import pathlib, sys
from mpbn_jax.lock import hold
with hold(pathlib.Path(sys.argv[1])):
  print('held', flush=True)
  sys.stdin.read()
"""


def test_second_process_is_told_who_uses_it_and_since_when(tmp_path):
  with (
    lock.hold(tmp_path),
    pytest.raises(InputError) as error,
    lock.hold(tmp_path),
  ):
    pass
  found = re.fullmatch(
    rf'expected no other process to use {tmp_path}, got process '
    rf'{os.getpid()} on {re.escape(socket.gethostname())}, which has used it '
    r'since (.*): wait for it, stop it, or choose another --workdir',
    str(error.value),
  )
  since = datetime.datetime.fromisoformat(found[1])
  assert abs((datetime.datetime.now().astimezone() - since).total_seconds()) < 9
  with lock.hold(tmp_path):  # free again
    pass


def test_killed_process_frees_its_lock(tmp_path):
  process = subprocess.Popen(
    [sys.executable, '-c', HOLDER, str(tmp_path)],
    cwd=runs.ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  with process:
    assert process.stdout.readline() == 'held\n'
    with pytest.raises(InputError, match=f'process {process.pid} on'):
      lock.hold(tmp_path).__enter__()
    process.kill()
  with lock.hold(tmp_path):
    pass


def test_lock_is_one_whatever_the_name_of_the_directory(tmp_path):
  (tmp_path / 'run').mkdir()
  (tmp_path / 'latest').symlink_to('run')
  with (
    lock.hold(tmp_path / 'run'),
    pytest.raises(InputError, match='no other process to use .*latest,'),
    lock.hold(tmp_path / 'latest'),
  ):
    pass


@pytest.mark.parametrize('content', [b'', b'\xff', b'[]', b'{"host": "a"}'])
def test_lock_that_nobody_signed_holds_all_the_same(content, tmp_path):
  with lock.hold(tmp_path):
    (tmp_path / '.lock').write_bytes(content)
    with pytest.raises(InputError, match='got another process'):
      lock.hold(tmp_path).__enter__()


def test_copy_of_a_directory_in_use_is_free(tmp_path):
  (tmp_path / 'run').mkdir()
  with lock.hold(tmp_path / 'run'):
    shutil.copytree(tmp_path / 'run', tmp_path / 'copy')
    with lock.hold(tmp_path / 'copy'):
      pass


def test_directory_that_was_replaced_is_noticed(tmp_path):
  directory = tmp_path / 'run'
  directory.mkdir()
  with lock.hold(directory) as held:
    held.check()
    shutil.rmtree(directory)
    with pytest.raises(NotWrittenError, match='removed or replaced'):
      held.check()
    directory.mkdir()
    with lock.hold(directory), pytest.raises(NotWrittenError):
      held.check()


def test_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog):
  def flock(*_):
    raise OSError(95, 'Operation not supported')

  monkeypatch.setattr(lock.fcntl, 'flock', flock)
  with lock.hold(tmp_path):
    assert 'let only one process at a time use it' in caplog.text


# ---- runs


def test_nothing_of_a_live_run_is_touched(tmp_path, capsys):
  config = runs.config()
  with record.hold_workdir(tmp_path, config) as held:
    Checkpoints(held.path / 'checkpoints', config=config)
    writing = tmp_path / 'checkpoints' / '.16.1-ab.tmp'
    writing.write_bytes(b'half')
    before = runs.snapshot(tmp_path)
    assert runs.run(tmp_path) == 2
    message = the_error(capsys.readouterr())
    assert f'process {os.getpid()} on {socket.gethostname()}' in message
    assert runs.snapshot(tmp_path) == before


def test_evaluation_runs_beside_a_live_run(tmp_path, capsys):
  workdir = shutil.copytree(runs.finished(), tmp_path / 'run')
  with record.hold_workdir(workdir, runs.config()):
    assert runs.run(workdir, '--mode=evaluate') == 0
