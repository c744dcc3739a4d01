"""One job of several processes, started by main.py on one machine."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import runs

from mpbn_jax import InputError, command_line, launch
from mpbn_jax.checkpoint import steps_in

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
    with socket.socket() as free:
      free.bind(('127.0.0.1', 0))
      port = free.getsockname()[1]
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


@pytest.fixture
def start(tmp_path):
  """Starts jobs that use one work directory."""
  jobs = []

  def start(*arguments, **how):
    folder = tmp_path / f'job{len(jobs)}'
    jobs.append(Job(folder, f'--workdir={tmp_path / "run"}', *arguments, **how))
    return jobs[-1]

  yield start
  for job in jobs:
    for process in job.processes:
      process.kill()
      process.wait()


def losses(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [line['loss'] for line in map(json.loads, lines) if 'loss' in line]


def finished(job):
  assert job.codes() == [0] * len(job.processes), job.errors()
  assert job.errors() == [''] * len(job.processes)
  return job.out()


# ---- together as alone


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
  together = tmp_path / 'together'
  job = Job(tmp_path / 'job', *SHORT, f'--workdir={together}')
  finished(job)
  # Only the first process writes and prints.
  assert job.out(1) == ''
  assert 'test accuracy' in job.out(0)
  for devices in (1, 4):
    alone = tmp_path / f'alone{devices}'
    place = {'count': 1, 'devices': devices}
    one = Job(tmp_path / f'of{devices}', *SHORT, f'--workdir={alone}', **place)
    finished(one)
    # float32 sums in other orders
    np.testing.assert_allclose(losses(together), losses(alone), rtol=1e-5)
    ours, theirs = (runs.arrays_of(path, step=3) for path in (together, alone))
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
      np.testing.assert_allclose(
        array, theirs[name], rtol=1e-4, atol=1e-5, err_msg=name
      )
    names = {path.name for path in together.iterdir()}
    assert names == {path.name for path in alone.iterdir()}


# ---- signals


@pytest.mark.slow
@pytest.mark.parametrize(
  'asked', [pytest.param((1,), marks=pytest.mark.job), (0, 1)]
)
def test_signal_to_any_process_stops_all_after_the_same_step(
  asked, start, tmp_path
):
  job = start(*ENDLESS)
  job.until('step 3/')
  for index in asked:
    job.processes[index].terminate()
    time.sleep(0.1)
  assert job.codes() == [128 + signal.SIGTERM] * 2, job.errors()
  first, second = job.errors()
  assert first == second
  assert first.startswith('stopped at step ')
  assert first.count('\n') == 1
  step = int(first.split()[3])
  assert steps_in(tmp_path / 'run' / 'checkpoints')[-1] == step


@pytest.mark.slow
@pytest.mark.job
def test_stopped_job_is_resumed_by_any_number_of_processes(start, tmp_path):
  done = 0
  for count, devices in ((2, 2), (1, 1), (2, 1), (1, 4), (2, 2)):
    job = start(*ENDLESS, count=count, devices=devices)
    job.until(f'step {done + 2}/')
    job.processes[-1].terminate()
    assert set(job.codes()) == {128 + signal.SIGTERM}, job.errors()
    if done:
      assert f'continues: step {done} of' in job.out()
    done = steps_in(tmp_path / 'run' / 'checkpoints')[-1]


# ---- errors


@pytest.mark.slow
@pytest.mark.job
@pytest.mark.parametrize('mode', ['evaluate', 'fold', 'steps'])
def test_other_modes_are_those_of_one_process(mode, start, tmp_path):
  run = shutil.copytree(runs.finished(), tmp_path / 'run')
  (run / 'summary.json').unlink()
  arguments = [f'--mode={mode}'] + ['--steps=2,3'] * (mode == 'steps')
  job = start(*arguments)
  out = finished(job)
  assert job.out(1) == ''
  name = 'steps.json' if mode == 'steps' else 'summary.json'
  assert f'written: {run / name}' in out
  alone = tmp_path / 'alone'
  shutil.copytree(runs.finished(), alone)
  assert runs.run(alone, *arguments) == 0
  ours, theirs = (json.loads((p / name).read_text()) for p in (run, alone))
  for value in (ours, theirs):
    for key in ('seconds', 'date', 'device'):
      value.pop(key, None)
  if mode == 'steps':
    ours, theirs = (
      [p['accuracy'] for p in v['points']] for v in (ours, theirs)
    )
  else:
    ours.pop('max_logit_difference'), theirs.pop('max_logit_difference')
  assert ours == theirs


@pytest.mark.slow
@pytest.mark.job
def test_lock_of_another_job_ends_all_with_the_same_words(start):
  holder = start(*ENDLESS, count=1, devices=1)
  holder.until('step 1/')
  job = start(*ENDLESS)
  assert job.codes() == [2, 2]
  first, second = job.errors()
  assert first == second
  assert first.startswith('error: expected no other process to use ')
  assert first.count('\n') == 1


@pytest.mark.slow
@pytest.mark.job
def test_other_command_in_one_process_ends_all(start, tmp_path):
  job = start('--config.seed=1', count=1)
  del job
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  processes = [
    subprocess.Popen(
      [
        *(sys.executable, 'main.py', *runs.TINY),
        *(f'--workdir={tmp_path / "other"}', f'--config.seed={index}'),
        *(f'--coordinator=127.0.0.1:{port}', '--num_processes=2'),
        f'--process_id={index}',
      ],
      cwd=runs.ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(2)
  ]
  said = [process.communicate()[1] for process in processes]
  assert [process.returncode for process in processes] == [2, 2]
  assert said[0] == said[1]
  assert 'expected the same command in every process' in said[0]
  assert 'seed: 0 -> 1' in said[0]


@pytest.mark.slow
@pytest.mark.job
@pytest.mark.skipif(os.geteuid() != 0, reason='needs to mount a small disk')
def test_full_disk_of_the_first_process_ends_all(start, tmp_path):
  workdir = tmp_path / 'run'
  workdir.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', workdir]
  if subprocess.run(mount, capture_output=True).returncode:
    pytest.skip('cannot mount')
  try:
    job = start(*SHORT)
    assert job.codes() == [2, 2]
    first, second = job.errors()
    assert first == second
    assert 'No space left on device' in first
    assert first.count('\n') == 1
  finally:
    subprocess.run(['umount', '-l', workdir], check=True)


FAILING = '--config=tests/program/failing.py'


@pytest.mark.slow
@pytest.mark.job
@pytest.mark.parametrize(
  ('how', 'code', 'words'),
  [
    ('input', 2, 'error: bad image'),
    ('bug', 1, 'error: process 1 on .* ended with a RuntimeError: its output '),
  ],
)
def test_error_of_one_process_ends_all_with_its_words(
  how, code, words, start, monkeypatch
):
  monkeypatch.setenv('FAILING', how)
  job = start(FAILING, *ENDLESS)
  assert job.codes() == [code] * 2
  first, second = job.errors()
  assert re.match(words, first)
  assert first.count('\n') == 1
  assert second.endswith(first)
  assert ('Traceback' in second) == (how == 'bug')


@pytest.mark.slow
@pytest.mark.job
def test_nan_ends_all_with_the_same_words(start):
  job = start(*ENDLESS, '--config.optimizer.learning_rate=1e30')
  assert job.codes() == [1, 1]
  first, second = job.errors()
  assert first == second
  assert first.startswith('error: expected finite metrics, got loss = nan')


@pytest.mark.slow
@pytest.mark.job
def test_step_that_does_not_end_names_the_process_that_is_behind(
  start, monkeypatch
):
  monkeypatch.setenv('FAILING', 'hang')
  job = start(FAILING, *ENDLESS, '--stuck_seconds=10')
  assert job.codes() == [3, 3]
  first, second = job.errors()
  assert first == second
  assert first.startswith(
    'error: expected a step of training within 10 s, got none from process 1 on'
  )


# ---- death


@pytest.mark.slow
@pytest.mark.job
@pytest.mark.parametrize('how', [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize('victim', [0, 1])
def test_process_that_is_lost_ends_the_others(how, victim, start, tmp_path):
  job = start(*ENDLESS, '--stuck_seconds=20')
  job.until('step 20/')  # after the first checkpoint
  killed, other = job.processes[victim], job.processes[1 - victim]
  killed.send_signal(how)
  assert other.wait(60) == 3
  last = job.errors()[1 - victim].splitlines()[-1]
  assert last.startswith('error: expected ')
  assert last.endswith('start every process again to resume')
  assert ('process 0' if victim == 0 else 'process 1') in last
  killed.kill()
  killed.wait()
  if (how, victim) != (signal.SIGKILL, 1):
    return
  again = start(*ENDLESS)
  again.until('continues: step ')
  again.processes[0].terminate()
  assert again.codes() == [128 + signal.SIGTERM] * 2


# ---- the command line


PLACE = ('--coordinator=h:1', '--num_processes=2', '--process_id=1')


def test_three_flags_place_a_process():
  assert command_line.parse([*PLACE]).job == launch.Settings('h:1', 2, 1)
  assert command_line.parse([]).job == launch.Settings()
  assert command_line.parse(['--coordinator=none']).job.coordinator == 'none'


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (PLACE[:1], 'got no --num_processes and --process_id'),
    (PLACE[1:], 'got no --coordinator: give all three'),
    (PLACE[:2], 'got no --process_id'),
    (('--coordinator=h', *PLACE[1:]), "HOST:PORT of process 0, got 'h'"),
    (('--coordinator=h:x', *PLACE[1:]), "HOST:PORT of process 0, got 'h:x'"),
    (('--coordinator=none', *PLACE[1:]), "HOST:PORT of process 0, got 'none'"),
    ((*PLACE, '--process_id=2'), '--process_id must be less than'),
    ((*PLACE, '--process_id=-1'), "at least 0, got '-1'"),
    ((*PLACE, '--num_processes=0'), "at least 1, got '0'"),
    ((*PLACE, '--mode=landscape'), '--mode=landscape is for one process'),
    ((*PLACE, '--mode=prepare'), '--mode=prepare is for one process'),
    (('--stuck_seconds=1',), '--stuck_seconds must be an integer of at least'),
    (('--connect_seconds=0',), '--connect_seconds must be an integer of at'),
  ],
)
def test_bad_places_are_refused(arguments, message):
  with pytest.raises(InputError, match=message.replace('(', r'\(')):
    command_line.parse([*arguments])


def test_machine_without_a_cluster_starts_nothing(monkeypatch):
  import jax

  def refuse(**arguments):
    raise AssertionError(arguments)

  monkeypatch.setattr(jax.distributed, 'initialize', refuse)
  before = time.monotonic()
  for settings in (
    launch.Settings(),
    launch.Settings('none'),
    launch.Settings('h:1', 1, 0),
  ):
    launch.start(settings)
  assert time.monotonic() - before < 1


SLURM = {
  'SLURM_JOB_ID': '7',
  'SLURM_STEP_NODELIST': 'node[1-4]',
  'SLURM_NTASKS': '4',
  'SLURM_PROCID': '2',
  'SLURM_LOCALID': '0',
}


def test_tasks_of_slurm_are_one_job(monkeypatch):
  for name, value in SLURM.items():
    monkeypatch.setenv(name, value)
  assert launch._arguments(launch.Settings()) == {}
  with pytest.raises(InputError, match='is for one process, got 4 processes'):
    launch.check_alone('landscape', launch.Settings())
  launch.check_alone('landscape', launch.Settings('none'))
  monkeypatch.setenv('SLURM_NTASKS', '1')
  assert launch._arguments(launch.Settings()) is None


def test_pod_that_belongs_to_no_job_is_alone(monkeypatch):
  monkeypatch.setenv('KUBERNETES_SERVICE_HOST', '10.0.0.1')
  assert launch._arguments(launch.Settings()) is None


@pytest.mark.slow
@pytest.mark.job
@pytest.mark.parametrize('index', [0, 1])
def test_job_that_is_not_complete_says_so(index, tmp_path):
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  done = subprocess.run(
    [
      *(sys.executable, 'main.py', f'--workdir={tmp_path / "run"}'),
      *(f'--coordinator=127.0.0.1:{port}', '--num_processes=2'),
      *(f'--process_id={index}', '--connect_seconds=3'),
    ],
    cwd=runs.ROOT,
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == 2
  message = 'error: expected every process of the job within 3 s, got not all'
  assert done.stderr.startswith(message)
  assert done.stderr.count('\n') == 1
