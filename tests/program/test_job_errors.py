"""Jobs of several processes in which one fails, or is lost."""

import os
import re
import signal
import subprocess
import sys

import pytest
import runs
from jobs import ENDLESS, SHORT, free_port

# ---- errors


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
  port = free_port()
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
