"""Where a process belongs: by flags, as a cluster says, or nowhere."""

import subprocess
import sys
import time

import pytest
import runs
from jobs import free_port

from mpbn_jax import InputError, command_line, launch

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
  port = free_port()
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
