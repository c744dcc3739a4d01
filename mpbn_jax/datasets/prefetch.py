"""Prefetching: a thread prepares batches while the devices compute."""

import queue
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Self, TypeVar

T = TypeVar('T')


class Prefetch(Iterator[T]):
  """The items of an iterable, in order, computed ahead in a thread.

  An error of the iterable is raised in place of the item. Use it as a context
  manager: leaving the context stops the thread after its current item.

  Args:
    items: iterable to consume in the thread.
    ahead: how many items may be ready at once, at least 1.

  Attributes:
    waited: seconds that the consumer has spent waiting for items.
  """

  def __init__(self, items: Iterable[T], *, ahead: int):
    self.waited = 0.0
    self._items = items
    self._ready: queue.SimpleQueue = queue.SimpleQueue()
    self._free = threading.Semaphore(ahead)
    self._stopped = False
    self._over: BaseException | None = None
    # A daemon, so that a second Ctrl-C need not wait for the current item.
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
