"""--mode=prepare: once, wholly or not at all, and told in one line."""

import contextlib
import errno
import fcntl
import os
import pty
import re
import termios
import time

import fake_cifar
import pytest
import runs
from cifar_directories import files, home, options, prepare
from runs import the_error

from mpbn_jax import InputError, command_line, datasets
from mpbn_jax.datasets import preparation
from mpbn_jax.datasets.cifar import builder

BINARY, PYTHON = fake_cifar.ARCHIVES['cifar10']
main = runs.program.main
pytestmark = pytest.mark.usefixtures('small_cifar')


# ---- the command


def test_prepare_says_where_how_many_and_how_long(
  tmp_path, capsys, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  archive = fake_cifar.lay(tmp_path, BINARY)
  assert main(['--mode=prepare', *options(tmp_path)]) == 0
  out, err = capsys.readouterr()
  assert err == ''
  assert re.fullmatch(
    rf'converting {archive}\n'
    rf'cifar10 prepared in \d+\.\d s: {home(tmp_path)}, 200 train and 20 test '
    r'images, 1 MB\n',
    out,
  )
  # No work directory and no cache.
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    'cifar10_raw',
    'downloads',
  ]


def test_preparing_again_does_nothing_and_says_so(tmp_path, capsys):
  fake_cifar.lay(tmp_path, PYTHON)
  arguments = ['--mode=prepare', *options(tmp_path), '--workdir=/no/such']
  assert main(arguments) == 0
  before = runs.snapshot(tmp_path)
  capsys.readouterr()
  assert main(arguments) == 0
  out, err = capsys.readouterr()
  assert (out.count('\n'), err) == (1, '')
  assert f'cifar10 is already prepared: {home(tmp_path)}, 200 train' in out
  assert runs.snapshot(tmp_path) == before


@pytest.mark.parametrize(
  'arguments', [(), (*options('/no/such'), '--config.data.fake=8')]
)
def test_what_needs_no_preparation_says_so(arguments, capsys):
  assert main(['--mode=prepare', *arguments]) == 0
  out, err = capsys.readouterr()
  assert err == ''
  assert re.fullmatch(
    r'\w+ needs no preparation: you can train with it .*\n', out
  )


@pytest.mark.parametrize(
  ('key', 'value', 'said'),
  [
    ('data.workers', -1, 'data.workers must be at least 0, got -1'),
    ('data.on_bad_image', 'x', "unknown data.on_bad_image 'x'"),
    ('model.num_steps', 0, 'num_steps must be an integer >= 1, got 0'),
    ('model.num_steps', -2, 'num_steps must be an integer >= 1, got -2'),
  ],
)
@pytest.mark.parametrize('name', ['cifar10', 'imagenet', 'nmnist'])
def test_unusable_configuration_is_refused_before_anything_is_written(
  name, key, value, said, tmp_path, capsys
):
  arguments = [*options(tmp_path, name), f'--config.{key}={value}']
  assert main(['--mode=prepare', *arguments]) == 2
  assert said in the_error(capsys.readouterr())
  assert not list(tmp_path.iterdir())


def test_a_directory_with_blanks_is_quoted_in_the_command(tmp_path):
  directory = tmp_path / 'my data'
  text = str(preparation.not_prepared('cifar10', directory))
  assert f"--config.data.dir='{directory}'" in text


@pytest.mark.parametrize('name', fake_cifar.ARCHIVES)
def test_training_unprepared_says_at_once_what_to_run(name, tmp_path, capsys):
  data = tmp_path / 'data'
  arguments = [
    f'--config=configs/{name}.py',
    f'--config.data.dir={data}',
    f'--workdir={tmp_path}/run',
  ]
  start = time.monotonic()
  assert main(arguments) == 2
  assert time.monotonic() - start < 20
  assert the_error(capsys.readouterr()) == (
    f"error: expected '{name}', prepared in {data}, got none: run python "
    f'main.py --mode=prepare --config.data.name={name} '
    f'--config.data.dir={data}\n'
  )
  assert not list(tmp_path.iterdir())


def test_progress_is_one_bar_where_somebody_looks(tmp_path):
  fake_cifar.lay(tmp_path, BINARY)
  ours, theirs = pty.openpty()
  termios.tcsetwinsize(theirs, (24, 80))
  process = fake_cifar.start(
    '--mode=prepare', *options(tmp_path), stderr=theirs
  )
  os.close(theirs)
  out, _ = process.communicate()
  seen = b''
  with contextlib.suppress(OSError), os.fdopen(ours, 'rb', 0) as terminal:
    while block := terminal.read(1024):
      seen += block
  seen = seen.decode()
  assert process.returncode == 0
  assert out.count('\n') == 2
  assert '220/220' in seen
  assert {line[:8] for line in re.split(r'[\r\n]+', seen) if line} == {
    'cifar10:'
  }


# ---- no place to write


