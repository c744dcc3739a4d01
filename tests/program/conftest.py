"""Jobs of several processes that end with their test."""

import pytest
from jobs import Job


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
