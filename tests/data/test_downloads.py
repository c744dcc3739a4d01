"""Archives that are downloaded: kept whole, or not at all."""

import contextlib
import functools
import http.server
import re
import signal
import threading
import time

import fake_cifar
import pytest
import runs
from cifar_directories import files, home, options, prepare, publish
from runs import the_error

from mpbn_jax import InputError
from mpbn_jax.datasets import downloads

BINARY, PYTHON = fake_cifar.ARCHIVES['cifar10']
main = runs.program.main
pytestmark = pytest.mark.usefixtures('small_cifar')


class Server(http.server.BaseHTTPRequestHandler):
  """Serves one content; fewer bytes, or slower, than it announces."""

  def __init__(
    self, *args, content, cut=0, seconds=0, status=200, encoding=None
  ):
    self.content, self.cut, self.seconds = content, cut, seconds
    self.status, self.encoding = status, encoding
    super().__init__(*args)

  def do_GET(self):  # noqa: N802
    self.send_response(self.status)
    self.send_header('Content-Length', str(len(self.content)))
    if self.encoding:
      self.send_header('Content-Encoding', self.encoding)
    self.end_headers()
    end = len(self.content) - self.cut
    with contextlib.suppress(ConnectionError):
      self.wfile.write(self.content[: end // 2])
      self.wfile.flush()
      time.sleep(self.seconds)
      self.wfile.write(self.content[end // 2 : end])

  def log_message(self, *_):
    pass


@contextlib.contextmanager
def serving(content, **how):
  handler = functools.partial(Server, content=content, **how)
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
      yield f'http://127.0.0.1:{server.server_port}/'
    finally:
      server.shutdown()
      thread.join()


@pytest.mark.parametrize('encoding', [None, 'x-gzip'])
def test_download_is_kept_where_a_user_would_lay_it(
  encoding, tmp_path, monkeypatch
):
  with serving(fake_cifar.packed(BINARY), encoding=encoding) as folder:
    publish(monkeypatch, folder=folder)
    prepare(tmp_path)
  manual = tmp_path / 'downloads' / 'manual'
  assert [path.name for path in manual.iterdir()] == [BINARY]
  assert (manual / BINARY).read_bytes() == fake_cifar.packed(BINARY)
  assert home(tmp_path).is_dir()


def test_offline_says_within_seconds_which_archive_to_lay_where(
  tmp_path, capsys
):
  start = time.monotonic()
  assert main(['--mode=prepare', *options(tmp_path)]) == 2
  assert time.monotonic() - start < 20
  assert the_error(capsys.readouterr()) == (
    f'error: expected {BINARY}, got no download of http://127.0.0.1:9/{BINARY} '
    f'(no connection, or it was lost): put {BINARY} or {PYTHON} into '
    f'{tmp_path}/downloads/manual and run the same command again\n'
  )
  assert files(tmp_path) == []


@pytest.mark.parametrize(
  ('how', 'reason'),
  [
    ({'cut': 1}, 'no connection, or it was lost'),
    ({'status': 404}, '404 Not Found'),
    ({'seconds': 5}, 'no connection, or it was lost'),
  ],
)
def test_download_that_fails_says_why_and_leaves_nothing(
  how, reason, tmp_path, monkeypatch
):
  monkeypatch.setattr(downloads, '_NO_BYTES', 0.2)
  with serving(fake_cifar.packed(BINARY), **how) as folder:
    publish(monkeypatch, folder=folder)
    with pytest.raises(InputError, match=re.escape(f'({reason}): put')):
      prepare(tmp_path)
  assert files(tmp_path) == []


def test_server_that_does_not_answer_is_given_up(tmp_path, monkeypatch):
  monkeypatch.setattr(downloads, '_NO_BYTES', 0.2)
  with serving(b'', seconds=0) as folder:
    publish(monkeypatch, folder=folder)
    monkeypatch.setattr(Server, 'do_GET', lambda self: time.sleep(1))
    with pytest.raises(InputError, match='no answer'):
      prepare(tmp_path)


@pytest.mark.parametrize(
  ('content', 'said'),
  [
    (fake_cifar.packed(BINARY)[:-1] + b'x', 'the sha256 checksum .*, got '),
    (
      b'<html>Please log in</html>',
      r'bytes, got 26, it is truncated or another file',
    ),
  ],
)
def test_download_of_something_else_is_not_kept(
  content, said, tmp_path, monkeypatch
):
  with serving(content) as folder:
    publish(monkeypatch, folder=folder)
    with pytest.raises(
      InputError, match=f'expected {folder}{BINARY} with .*{said}.*: put '
    ):
      prepare(tmp_path)
  assert files(tmp_path) == []


def test_ctrl_c_ends_a_download_at_once_and_leaves_nothing(tmp_path):
  manual = tmp_path / 'downloads' / 'manual'
  with serving(fake_cifar.packed(BINARY), seconds=60) as folder:
    process = fake_cifar.start(
      '--mode=prepare', *options(tmp_path), folder=folder
    )
    while not list(manual.glob('*.part')):
      assert process.poll() is None
      time.sleep(0.01)
    # It waits for bytes now. A signal that came a microsecond before the
    # waiting began would be seen after it: Python's, and nothing to test.
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    out, err = process.communicate()
  assert time.monotonic() - start < 20
  assert (process.returncode, out) == (128 + signal.SIGINT, '')
  assert err == (
    'stopped; nothing half-prepared is kept: run the same command again to '
    'start over\n'
  )
  assert files(tmp_path) == []