@pytest.mark.parametrize('below', ['', '/data'])
def test_unwritable_directory_is_one_line(below, tmp_path, capsys):
  file = tmp_path / 'file'
  file.write_text('mine')
  assert main(['--mode=prepare', *options(f'{file}{below}')]) == 2
  message = the_error(capsys.readouterr())
  assert 'expected a directory that can be written, got ' in message
  assert 'choose another --config.data.dir' in message
  assert file.read_text() == 'mine'


def check_full(message, directory):
  assert message.startswith('error: ')
  assert message.count('\n') == 1
  assert f'expected room to write {home(directory)}, got ' in message
  assert re.search(
    r'\([\d,]+ MB free\): free some space or choose another', message
  )
  assert files(directory) == [f'downloads/manual/{BINARY}']
  assert [p.name for p in home(directory).parent.iterdir()] == ['.1.0.0.lock']


def test_a_disk_that_is_full_for_the_writer_leaves_nothing(tmp_path):
  fake_cifar.lay(tmp_path, BINARY)
  # The true writer; a limit on the size of files stands for the disk's.
  process = fake_cifar.start(
    '--mode=prepare', *options(tmp_path), largest_file=100_000
  )
  _, message = process.communicate()
  assert process.returncode == 2
  check_full(message, tmp_path)


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_is_one_line_and_leaves_nothing(
  number, tmp_path, capsys, monkeypatch
):
  fake_cifar.lay(tmp_path, BINARY)
  write = builder.CifarBuilder._generate_examples

  def broken(self, name, split):
    for example in write(self, name, split):
      yield example
      if name == 'test':
        raise OSError(number, os.strerror(number))

  monkeypatch.setattr(builder.CifarBuilder, '_generate_examples', broken)
  assert main(['--mode=prepare', *options(tmp_path)]) == 2
  message = capsys.readouterr().err
  assert os.strerror(number) in message
  check_full(message, tmp_path)


# ---- locks and directories


def test_two_processes_prepare_once(tmp_path):
  fake_cifar.lay(tmp_path, BINARY)
  # Held here, so that both are seen to wait.
  with preparation.exclusive(home(tmp_path), what='test'):
    processes = [
      fake_cifar.start('--mode=prepare', *options(tmp_path)) for _ in range(2)
    ]
    waits = [process.stderr.readline() for process in processes]
  assert waits == 2 * [
    'warning: cifar10: another process is preparing it, waiting\n'
  ]
  ends = [process.communicate() for process in processes]
  assert [process.returncode for process in processes] == [0, 0]
  assert [err for _, err in ends] == ['', '']  # it was said once
  first, second = sorted((out for out, _ in ends), key=len)
  assert first.startswith('cifar10 is already prepared: ')
  assert 'cifar10 prepared in ' in second


def test_lock_ends_with_its_body(tmp_path):
  for _ in range(2):
    with (
      pytest.raises(ZeroDivisionError),
      preparation.exclusive(tmp_path / 'x', what='x'),
    ):
      raise ZeroDivisionError


def test_file_system_without_locks_is_warned_about(
  tmp_path, caplog, monkeypatch
):
  def no_locks(*_):
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

  monkeypatch.setattr(fcntl, 'flock', no_locks)
  with preparation.exclusive(tmp_path / 'x', what='frames'):
    pass
  (message,) = caplog.messages
  assert message.startswith('frames: cannot get a lock beside ')
  assert 'one process only' in message


def test_directory_appears_when_its_body_has_ended(tmp_path):
  path = tmp_path / 'a' / 'b'
  with preparation.atomic_directory(path) as place:
    (place / 'deep').mkdir()
    (place / 'deep' / 'file').write_text('content')
    assert not path.exists()
  assert runs.snapshot(tmp_path) == {'a/b/deep/file': b'content'}
  assert list(path.parent.iterdir()) == [path]


def test_directory_is_removed_when_its_body_fails(tmp_path):
  def fail(place):
    (place / 'file').write_text('half')
    raise ZeroDivisionError

  with (
    pytest.raises(ZeroDivisionError),
    preparation.atomic_directory(tmp_path / 'x') as place,
  ):
    fail(place)
  assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_neither_taken_nor_kept(tmp_path):
  fake_cifar.lay(tmp_path, BINARY)
  left = home(tmp_path).with_name('1.0.0.incomplete')
  left.mkdir(parents=True)
  (left / 'dataset_info.json').write_text('{}')
  with pytest.raises(InputError, match='got none: run python main.py'):
    datasets.load_dataset(
      command_line.parse(list(options(tmp_path))).config.data,
      num_steps=1,
    )
  prepare(tmp_path)
  assert home(tmp_path).is_dir()
  assert not left.exists()


def test_errors_that_say_nothing_of_the_place_stay_as_they_are(tmp_path):
  with (
    pytest.raises(FileNotFoundError),
    preparation.atomic_directory(tmp_path / 'x'),
  ):
    (tmp_path / 'none').read_text()
