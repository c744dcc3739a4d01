"""A training of 2,000 steps that measures itself, in a process of its own.

Started by test_growth.py: python tests/program/long_run.py WORKDIR
"""

import json
import pathlib
import sys

import jax

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import runs

from mpbn_jax import record, training

EPOCHS = 125
COMPILED = '/jax/core/compile/backend_compile_duration'


def resident() -> int:
  """Returns the resident memory of this process in bytes."""
  lines = pathlib.Path('/proc/self/status').read_text().splitlines()
  (line,) = [line for line in lines if line.startswith('VmRSS:')]
  return 1024 * int(line.split()[1])


def main(workdir: str) -> None:
  """Trains, and prints memory and compilations as a line of JSON."""
  found: dict = {'memory': {}, 'compiled': {}}
  compiled = []
  say = record.Progress.say

  def measured(self, step, text):
    found['memory'][step] = resident()
    found['compiled'][step] = len(compiled)
    say(self, step, text)

  def listen(event, duration, **details):
    del duration, details
    if event == COMPILED:
      compiled.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  record.Progress.say = measured
  config = runs.config(
    f'--config.num_epochs={EPOCHS}',
    # TensorStore 0.1.86 keeps 80 kB of every checkpoint: of 125, 2.2 %.
    '--config.log.checkpoint_every_epochs=5',
    '--config.log.tensorboard=true',
  )
  training.train(config, workdir=workdir)
  print(json.dumps(found))


if __name__ == '__main__':
  main(sys.argv[1])
