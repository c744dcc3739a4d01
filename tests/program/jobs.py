"""Jobs of several processes that tests start with main.py on one machine."""

import os
import socket
import subprocess
import sys
import time

import runs

ENDLESS = ('--config.num_epochs=500', '--config.log.every_steps=1')
# Three steps in all.
SHORT = (
  '--config.num_epochs=1',
  '--config.data.batch_size=356',
  '--config.log.every_steps=1',
)


class Job:
  """Processes of main.py that train together.

  Attributes:
    processes: the processes, in their order.
  """

  def __init__(self, folder, *arguments, count=2, devices=2):
    folder.mkdir(exist_ok=True)
    self._folder = folder
    port = free_port()
    self.processes = []
    for index in range(count):
      place = ()
      if count > 1:
        place = (
          f'--coordinator=127.0.0.1:{port}',
          f'--num_processes={count}',
          f'--process_id={index}',
        )
      self.processes.append(self._start(index, devices, *place, *arguments))

  def _start(self, index, devices, *arguments):
    with (
      self._file('out', index).open('w') as out,
      self._file('err', index).open('w') as err,
    ):
      return subprocess.Popen(
        [sys.executable, 'main.py', *runs.TINY, *arguments],
        cwd=runs.ROOT,
        env={**os.environ, 'JAX_NUM_CPU_DEVICES': str(devices)},
        stdout=out,
        stderr=err,
      )

  def _file(self, stream, index):
    return self._folder / f'{stream}{index}'

  def out(self, index=0):
    """Returns what a process has printed."""
    return self._file('out', index).read_text()

  def until(self, text):
    """Waits until the first process prints a text."""
    while text not in self.out():
      assert self.processes[0].poll() is None, self.errors()
      time.sleep(0.02)

  def errors(self):
    """Returns what each process wrote to stderr."""
    return [
      self._file('err', index).read_text()
      for index in range(len(self.processes))
    ]

  def codes(self, *, seconds=300):
    """Waits for the end; returns the exit codes."""
    try:
      return [process.wait(seconds) for process in self.processes]
    finally:
      for process in self.processes:
        process.kill()


def free_port() -> int:
  """Returns a port on which nothing listens."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port: int = free.getsockname()[1]
  return port


def finished(job):
  """Waits for a job that must succeed; returns what its first process said."""
  assert job.codes() == [0] * len(job.processes), job.errors()
  assert job.errors() == [''] * len(job.processes)
  return job.out()
