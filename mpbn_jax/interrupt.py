"""How is a run stopped from outside without losing anything?"""

import contextlib
import signal
from collections.abc import Iterator


class Interrupted(Exception):
  """Training was stopped by a signal, after its state was saved.

  Attributes:
    signum: the signal.
    message: what was saved, where, and how to continue.
  """

  def __init__(self, signum: int, message: str):
    super().__init__(message)
    self.signum = signum
    self.message = message


class SignalCatcher:
  """Notes SIGTERM and SIGINT in place of dying of them.

  A second Ctrl-C stops at once. A second SIGTERM does not: schedulers send
  several, and the state is being saved. Outside the main thread, where Python
  allows no handlers, nothing is caught.

  Attributes:
    received: the first signal that came; None before.
  """

  def __init__(self):
    self.received: int | None = None
    self._previous = {}

  def __enter__(self):
    for signum in (signal.SIGTERM, signal.SIGINT):
      with contextlib.suppress(ValueError):  # not the main thread
        self._previous[signum] = signal.signal(signum, self._note)
    return self

  def __exit__(self, *_):
    for signum, handler in self._previous.items():
      signal.signal(signum, handler)

  def _note(self, signum, frame):
    del frame
    if self.received is None:
      self.received = signum
    elif signum == signal.SIGINT:
      raise KeyboardInterrupt


@contextlib.contextmanager
def raise_on_sigterm() -> Iterator[None]:
  """Makes SIGTERM raise KeyboardInterrupt, as Ctrl-C does, in its body."""

  def stop(signum, frame):
    del frame
    raise KeyboardInterrupt(signum)

  try:
    previous = signal.signal(signal.SIGTERM, stop)
  except ValueError:  # not the main thread
    yield
    return
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, previous)


def signal_of(stop: KeyboardInterrupt) -> int:
  """Returns the signal that raised it."""
  return stop.args[0] if stop.args else signal.SIGINT
