"""One job of several processes: its first process, barriers and agreement.

Every process of a job runs the same command on its own devices
(`launch.start`). All of them compute; the first one alone writes. A program
that was started alone is the first process of a job of one, for which these
functions do nothing.

They use the key-value store of JAX's coordination service, and no device.
"""

import collections
import json
from typing import Any

_ROOT = 'mpbn_jax/'
# `watchdog` ends a process that waits for one that is gone.
_DAY = 24 * 60 * 60 * 1000  # milliseconds
_rounds: collections.Counter[str] = collections.Counter()


def _state():
  from jax._src import distributed  # no public name for the store

  return distributed.global_state


def is_first() -> bool:
  """Returns whether this process is the first of its job, which writes.

  Example:
    >>> is_first()
    True
  """
  first: bool = _state().process_id == 0
  return first


def count() -> int:
  """Returns the number of processes of the job, 1 without one.

  Example:
    >>> count()
    1
  """
  processes: int = _state().num_processes
  return processes


def barrier(name: str) -> None:
  """Returns once every process of the job has called it with this name."""
  client = _state().client
  if client is not None:
    client.wait_at_barrier(_next(f'barrier/{name}'), _DAY)


def agree(name: str, value: Any) -> Any:
  """Returns the first process's value in every process of the job.

  Args:
    name: what the value is; every process must call with the same names in the
      same order.
    value: JSON-serializable in the first process, ignored in the others.

  Example:
    >>> agree('step', 640)
    640
  """
  client = _state().client
  if client is None:
    return value
  key = _next(f'agree/{name}')
  if is_first():
    client.key_value_set(key, json.dumps(value))
    return value
  return json.loads(client.blocking_key_value_get(key, _DAY))


def _next(name):
  """Returns a key that was not used before."""
  _rounds[name] += 1
  return f'{_ROOT}{name}/{_rounds[name]}'
