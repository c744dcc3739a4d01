"""A watchdog that ends all processes of a job together, with the same words.

If one process of a job stops, the others wait for it in a collective, for ever.
Each process therefore runs two threads beside its main thread. One exchanges
signs of life with the other processes through the key-value store of JAX's
coordination service; the other judges them, and ends the process if

  * another process has reported an error or a signal;
  * another process shows no sign of life: it was killed or stopped;
  * the steps of training do not advance, although the process is alive.

Without a job, the functions of this module do nothing.
"""

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

LOST = 3  # exit code: another process of the job is gone or stuck

_EVERY = 1.0  # seconds between signs of life
_BEATS, _HOSTS, _HEARD = (f'mpbn_jax/{x}/' for x in ('beat', 'host', 'heard'))
_ENDED = 'mpbn_jax/ended'
_PAUSED = -1
_UNPUBLISHED = 5.0  # seconds until the error is told without the others
_UNHEARD = 10.0  # seconds that the first process waits for the others to end
_WRITING = 60.0  # seconds that a checkpoint being written may delay the end
_AGAIN = 'start every process again to resume'

_current: 'Watchdog | None' = None


def start(client: Any, **job: Any) -> None:
  """Starts the watchdog of this process; see `Watchdog`."""
  global _current
  _current = Watchdog(client, **job)
  _current.start()


def stop() -> None:
  """Ends the watchdog: the other processes may end, too."""
  global _current
  if _current is not None:
    _current.stop()
    _current = None


def advance() -> None:
  """Reports progress of training: a batch has arrived, or a step is done."""
  if _current is not None:
    _current.advance()


def pause() -> None:
  """Reports work of unknown length, such as compilation or evaluation.

  The next `advance` ends it. Signs of life are still expected.
  """
  if _current is not None:
    _current.pause()


@contextlib.contextmanager
def unbroken() -> Iterator[None]:
  """Lets its body, which writes a checkpoint, finish before the job ends."""
  if _current is None:
    yield
    return
  with _current.writing:
    yield


def fail(code: int, words: str) -> None:
  """Ends all processes of the job; returns only if there is no job.

  Args:
    code: exit code of every process.
    words: the line that each prints, unless another process failed earlier.
  """
  if _current is not None:
    _current.fail(code, words)


def crash(error: Exception) -> None:
  """Ends all processes of the job after an unexpected exception.

  Returns only if there is no job. If another process is gone, collectives raise
  exceptions: what became of that process is then told instead.
  """
  if _current is not None:
    _current.crash(error)


