"""Damage to every file of a work directory, found or harmless.

`pytest -m job tests/program/test_damage.py` damages every file of every
checkpoint, more than 300 times in all. MPBN_JAX_FUZZ=5000 tries so many random
damages in place of a few.
"""

import contextlib
import io
import logging
import os
import random
import shutil

import jax
import numpy as np
import pytest
import runs

from mpbn_jax import experiment as experiments
from mpbn_jax import record, report, train_step
from mpbn_jax.checkpoint import Checkpoints
from mpbn_jax.errors import InputError
from mpbn_jax.folded import load_folded

CASES = int(os.environ.get('MPBN_JAX_FUZZ', 21))
CONFIG = runs.config('--config.log.tensorboard=true')
OF_BEST = runs.config('--config.evaluation.checkpoint=best')


# ---- damages; each takes a file and a random generator


def flip(path, rng):
  content = bytearray(path.read_bytes())
  for _ in range(rng.choice((1, 1, 2, 8))):
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
  path.write_bytes(content)


def overwrite(path, rng):
  content = bytearray(path.read_bytes())
  start = rng.randrange(len(content))
  block = content[start : start + rng.choice((1, 16, 512))]
  content[start : start + len(block)] = rng.choice((b'\0', b'\xff')) * len(
    block
  )
  path.write_bytes(content)


def truncate(path, rng):
  path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def empty(path, rng):
  del rng
  path.write_bytes(b'')


def delete(path, rng):
  del rng
  path.unlink()


def flip_a_bit(path, rng):
  content = bytearray(path.read_bytes())
  content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
  path.write_bytes(content)


def directory_instead(path, rng):
  del rng
  path.unlink()
  path.mkdir()


DAMAGES = (flip, flip, overwrite, truncate, empty, delete, directory_instead)


# ---- what is done with a work directory


@pytest.fixture(scope='module')
def experiment():
  """Builds once what every restoring builds."""
  experiment = experiments.build(CONFIG)
  shapes = train_step.abstract_state(experiment)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(report, 'build', lambda config: experiment)
    patch.setattr(report, 'abstract_state', lambda experiment: shapes)
    # Left by main.py, with the stream of another test.
    patch.setattr(logging.getLogger('mpbn_jax'), 'handlers', [])
    yield experiment


@pytest.fixture(scope='module')
def pristine(experiment, tmp_path_factory):
  """Returns a finished run with a folded network; not to be changed."""
  workdir = tmp_path_factory.mktemp('pristine') / 'run'
  shutil.copytree(runs.finished(), workdir)
  _, state = report.restore(CONFIG, workdir=workdir)
  with contextlib.redirect_stdout(io.StringIO()):
    report.write_folded(experiment, state, workdir=workdir)
  return workdir


def evaluate(experiment, workdir):
  del experiment
  _, state = report.restore(CONFIG, workdir=workdir)
  return state


def evaluate_best(experiment, workdir):
  del experiment
  _, state = report.restore(OF_BEST, workdir=workdir)
  return state


def use_folded(experiment, workdir):
  path = workdir / 'folded' / '32'
  _, variables = load_folded(path, model=experiment.model)
  return variables


def go_back(experiment, workdir):
  """Restores the checkpoint before the last."""
  like = train_step.abstract_state(experiment)
  reader = Checkpoints(workdir / 'checkpoints', config=CONFIG, read_only=True)
  return reader.restore(like, step=16)


def go_on(experiment, workdir):
  """Does as training does before and after its steps."""
  like = train_step.abstract_state(experiment)
  with record.hold_workdir(workdir, CONFIG) as held:
    checkpoints = Checkpoints(held.path / 'checkpoints', config=CONFIG)
    step, state = checkpoints.restore_latest(like)
    with record.Metrics(workdir, step=step) as metrics:
      metrics.write(step + 1, {'loss': 1.0})
      metrics.flush()
  record.write_json(workdir / 'summary.json', {})
  return step, state


