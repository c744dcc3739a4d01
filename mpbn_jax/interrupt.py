"""Signals that stop a run without losing anything."""

import contextlib
import signal
import sys
from collections.abc import Iterator

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


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


class _Noted:
  """The first signal that came inside `raise_on_signals`; None before."""

  signum: int | None = None


@contextlib.contextmanager
def raise_on_signals() -> Iterator[None]:
  """Makes SIGTERM and SIGINT raise KeyboardInterrupt in its body.

  The signal is noted as well: where the exception is lost (Python drops those
  that are raised inside a callback of compiled code), `SignalCatcher`, `check`
  and the end of the body find it. Outside the main thread, where Python allows
  no handlers, nothing is caught.

  Raises:
    KeyboardInterrupt: with the signal as its argument; in place of whatever
      else the body may raise once a signal came.
  """

  def stop(signum, frame):
    del frame
    if _Noted.signum is None:
      _Noted.signum = signum
    raise KeyboardInterrupt(signum)

  def quiet(unraisable):
    # It is noted; 'Exception ignored in ...' would only say it twice.
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
      hook(unraisable)

  hook = sys.unraisablehook
  with _handlers(stop) as caught:
    if not caught:
      yield
      return
    sys.unraisablehook = quiet
    _Noted.signum = None
    try:
      yield
      check()
    except (KeyboardInterrupt, Interrupted):
      raise
    except BaseException as error:
      if _Noted.signum is None:
        raise
      raise KeyboardInterrupt(_Noted.signum) from error
    finally:
      _Noted.signum = None
      sys.unraisablehook = hook


def check() -> None:
  """Raises KeyboardInterrupt if a signal came, and its exception was lost."""
  if _Noted.signum is not None:
    raise KeyboardInterrupt(_Noted.signum)


class SignalCatcher:
  """Notes SIGTERM and SIGINT in place of dying of them.

  A second Ctrl-C stops at once. A second SIGTERM does not: schedulers send
  several, and the state is being saved. Outside the main thread, where Python
  allows no handlers, nothing is caught.

  Attributes:
    received: the first signal that came, before this too; None: none did.
  """

  def __init__(self):
    self.received: int | None = _Noted.signum
    self._stack = contextlib.ExitStack()

  def __enter__(self):
    self._stack.enter_context(_handlers(self._note))
    return self

  def __exit__(self, *_):
    self._stack.close()

  def _note(self, signum, frame):
    del frame
    if self.received is None:
      self.received = signum
    elif signum == signal.SIGINT:
      raise KeyboardInterrupt(signum)


@contextlib.contextmanager
def _handlers(handler):
  """Sets the handler in its body; yields whether it could."""
  previous = {}
  with contextlib.suppress(ValueError):  # not the main thread
    for signum in _SIGNALS:
      previous[signum] = signal.signal(signum, handler)
  try:
    yield bool(previous)
  finally:
    for signum, before in previous.items():
      signal.signal(signum, before)


def signal_of(stop: KeyboardInterrupt) -> int:
  """Returns the signal that raised it."""
  return stop.args[0] if stop.args else signal.SIGINT
