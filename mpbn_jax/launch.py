"""Start and end of a job of several processes.

JAX's own runtime is used: `jax.distributed.initialize` connects the processes
to the coordination service that the first one runs.
"""

import contextlib
import json
import logging
import os
import pathlib
import socket
import sys
import threading
import time
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

from mpbn_jax import config as config_lib
from mpbn_jax import job, watchdog
from mpbn_jax.errors import InputError

_log = logging.getLogger('mpbn_jax')
ALONE = 'none'  # in place of a coordinator
# Modes for jobs of several processes.
MODES = ('train', 'evaluate', 'fold', 'steps')
_given_up: list[bool] = []
_PLACE = ('coordinator', 'num_processes', 'process_id')
# {name: (its values, its meaning)}
FLAGS = {
  'coordinator': (
    'HOST:PORT',
    'where process 0 of a job of several processes listens; with '
    '--num_processes and --process_id (docs/scale.md); default: as JAX detects '
    f'it on a TPU pod, Slurm, Open MPI or Kubernetes; {ALONE}: one process '
    'alone',
  ),
  'num_processes': ('N', 'how many processes the job has'),
  'process_id': ('I', 'the number of this process, from 0 to N - 1'),
  'connect_seconds': (
    'S',
    'how long the processes of a job wait for each other at the start; '
    'default: 300',
  ),
  'stuck_seconds': (
    'S',
    'how long a training step may take in a job, before all its processes end; '
    'half of it without a sign of life ends them, too; default: 120',
  ),
}


class Settings(NamedTuple):
  """Where a process belongs, as the command line says.

  Attributes:
    coordinator: 'host:port' of the first process. None: as JAX detects a TPU
      pod, Slurm, Open MPI or Kubernetes. `ALONE`: no job, whatever it detects.
    num_processes: number of processes.
    process_id: number of this process, from 0.
    connect_seconds: how long to wait for the other processes at the start.
    stuck_seconds: how long a step of training may take.
  """

  coordinator: str | None = None
  num_processes: int = 1
  process_id: int = 0
  connect_seconds: int = 300
  stuck_seconds: int = 120


def settings_of(given: Mapping[str, str], *, mode: str) -> Settings:
  """Returns the settings that flags describe.

  Args:
    given: {flag: text}, of any flags.
    mode: the mode of the command.

  Raises:
    InputError: a flag that belongs to others is missing, or a value is not
      valid.
  """
  times = {
    name: _number(name, given[name], least=least)
    for name, least in (('connect_seconds', 1), ('stuck_seconds', 10))
    if name in given
  }
  place = [name for name in _PLACE if name in given]
  if given.get('coordinator') == ALONE and place == ['coordinator']:
    return Settings(ALONE, **times)
  if not place:
    return Settings(**times)
  if len(place) < len(_PLACE):
    missing = ' and '.join(f'--{n}' for n in _PLACE if n not in given)
    raise InputError(
      '--coordinator, --num_processes and --process_id belong together, got '
      f'no {missing}: give all three, or none'
    )
  if mode not in MODES:
    raise InputError(
      f'--mode={mode} is for one process, got --coordinator: leave '
      '--coordinator, --num_processes and --process_id out'
    )
  host, _, port = given['coordinator'].rpartition(':')
  if not (host and port.isascii() and port.isdigit() and int(port) < 65536):
    raise InputError(
      f'--coordinator must be HOST:PORT of process 0, got '
      f'{given["coordinator"]!r}: write --coordinator=10.0.0.1:8476, for '
      'example'
    )
  count = _number('num_processes', given['num_processes'], least=1)
  index = _number('process_id', given['process_id'], least=0)
  if index >= count:
    raise InputError(
      f'--process_id must be less than --num_processes={count}, got {index}: '
      f'number the processes from 0 to {count - 1}'
    )
  return Settings(given['coordinator'], count, index, **times)


def _number(flag, text, *, least):
  if not (text.isascii() and text.isdigit() and int(text) >= least):
    raise InputError(
      f'--{flag} must be an integer of at least {least}, got {text!r}: write '
      f'--{flag}={least}, for example'
    )
  return int(text)


def start(settings: Settings) -> None:
  """Connects this process to its job, if it has one; call before JAX starts.

  On a single machine without such a cluster this returns at once. In a job, the
  output of all processes but the first is dropped, except errors and warnings.

  Raises:
    InputError: the job cannot be detected, or not all of its processes meet in
      time.
  """
  arguments = _arguments(settings)
  if arguments is None:
    return
  import jax

  # It would replace our handler of SIGTERM; `training` agrees on a step itself.
  jax.config.update('jax_enable_preemption_service', False)
  _connect(arguments, settings)
  from jax._src import distributed

  state = distributed.global_state
  watchdog.start(
    state.client,
    index=state.process_id,
    count=state.num_processes,
    coordinator=state.coordinator_address,
    stuck_seconds=settings.stuck_seconds,
  )
  if not job.is_first():
    sys.stdout.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
  else:
    print(
      f'{state.num_processes} processes, coordinator '
      f'{state.coordinator_address}',
      flush=True,
    )