ACTIONS = (evaluate, evaluate_best, use_folded, go_back, go_on)


def readers_of(file):
  """Returns the actions that read a file of a work directory."""
  of_folded = file.parts[0] == 'folded'
  return [action for action in ACTIONS if (action is use_folded) == of_folded]


def bits(tree):
  return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.fixture(scope='module')
def expected(experiment, pristine):
  """Returns {action: bits}; of going on, {step: bits}."""
  found = {
    action: bits(action(experiment, pristine))
    for action in (evaluate, evaluate_best, use_folded, go_back)
  }
  like = train_step.abstract_state(experiment)
  reader = Checkpoints(pristine / 'checkpoints', read_only=True)
  found[go_on] = {
    step: bits(reader.restore(like, step=step)) for step in reader.steps()
  }
  return found


def files_of(workdir):
  return sorted(
    path.relative_to(workdir)
    for path in workdir.rglob('*')
    if path.is_file() and path.name != '.lock'
  )


def check(experiment, expected, workdir, file, caplog):
  """Raises AssertionError where damage to `file` passes unnoticed.

  Returns:
    whether any action told of it; else it was harmless.
  """
  # Where to look: the file, or the checkpoint that it is a part of.
  places = [str(workdir / place) for place in (file, *file.parents[:-1])]
  noticed = False
  for action in readers_of(file):
    caplog.clear()
    try:
      result = action(experiment, workdir)
    except InputError as error:
      told = str(error)
    else:
      told = None
    noticed |= told is not None or bool(caplog.text)
    if told is not None:
      assert any(place in told for place in places), action
      assert '\n' not in told
    elif action is go_on:
      step, state = result
      assert bits(state) == expected[go_on][step]
      if step != max(expected[go_on]):
        assert any(place in caplog.text for place in places)
    else:
      assert bits(result) == expected[action], action
  return noticed


def test_a_pristine_run_passes(experiment, expected, pristine, tmp_path):
  workdir = shutil.copytree(pristine, tmp_path / 'run')
  step, state = go_on(experiment, workdir)
  assert bits(state) == expected[go_on][step]
  names = {path.parts[0] for path in files_of(pristine)}
  assert names == {
    *('checkpoints', 'config.json', 'folded', 'metrics.jsonl'),
    *('summary.json', 'tensorboard'),
  }


def test_no_damage_passes_unnoticed(
  experiment, expected, pristine, tmp_path, caplog
):
  files = files_of(pristine)
  for case in range(CASES):
    file = files[case % len(files)]
    damage = DAMAGES[(case + case // len(files)) % len(DAMAGES)]
    workdir = shutil.copytree(pristine, tmp_path / 'run')
    try:
      damage(workdir / file, random.Random(case))
      check(experiment, expected, workdir, file, caplog)
    except Exception as error:
      raise AssertionError(f'case {case}: {damage.__name__} {file}') from error
    shutil.rmtree(workdir)


@pytest.mark.slow
@pytest.mark.job
@pytest.mark.parametrize(
  ('damage', 'rounds'), [(truncate, 2), (flip_a_bit, 2), (delete, 1)]
)
def test_no_damaged_file_of_a_checkpoint_restores_other_numbers(
  damage, rounds, experiment, expected, pristine, tmp_path, caplog
):
  files = [
    file
    for file in files_of(pristine)
    if file.parts[0] in ('checkpoints', 'folded')
  ]
  noticed = 0
  for case, file in enumerate(files * rounds):
    workdir = shutil.copytree(pristine, tmp_path / 'run')
    try:
      damage(workdir / file, random.Random(case))
      noticed += check(experiment, expected, workdir, file, caplog)
    except Exception as error:
      raise AssertionError(f'case {case}: {damage.__name__} {file}') from error
    shutil.rmtree(workdir)
  cases = rounds * len(files)
  print(f'{damage.__name__}: {noticed} of {cases} noticed, the others harmless')
  assert noticed > 0.9 * cases
