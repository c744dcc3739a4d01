"""Long trainings, which must not grow: no leak, no program compiled again.

    pytest -m job tests/program/test_growth.py

trains 2,000 steps with 25 validations and checkpoints, in about a minute.
"""

import json
import subprocess
import sys

import pytest
import runs


@pytest.mark.slow
@pytest.mark.job
def test_2000_steps_need_no_more_memory_and_no_other_programs(tmp_path):
  done = subprocess.run(
    [sys.executable, 'tests/program/long_run.py', str(tmp_path / 'run')],
    cwd=runs.ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  # Step 85 is after the first checkpoint. JSON has text as keys.
  memory, compiled = found['memory'], found['compiled']
  growth = memory['2000'] / memory['200'] - 1
  print(
    f'{memory["200"] / 2**20:.1f} MiB at step 200, {100 * growth:+.2f} % at '
    f'2000; {compiled["85"]} programs until step 85, '
    f'{compiled["2000"] - compiled["85"]} later'
  )
  assert growth <= 0.02
  assert compiled['2000'] == compiled['85']
