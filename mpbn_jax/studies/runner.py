"""Runs the trainings of a study, several at once, and resumes them."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from mpbn_jax import config as config_lib
from mpbn_jax import files, interrupt, lock, record
from mpbn_jax.errors import InputError
from mpbn_jax.studies.results import Results
from mpbn_jax.studies.study import Study, Task, reported_tasks, tuning_tasks
from mpbn_jax.studies.worker import RESULT

# What Python runs for a training.
WORKER = ['-m', 'mpbn_jax.studies.worker']
_POLL = 0.2  # seconds
_LOG = 'log.txt'


def reproduce(
  study: Study,
  *,
  workdir: pathlib.Path,
  results: pathlib.Path,
  processes: int | None = None,
  after_each: Callable[[Results], None] = lambda results: None,
) -> Results:
  """Trains all runs of a study that its results file lacks.

  Each training is a process. If this one is stopped in any way, so are they;
  the same call then repeats nothing that was finished, and resumes the rest
  from their last checkpoints.

  Args:
    study: the study.
    workdir: the folder of the runs' work directories; created if needed.
    results: the results file.
    processes: how many trainings run at once; None: on a CPU one per core, each
      on a core of its own, and otherwise one.
    after_each: called after each training, for example to draw a table.

  Raises:
    InputError: the study, a folder or a file is not valid, or a training says
      that its configuration is not.
    Interrupted: SIGTERM or Ctrl-C was received; the trainings have saved.
  """
  record.make_workdir(workdir)
  with lock.hold(workdir), interrupt.SignalCatcher() as signals:
    found = Results(results, study)
    _collect(found, study, workdir)
    found.write()  # the study may say something new
    pool = _Pool(workdir, processes)
    with contextlib.closing(pool):
      waiting = _waiting(found, study, pool)
      while signals.received is None:
        while waiting and pool.room:
          pool.start(waiting.pop(0))
        if not pool.running:
          return found
        time.sleep(_POLL)
        for process in pool.ended():
          _note(found, process, pool)
          after_each(found)
          # What is left depends on what its arm chooses.
          waiting = _waiting(found, study, pool)
      for process in pool.stop():
        with contextlib.suppress(InputError):
          _note(found, process, pool)
    done, total = _progress(found, study)
    raise interrupt.Interrupted(
      signals.received,
      f'stopped with {done} of {total} runs done, listed in {results}: run the '
      'same command again to resume',
    )


def _all(found, study):
  """Returns every training known so far."""
  return [*tuning_tasks(study), *reported_tasks(study, found.chosen())]


def _progress(found, study):
  """Returns (how many trainings are done, how many there are in all)."""
  total = len(list(tuning_tasks(study))) + len(study.seeds) * len(study.arms)
  return sum(found.find(t) is not None for t in _all(found, study)), total


def _missing(found, study):
  return [task for task in _all(found, study) if found.find(task) is None]


def _waiting(found, study, pool):
  """Returns what can start: the grid of all arms first."""
  busy = {process.task.key for process in pool.running}
  return [t for t in _missing(found, study) if t.key not in busy]


def _collect(found, study, workdir):
  """Adds results that were written, but not yet listed, before a kill."""
  added = True
  while added:  # those of the grid tell which runs there are
    added = False
    for task in _missing(found, study):
      result = _result_of(workdir / task.directory)
      if result is not None:
        found.add(task, result)
        added = True


def _result_of(directory):
  try:
    return json.loads((directory / RESULT).read_text())
  except FileNotFoundError:
    return None


def _note(found, process, pool):
  """Adds the result of a training that ended, and says so.

  Raises:
    InputError: it has none.
  """
  task = process.task
  result = _result_of(process.directory) if process.code == 0 else None
  if result is None:
    raise InputError(
      f'expected {_named(task)} to end with a result, got {process.said()} '
      f'(exit code {process.code}): {process.directory / _LOG} has all that it '
      'printed; mend the study and run the same command again'
    )
  found.add(task, result)
  done, total = _progress(found, found.study)
  shown = result.get('test_accuracy', result.get('validation_accuracy'))
  value = 'diverged' if 'failed' in result else f'{100 * shown:.2f} %'
  pool.times.append(time.monotonic() - process.start)
  text = f'[{done}/{total}] {_named(task)}: {value}'
  if done < total:
    mean = sum(pool.times) / len(pool.times)
    left = mean * (total - done) / pool.size
    running = ', '.join(_named(p.task) for p in pool.running)
    text += f'; running: {running or "none"}; about {_duration(left)} left'
  print(text, flush=True)


def _named(task: Task) -> str:
  choice = ', '.join(f'{k} = {v}' for k, v in task.choice.items())
  with_choice = f' ({choice})' if task.kind == 'tune' else ''
  return f'{task.arm}{with_choice}, seed {task.seed}'


def _duration(seconds: float) -> str:
  minutes = round(seconds / 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours} h {minutes} min' if hours else f'{minutes} min'


class _Process:
  """A training that runs or has ended."""

  def __init__(self, task: Task, directory: pathlib.Path, core: int | None):
    self.task, self.directory, self.core = task, directory, core
    self.start = time.monotonic()
    self.code: int | None = None
    directory.mkdir(parents=True, exist_ok=True)
    config = directory / 'study_config.json'
    files.write_whole(config, config_lib.to_json(task.config))
    command = [
      sys.executable,
      *WORKER,
      f'--config={config}',
      f'--workdir={directory}',
      f'--kind={task.kind}',
      f'--parent={os.getpid()}',
    ]
    if core is not None:
      command.append(f'--core={core}')
    with (directory / _LOG).open('ab') as log:
      self.popen = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        # Ctrl-C reaches the whole group of a terminal: only this process is to
        # hear it.
        start_new_session=True,
        env=environment(),
      )

  def said(self) -> str:
    """Returns the last line that it printed."""
    lines = (self.directory / _LOG).read_text(errors='replace').splitlines()
    return next((line for line in reversed(lines) if line.strip()), 'nothing')


def environment() -> dict[str, str]:
  """Returns the environment variables of a training.

  Trainings may share a GPU: none takes most of its memory when it starts,
  unless the user's variables say so.
  """
  shared = {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}
  return {**shared, **os.environ, 'PYTHONPATH': _path()}


def _path():
  """Returns a PYTHONPATH on which this package is found."""
  root = str(pathlib.Path(__file__).resolve().parents[2])
  return os.pathsep.join(p for p in (root, os.environ.get('PYTHONPATH')) if p)


class _Pool:
  """Trainings that run at the same time."""

  def __init__(self, workdir: pathlib.Path, size: int | None):
    cores: list[int] = []
    if hasattr(os, 'sched_getaffinity') and not _has_accelerator():
      cores = sorted(os.sched_getaffinity(0))
    self.size = size or max(1, len(cores))
    # A training on a core of its own takes less of the machine's time.
    own = 1 < self.size <= len(cores)
    self._free: list[int | None] = (
      [*cores[: self.size]] if own else [None] * self.size
    )
    self._workdir = workdir
    self.running: list[_Process] = []
    self.times: list[float] = []

  @property
  def room(self) -> int:
    return len(self._free)

  def start(self, task: Task) -> None:
    directory = self._workdir / task.directory
    self.running.append(_Process(task, directory, self._free.pop(0)))

  def ended(self) -> list[_Process]:
    """Returns those that ended since the last call."""
    over: list[_Process] = []
    for process in list(self.running):
      process.code = process.popen.poll()
      if process.code is not None:
        self.running.remove(process)
        self._free.append(process.core)
        over.append(process)
    return over

  def stop(self) -> list[_Process]:
    """Asks all to save and end, waits, and returns those with a result."""
    for process in self.running:
      process.popen.send_signal(signal.SIGTERM)
    for process in self.running:
      process.popen.wait()
    return [process for process in self.ended() if process.code == 0]

  def close(self) -> None:
    """Ends what still runs, after an error."""
    self.stop()


def _has_accelerator() -> bool:
  """Returns whether JAX would compute on a GPU or TPU, without starting it."""
  platform = os.environ.get('JAX_PLATFORMS')
  if platform:
    return not platform.startswith('cpu')
  devices = ('nvidia[0-9]*', 'accel[0-9]*', 'kfd')
  return any(any(pathlib.Path('/dev').glob(name)) for name in devices)
