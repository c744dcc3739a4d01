"""How is a run stopped from outside without losing anything?"""

import signal


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

  A second Ctrl-C stops at once. Outside the main thread, where Python allows
  no handlers, nothing is caught.
  """

  def __init__(self):
    self.received: int | None = None
    self._previous = {}

  def __enter__(self):
    for signum in (signal.SIGTERM, signal.SIGINT):
      try:
        self._previous[signum] = signal.signal(signum, self._note)
      except ValueError:  # not the main thread
        break
    return self

  def __exit__(self, *_):
    for signum, handler in self._previous.items():
      signal.signal(signum, handler)

  def _note(self, signum, frame):
    del frame
    if self.received is not None:
      raise KeyboardInterrupt
    self.received = signum
