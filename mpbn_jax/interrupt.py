"""Signal handling that stops a run without losing its state."""

import contextlib
import signal
import sys
from collections.abc import Iterator

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):
  """A signal stopped training, and the state was saved.

  Attributes:
    signum: the signal.
    message: what was saved, where, and how to continue.
  """

  def __init__(self, signum: int, message: str):
    super().__init__(message)
    self.signum = signum
    self.message = message


class _Noted:
  """The first signal received inside `raise_on_signals`; None before."""

  signum: int | None = None


@contextlib.contextmanager
def raise_on_signals() -> Iterator[None]:
  """Makes SIGTERM and SIGINT raise KeyboardInterrupt in its body.

  The signal is also recorded: if the exception is lost (Python drops those
  raised inside a callback of compiled code), `SignalCatcher`, `check` and the
  end of the body find it. Outside the main thread, where Python allows no
  handlers, nothing is caught.

  Raises:
    KeyboardInterrupt: with the signal as its argument, in place of any other
      exception that the body raises after a signal.
  """

  def stop(signum, frame):
    del frame
    if _Noted.signum is None:
      _Noted.signum = signum
    raise KeyboardInterrupt(signum)

  def quiet(unraisable):
    # Already recorded; 'Exception ignored in ...' would only repeat it.
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
  """Raises KeyboardInterrupt if a signal came and its exception was lost."""
  if _Noted.signum is not None:
    raise KeyboardInterrupt(_Noted.signum)


class SignalCatcher:
  """Records SIGTERM and SIGINT instead of ending the process.

  A second Ctrl-C stops at once. A second SIGTERM does not: schedulers send
  several, and the state is being saved. Outside the main thread, where Python
  allows no handlers, nothing is caught.

  Attributes:
    received: the first signal, including one from before; None if none came.
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
  """Sets the handler in its body; yields whether this was possible."""
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
  """Returns the signal that raised the exception."""
  return stop.args[0] if stop.args else signal.SIGINT