def leave(code: int) -> None:
  """Ends this process at once if it has given up waiting for the others.

  JAX's runtime would log that the others did not come. Otherwise it returns.
  """
  if _given_up:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def finish() -> None:
  """Ends a job whose processes have all done their work."""
  from jax._src import distributed

  if distributed.global_state.client is None:
    return
  import jax

  job.barrier('finish')
  watchdog.stop()
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    jax.distributed.shutdown()


def check_alone(mode: str, settings: Settings) -> None:
  """Raises InputError if a mode for one process runs in a job of several."""
  kind = None if settings.coordinator else _detected()
  if kind is None:
    return
  count = _asked(kind.get_process_count)
  if count > 1:
    raise InputError(
      f'--mode={mode} is for one process, got {count} processes of '
      f'{kind.__name__}: start it once, or with --coordinator={ALONE} for '
      'processes that do not belong together'
    )


def check_same_command(
  mode: str, config: Mapping, workdir: pathlib.Path
) -> None:
  """Raises InputError if the first process runs another command."""
  if job.count() == 1:
    return
  ours = config_lib.flatten(config_lib.plain(config))
  ours |= {'--mode': mode, '--workdir': str(workdir)}
  first = job.agree('command', ours)
  differing = [
    f'{key}: {first.get(key)!r} -> {ours.get(key)!r}'
    for key in sorted(first.keys() | ours.keys())
    # As text: JSON makes lists of tuples, and NaN differs from itself.
    if json.dumps(first.get(key)) != json.dumps(ours.get(key))
  ]
  if differing:
    raise InputError(
      'expected the same command in every process of a job, got another one '
      f'than in process 0 on {socket.gethostname()} '
      f'({config_lib.listed(differing)}): start all with the same one, or with '
      f'--coordinator={ALONE} if they do not belong together'
    )


def _arguments(settings) -> dict[str, Any] | None:
  """Returns the arguments of `jax.distributed.initialize`, or None."""
  if settings.coordinator is not None:
    if settings.coordinator == ALONE or settings.num_processes == 1:
      return None
    return {
      'coordinator_address': settings.coordinator,
      'num_processes': settings.num_processes,
      'process_id': settings.process_id,
      'cluster_detection_method': 'deactivate',
    }
  kind = _detected()
  return None if kind is None or _asked(kind.get_process_count) == 1 else {}


def _detected():
  """Returns JAX's class for the cluster that this process runs in, or None."""
  from jax._src import clusters

  for kind in clusters.ClusterEnv._cluster_types:
    if kind.opt_in_only_method:
      continue
    # Every pod looks like a cluster to JAX; only those of an indexed job are.
    of_kubernetes = kind is clusters.K8sCluster
    if of_kubernetes and 'JOB_COMPLETION_INDEX' not in os.environ:
      continue
    with warnings.catch_warnings(record=True) as caught:
      warnings.simplefilter('always')
      present = _asked(kind.is_env_present)
    if present:
      return kind
    if of_kubernetes and caught:
      _log.warning(
        'this is a pod of an indexed Kubernetes job, but the package '
        'kubernetes is missing: this process works alone; pip install '
        'kubernetes, or give --coordinator'
      )
  return None


def _asked(question):
  """Returns question(), which may read the cluster's own services."""
  try:
    return question()
  except Exception as error:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    raise InputError(
      f'expected to learn from the cluster which processes belong together, '
      f'got {lines[0][:160]}: give --coordinator, --num_processes and '
      f'--process_id, or --coordinator={ALONE} for a process alone'
    ) from error


def _connect(arguments, settings):
  """Connects in a thread, so that signals still end this process."""
  import jax

  failed: list[Exception] = []

  def connect():
    try:
      jax.distributed.initialize(
        **arguments,
        # Ours comes first: JAX's ends the process with a stack trace.
        initialization_timeout=settings.connect_seconds + 60,
      )
    except Exception as error:
      failed.append(error)

  thread = threading.Thread(target=connect, name='connect', daemon=True)
  last = time.monotonic() + settings.connect_seconds
  thread.start()
  try:
    while thread.is_alive() and time.monotonic() < last:
      thread.join(0.1)
  except KeyboardInterrupt:
    _given_up.append(True)
    raise
  if failed:
    lines = str(failed[0]).strip().splitlines() or [type(failed[0]).__name__]
    raise InputError(
      f'expected to connect the processes of a job, got {lines[0][:160]}: '
      'choose another port in --coordinator if another program uses it'
    ) from failed[0]
  if thread.is_alive():
    _given_up.append(True)
    from jax._src import distributed

    seconds = settings.connect_seconds
    raise InputError(
      f'expected every process of the job within {seconds} s, got not all of '
      f'them at {distributed.global_state.coordinator_address}: start each '
      'with the same --coordinator and --num_processes and with its own '
      '--process_id from 0, and let them reach that address'
    )