class Watchdog:
  """The watchdog of one process.

  Args:
    client: the client of JAX's coordination service.
    index: number of this process.
    count: number of processes.
    coordinator: address of the coordination service, 'host:port'.
    stuck_seconds: how long a step may take; half of it without a sign of life
      counts as death.

  Attributes:
    writing: held while a checkpoint is written.
  """

  def __init__(
    self,
    client: Any,
    *,
    index: int,
    count: int,
    coordinator: str,
    stuck_seconds: float,
  ):
    self.writing = threading.RLock()
    self._client, self._index, self._count = client, index, count
    self._coordinator = coordinator
    self._stuck, self._silent = stuck_seconds, stuck_seconds / 2
    self._stage = _PAUSED
    self._advanced = 0
    self._over = threading.Event()
    self._ending = threading.Lock()
    self._answered = time.monotonic()
    # {process: [value, since when]}
    self._alive: dict[int, list] = {}
    self._stages: dict[int, list] = {}

  def start(self) -> None:
    """Starts the threads."""
    self._put(f'{_HOSTS}{self._index}', socket.gethostname())
    if self._index:
      self._explain_aborts()
    for work in (self._talk, self._judge):
      threading.Thread(target=work, name='watchdog', daemon=True).start()

  def stop(self) -> None:
    """Ends the threads."""
    self._over.set()

  def advance(self) -> None:
    """See the function of this name."""
    self._advanced += 1
    self._stage = self._advanced

  def pause(self) -> None:
    """See the function of this name."""
    self._stage = _PAUSED

  # ---- talking

  def _talk(self):
    beat = 0
    while not self._over.is_set():
      beat += 1
      with contextlib.suppress(_runtime_error()):
        self._put(f'{_BEATS}{self._index}', f'{beat} {self._stage}')
        for process, text in self._beats():
          alive, stage = text.split()
          _note(self._alive, process, alive)
          _note(self._stages, process, int(stage))
        ended = self._get(_ENDED)
        self._answered = time.monotonic()
        if ended is not None and self._ending.acquire(blocking=False):
          self._leave(*json.loads(ended))
      self._over.wait(_EVERY)

  def _beats(self):
    """Yields (process, its last sign): the first process watches all."""
    if self._index == 0:
      for key, text in self._client.key_value_dir_get(_BEATS):
        yield int(key.rpartition('/')[2]), text
    elif (text := self._get(f'{_BEATS}0')) is not None:
      yield 0, text

  def _put(self, key, value):
    self._client.key_value_set(key, value, allow_overwrite=True)

  def _get(self, key):
    try:
      return self._client.key_value_try_get(key)
    except _runtime_error() as error:
      if 'NOT_FOUND' in str(error):
        return None
      raise

  def _named(self, process):
    host = None
    with contextlib.suppress(_runtime_error()):
      host = self._get(f'{_HOSTS}{process}')
    return f'process {process}' + f' on {host}' * (host is not None)

  # ---- judging

  def _judge(self):
    looked = time.monotonic()
    while not self._over.wait(_EVERY / 2):
      now = time.monotonic()
      if now - looked > self._silent / 2:
        self._forgive(now)
      looked = now
      verdict = self._verdict(now)
      if verdict is not None:
        self.fail(LOST, f'error: {verdict}')

  def _forgive(self, now):
    """Starts all clocks afresh: this process itself was stopped for a while."""
    self._answered = now
    for times in (*self._alive.values(), *self._stages.values()):
      times[1] = now

  def _verdict(self, now):
    """Returns what is wrong, or None."""
    if now - self._answered > self._silent:
      return (
        f'expected an answer from the coordinator {self._coordinator} '
        f'(process 0), got none for {self._silent:.0f} s: it was killed or '
        f'stopped, or the network is down; {_AGAIN}'
      )
    for process, (_, since) in list(self._alive.items()):
      if process != self._index and now - since > self._silent:
        return (
          f'expected a sign of life from {self._named(process)}, got none for '
          f'{self._silent:.0f} s: it was killed or stopped, or its host is '
          f'gone; {_AGAIN}'
        )
    if self._index:  # the first process sees the steps of all
      return None
    stages = list(self._stages.items())
    late = [p for p, (stage, since) in stages if now - since > self._stuck]
    if not late or any(stage == _PAUSED for _, (stage, _) in stages):
      return None
    least = min(stage for _, (stage, _) in stages)
    names = [self._named(p) for p, (stage, _) in stages if stage == least]
    return (
      f'expected a step of training within {self._stuck:.0f} s, got none from '
      f'{", ".join(names[:3])}: look there for data that do not arrive or a '
      f'device that hangs, or raise --stuck_seconds; {_AGAIN}'
    )

  # ---- ending

  def fail(self, code: int, words: str) -> NoReturn:
    """See the function of this name."""
    if not self._ending.acquire(blocking=False):
      threading.Event().wait()  # another thread is ending this process
    with contextlib.suppress(ValueError):  # not the main thread
      # Schedulers send several. The first process must not end before others.
      for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.SIG_IGN)
    told = []

    def tell():
      content = json.dumps([code, words])
      with contextlib.suppress(_runtime_error()):  # another one was first
        self._client.key_value_set(_ENDED, content)
      with contextlib.suppress(_runtime_error()):
        told.append(self._get(_ENDED))

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    teller.join(_UNPUBLISHED)
    if told and told[0] is not None:
      code, words = json.loads(told[0])
    self._leave(code, words)

  def crash(self, error: Exception) -> NoReturn:
    """See the function of this name."""
    if isinstance(error, _runtime_error()):
      # Another process may have died. Then its signs of life end, too.
      self._silent = min(self._silent, 10 * _EVERY)
      time.sleep(self._silent + 5 * _EVERY)
    if self._ending.locked():
      threading.Event().wait()
    traceback.print_exception(error)
    self.fail(
      1,
      f'error: {self._named(self._index)} ended with a '
      f'{type(error).__name__}: its output has the traceback',
    )

  def _leave(self, code, words) -> NoReturn:
    """Ends this process; the first one ends last, as the store is in it."""
    if self.writing.acquire(timeout=_WRITING):
      pass  # and nothing is written any more
    with contextlib.suppress(OSError, ValueError):
      print(words, file=sys.stderr, flush=True)
    with contextlib.suppress(OSError, ValueError):
      sys.stdout.flush()
    threading.Thread(target=self._hear, daemon=True).start()
    last = time.monotonic() + (_UNHEARD if self._index == 0 else 1)
    while time.monotonic() < last and not self._over.wait(0.05):
      pass
    os._exit(code)

  def _hear(self):
    """Tells the first process that this one ends, or waits for the others."""
    with contextlib.suppress(_runtime_error()):
      if self._index:
        self._put(f'{_HEARD}{self._index}', 'yes')
      else:
        now = time.monotonic()
        gone = {p for p, (_, s) in self._alive.items() if now - s > 5 * _EVERY}
        others = self._count - 1 - len(gone - {0})
        while len(self._client.key_value_dir_get(_HEARD)) < others:
          time.sleep(0.05)
        time.sleep(_EVERY)  # until they are gone
      self._over.set()

  def _explain_aborts(self):
    """Says why if JAX's runtime aborts since the first process is gone.

    It logs at length and aborts as soon as the connection breaks, which no
    Python handler can prevent.
    """

    def explain(signum):
      del signum
      if not _answers(self._coordinator):
        os.write(
          2,
          f'error: expected process 0 at {self._coordinator} to go on, got its '
          f'connection closed: it was killed, or its host is gone; {_AGAIN}\n'
          ''.encode(),
        )
        os._exit(LOST)

    self._kept = ctypes.CFUNCTYPE(None, ctypes.c_int)(explain)
    ctypes.CDLL(None).signal(signal.SIGABRT, self._kept)


def _note(times, process, value):
  """Notes since when a process has had a value."""
  if process not in times or times[process][0] != value:
    times[process] = [value, time.monotonic()]


def _answers(address):
  """Returns whether something listens at 'host:port'."""
  host, _, port = address.rpartition(':')
  try:
    with socket.create_connection((host.strip('[]'), int(port)), timeout=2):
      return True
  except (OSError, ValueError):
    return False


def _runtime_error():
  import jax

  return jax.errors.JaxRuntimeError
