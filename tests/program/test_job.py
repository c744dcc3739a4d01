"""One job of several processes: trained as by one, stopped and resumed."""

import functools
import json
import shutil
import signal
import time

import jax
import numpy as np
import pytest
import runs
from jobs import ENDLESS, Job, finished

from mpbn_jax import sharding, training
from mpbn_jax.checkpoint import steps_in


def losses(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [line['loss'] for line in map(json.loads, lines) if 'loss' in line]


# Three steps of a network with residual blocks.
RESNET = (
  '--config.model.name=preact_resnet',
  '--config.model.depth=10',
  '--config.num_epochs=1',
  '--config.data.train_size=96',
  '--config.data.batch_size=32',
  '--config.log.every_steps=1',
)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
  together = tmp_path / 'together'
  job = Job(tmp_path / 'job', *RESNET, f'--workdir={together}')
  finished(job)
  # Only the first process writes and prints.
  assert job.out(1) == ''
  assert 'test accuracy' in job.out(0)
  for devices in (1, 4):
    alone = tmp_path / f'alone{devices}'
    mesh = sharding.make_mesh(jax.devices()[:devices])
    training.train(runs.config(*RESNET), workdir=alone, mesh=mesh)
    # float32 sums in other orders; a spike that this flips would show.
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
    close(losses(together), losses(alone))
    ours, theirs = (runs.arrays_of(path, step=3) for path in (together, alone))
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
      close(array, theirs[name], err_msg=name)
    names = {path.name for path in together.iterdir()}
    assert names == {path.name for path in alone.iterdir()} | {'summary.json'}


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


# ---- other modes


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
