"""How is a network trained? The loop around the step, its log, its end."""

import math
import pathlib
import time
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from clu import parameter_overview

from mpbn_jax import optim, record, sharding
from mpbn_jax.checkpoint import Checkpoints
from mpbn_jax.evaluate import evaluate
from mpbn_jax.interrupt import Interrupted, SignalCatcher
from mpbn_jax.train_step import (
  Experiment,
  TrainMetrics,
  TrainState,
  build,
  build_network,
  check_trainable,
  init_state,
  make_train_step,
  start_state,
)

# Who trains finds here what it takes.
__all__ = [
  'Experiment',
  'TrainMetrics',
  'TrainState',
  'build',
  'build_network',
  'check_trainable',
  'init_state',
  'make_train_step',
  'saved_items',
  'start_state',
  'train',
]


def train(
  config: Mapping,
  *,
  workdir: str | pathlib.Path,
  mesh: jax.sharding.Mesh | None = None,
) -> tuple[Experiment, TrainState]:
  """Trains, or goes on with what `workdir` holds; returns the last state.

  A run that is stopped at any moment and started again ends with the same
  bits as one that is not: batches are a function of seed and step, and the
  state holds everything else.

  Args:
    config: as from `configs/default.py`.
    workdir: for checkpoints, metrics and events; made if need be.
    mesh: devices; all of them where None.

  Returns:
    (what was built, the state after the last step).

  Raises:
    InputError: an unusable configuration or work directory.
    Interrupted: SIGTERM or Ctrl-C came; the state is saved.
    FloatingPointError: a metric or a variable is not finite (names it and
      the step); the last checkpoint before it stays.
  """
  experiment = build(config, mesh=mesh)
  train_step = make_train_step(experiment)
  check_trainable(experiment, train_step)
  workdir = record.open_workdir(workdir, config)
  with (
    SignalCatcher() as signals,
    Checkpoints(workdir / record.CHECKPOINTS) as checkpoints,
  ):
    saved = saved_items(init_state(experiment), experiment.mesh)
    restored = checkpoints.restore_latest(saved)
    record.write_config(workdir, config)
    total = experiment.total_steps
    if restored is None:
      overview = parameter_overview.get_parameter_overview
      print(overview(saved['state'].params))
    else:
      step, saved = restored
      done = 'is trained' if step >= total else 'continues'
      print(f'{workdir} {done}: step {step} of {total}', flush=True)
    saved = _loop(experiment, train_step, saved, workdir, checkpoints, signals)
    # Does nothing after the last step: that is saved.
    step = int(saved['state'].step)
    where = checkpoints.save(step, saved)
  # Now that the handlers are gone: a signal that came last is seen too.
  if signals.received is not None:
    raise Interrupted(
      signals.received,
      f'stopped at step {step} of {total}, saved in {where}: the same '
      'command continues',
    )
  return experiment, saved['state']


def saved_items(state: TrainState, mesh: jax.sharding.Mesh) -> dict:
  """Returns what is saved; `window`: metrics since the last line of the log."""
  return {'state': state, 'window': _window(mesh)}


def _window(mesh):
  return jax.device_put(TrainMetrics.empty(), sharding.replicated(mesh))


def _loop(experiment, train_step, saved, workdir, checkpoints, signals):
  """Returns what to save after the last step, or the one of a signal."""
  config, batches = experiment.config, experiment.batches
  total = experiment.total_steps
  state = saved['state']
  step = int(state.step)
  if step >= total:
    return saved
  writer = record.Metrics(
    workdir, step=step, tensorboard=config.log.tensorboard
  )
  progress = record.Progress(total=total, done=step)
  log = _Log(experiment, writer, progress, saved['window'])
  every = config.log.checkpoint_every_epochs * batches.steps_per_epoch
  try:
    while step < total and signals.received is None:
      batch = sharding.shard_batch(batches.batch(step), experiment.mesh)
      state, log.metrics, loss = train_step(state, log.metrics, batch)
      step += 1
      log.losses.append(loss)
      progress.advance()
      if step % config.log.every_steps == 0 or step == total:
        log.flush(step)
      if step % every == 0 or step == total:
        log.check_finite(step)
        _check_variables(state.variables, step)
        scores = evaluate(experiment, state.variables, split='validation')
        validation = {f'validation_{k}': v for k, v in scores.items()}
        _check_finite(validation, step)
        writer.write(step, validation)
        progress.say(step, _text(validation))
        checkpoints.save(
          step,
          {'state': state, 'window': log.metrics},
          validation_accuracy=validation['validation_accuracy'],
        )
    log.check_finite(step)
    _check_variables(state.variables, step)
  except FloatingPointError as error:
    kept = checkpoints.steps()
    stays = f'checkpoint {kept[-1]} stays' if kept else 'nothing was saved'
    raise FloatingPointError(
      f'{error}: lower optimizer.learning_rate or set optimizer.gradient_clip, '
      f'with another --workdir; {stays}'
    ) from error
  finally:
    progress.close()
    writer.close()
  return {'state': state, 'window': log.metrics}


def _check_finite(values, step):
  for name, value in values.items():
    if not math.isfinite(value):
      raise FloatingPointError(
        f'expected finite metrics, got {name} = {value} at step {step}'
      )


@jax.jit
def _all_finite(variables):
  return jax.tree.map(lambda x: jnp.isfinite(x).all(), variables)


def _check_variables(variables, step):
  # A NaN potential exceeds no threshold: the loss of a network whose first
  # layers are NaN can be finite.
  finite = jax.device_get(_all_finite(variables))
  for path, ok in jax.tree_util.tree_leaves_with_path(finite):
    if not ok:
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      raise FloatingPointError(
        f'expected finite variables, got {name} with NaN or infinity at step '
        f'{step}'
      )


class _Log:
  """Training metrics between two lines; loss of each step, to find a NaN."""

  def __init__(self, experiment, writer, progress, window):
    self._writer, self._progress = writer, progress
    self._experiment = experiment
    self._rate = optim.learning_rate(
      experiment.config.optimizer,
      steps_per_epoch=experiment.batches.steps_per_epoch,
      num_epochs=experiment.config.num_epochs,
    )
    self._start(window)

  def _start(self, window):
    self.metrics = window
    self.losses = []
    self._time = time.monotonic()

  def check_finite(self, step):
    """Raises FloatingPointError naming the first step with a bad loss."""
    values = jax.device_get(self.losses)
    for at, value in enumerate(values, step - len(values) + 1):
      _check_finite({'loss': value}, at)

  def flush(self, step):
    self.check_finite(step)
    values = {k: float(v) for k, v in self.metrics.compute().items()}
    values['learning_rate'] = float(self._rate(step - 1))
    seconds = time.monotonic() - self._time
    values['steps_per_second'] = len(self.losses) / seconds
    self._writer.write(step, values)
    self._progress.say(step, _text(values))
    self._start(_window(self._experiment.mesh))


def _text(values):
  return '  '.join(f'{name} {value:.4g}' for name, value in values.items())
