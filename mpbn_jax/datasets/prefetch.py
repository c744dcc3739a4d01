"""How are batches made while the devices compute? A thread reads ahead."""

import queue
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Self, TypeVar

T = TypeVar('T')


class Prefetch(Iterator[T]):
  """The items of an iterable, which a thread asks for before they are needed.

  In the same order. What the iterable raises comes out where the item would.
  A context manager: leaving it stops the thread after the item under way.

  Args:
    items: runs in the thread.
    ahead: so many items are ready at most, at least 1.

  Attributes:
    waited: seconds that the consumer waited for items so far.
  """

  def __init__(self, items: Iterable[T], *, ahead: int):
    self.waited = 0.0
    self._items = items
    self._ready: queue.SimpleQueue = queue.SimpleQueue()
    self._free = threading.Semaphore(ahead)
    self._stopped = False
    self._over: BaseException | None = None
    # A daemon: a second Ctrl-C may leave before the item under way is there.
    self._thread = threading.Thread(
      target=self._work, name='prefetch', daemon=True
    )

  def __enter__(self) -> Self:
    self._thread.start()
    return self

  def __exit__(self, *_):
    self._stopped = True
    self._free.release()
    self._thread.join()

  def _work(self):
    items = iter(self._items)
    try:
      while True:
        self._free.acquire()
        if self._stopped:
          return
        self._ready.put((next(items), None))
    except BaseException as error:  # raised again in the consumer
      self._ready.put((None, error))

  def __next__(self) -> T:
    if self._over is not None:
      raise self._over
    start = time.monotonic()
    item, self._over = self._ready.get()
    self.waited += time.monotonic() - start
    if self._over is not None:
      raise self._over
    self._free.release()
    return item
