"""The training loop: resuming, logging, checkpoints and completion."""

import contextlib
import math
import pathlib
import time

import jax
import jax.numpy as jnp
import ml_collections

from mpbn_jax import job, memory, record, sharding, tables, watchdog
from mpbn_jax.checkpoint import Checkpoints, steps_in
from mpbn_jax.datasets.prefetch import Prefetch
from mpbn_jax.errors import InputError
from mpbn_jax.evaluation import evaluate
from mpbn_jax.experiment import Experiment, build, for_epochs
from mpbn_jax.files import NotWrittenError
from mpbn_jax.interrupt import Interrupted, SignalCatcher
from mpbn_jax.layer_metrics import make_layer_metrics
from mpbn_jax.record import CHECKPOINTS
from mpbn_jax.runs import with_weights_of
from mpbn_jax.train_step import (
  TrainMetrics,
  TrainState,
  check_trainable,
  init_key,
  make_init,
  make_train_step,
)


def train(
  config: ml_collections.ConfigDict,
  *,
  workdir: str | pathlib.Path,
  mesh: jax.sharding.Mesh | None = None,
) -> tuple[Experiment, TrainState]:
  """Trains a network, or resumes the run in `workdir`; returns the last state.

  A run that is interrupted at any moment and resumed ends with the same bits as
  an uninterrupted one: batches are a function of seed and step, and the state
  holds everything else.

  Args:
    config: as in `configs/default.py`.
    workdir: directory for checkpoints, metrics and events; created if needed.
    mesh: devices; None uses all of them, of every process of a job.

  Returns:
    (the experiment, the state after the last step).

  Raises:
    InputError: the configuration or work directory is invalid, or another
      process uses the directory; or data cannot be read during training, after
      the state is saved (in a job, the last checkpoint is kept).
    NotWrittenError: a file cannot be written (an InputError), for example
      because the disk is full. The last checkpoint is kept.
    Interrupted: SIGTERM or Ctrl-C was received, by any process of a job; the
      state is saved.
    FloatingPointError: a metric or a variable is not finite (names it and the
      step); the last checkpoint before it is kept.
  """
  experiment = build(config, mesh=mesh)
  init, train_step = make_init(experiment), make_train_step(experiment)
  check_trainable(experiment, init=init, step=train_step)
  state = None
  if config.init_from and not steps_in(pathlib.Path(workdir) / CHECKPOINTS):
    # May raise, so before anything is written.
    state = _started(experiment, init)
  with (
    record.hold_workdir(workdir, config) as held,
    SignalCatcher() as signals,
  ):
    checkpoints = Checkpoints(
      held.path / CHECKPOINTS, config=config, data=experiment.dataset.checksum
    )
    if state is None:
      state = init(init_key(experiment))
    stop = _Stop(signals, experiment.mesh)
    wanted = True
    restored = checkpoints.restore_latest(state)
    if restored is None:
      print(tables.parameters(state.params), flush=True)
    else:
      step, state = restored
      stored = checkpoints.config_of(step) or held.stored or config
      experiment, wanted = _going_on(experiment, step, stored, held.path)
    bad_input = None
    if wanted:
      record.write_config(held.path, config)
      state, bad_input = _loop(
        experiment, train_step, state, held, checkpoints, stop
      )
    # Does nothing after the last step, which is already saved.
    step = int(state.step)
    where = checkpoints.save(step, state)
    asked = stop.final()
  if bad_input is not None:
    raise bad_input
  # Checked once the handlers are gone, so that no late signal is missed.
  asked = asked or signals.received
  if asked is not None:
    raise Interrupted(
      asked,
      f'stopped at step {step} of {experiment.total_steps}, saved in {where}: '
      'run the same command again to resume',
    )
  return experiment, state


def _started(experiment, init):
  """Returns the state of a new run that starts from another run's weights."""
  init_from = experiment.config.init_from
  state, kept = with_weights_of(init(init_key(experiment)), init_from)
  new = f'; new: {", ".join(kept)}' if kept else ''
  print(f'initial weights from {init_from}{new}', flush=True)
  return state


def _going_on(experiment, step, stored, workdir):
  """Prints where a run resumes; returns (experiment, whether to train on).

  The learning rate depends on num_epochs, so a change of it is printed. A run
  that was already trained for longer is left unchanged, and the returned
  experiment has its number of epochs.
  """
  asked, before = experiment.config.num_epochs, stored['num_epochs']
  if before > asked and step >= experiment.total_steps:
    experiment = for_epochs(experiment, before)
    total = experiment.total_steps
    state = 'is trained' if step == total else 'is left unchanged'
    print(
      f'{workdir} {state}: step {step} of {total} ({before} epochs; {asked} '
      'asked for)',
      flush=True,
    )
    return experiment, False
  total = experiment.total_steps
  done = 'is trained' if step >= total else 'continues'
  print(f'{workdir} {done}: step {step} of {total}', flush=True)
  if before != asked and step > 0:
    now = experiment.learning_rate
    last = for_epochs(experiment, before).learning_rate
    print(
      f'num_epochs changes from {before} to {asked}, and the learning rate '
      f'with it: {now(step):.4g} in the next step, {last(step - 1):.4g} in the '
      'last',
      flush=True,
    )
  return experiment, True


class _Stop:
  """Signals to stop, on which all processes of a job agree.

  Each process tells the others after every step whether it got a signal, by a
  program of its own beside the training step; all read the answer one step
  later, so that a step does not wait for it.
  """

  def __init__(self, signals, mesh):
    self._signals, self._mesh = signals, mesh
    self._told = None

  def now(self):
    """Returns the signal to stop at before the next step, or None."""
    if job.count() == 1:
      return self._signals.received
    before, self._told = self._told, self._tell()
    # The first answer is worth waiting for: compilation follows.
    return int(self._told if before is None else before) or None

  def final(self):
    """Returns a signal that any process got until now, or None."""
    if job.count() == 1:
      return self._signals.received
    return int(self._tell()) or None

  def _tell(self):
    return sharding.largest(self._signals.received or 0, self._mesh)


def _loop(experiment, train_step, state, held, checkpoints, stop):
  """Returns (the state, None or the error in the data).

  Stops after the last step, or after a signal or a bad image.
  """
  config, batches = experiment.config, experiment.batches
  total = experiment.total_steps
  step = int(state.step)
  if step >= total:
    return state, None
  writer = record.Metrics(
    held.path,
    step=step,
    tensorboard=config.log.tensorboard,
    lock=held.lock,
  )
  progress = record.Progress(total=total, done=step)
  log = _Log(experiment, writer, progress)
  every = config.log.checkpoint_every_epochs * batches.steps_per_epoch
  programs = {}  # by the size of the batch
  least = bool(getattr(experiment.model, 'remat', False))
  on_devices = (
    sharding.shard_batch(batches.batch(i), experiment.mesh)
    for i in range(step, total)
  )
  ready = Prefetch(on_devices, ahead=config.data.prefetch)
  try:
    with writer, _NotedInputError() as bad_input, ready:
      while step < total and stop.now() is None:
        batch = next(ready)
        size = len(batch['label'])
        watchdog.advance() if size in programs else watchdog.pause()
        if size not in programs:
          program = memory.compile_ahead(train_step, state, batch, least=least)
          # With the least memory, JAX has forgotten how to call the step.
          programs[size] = program if least else train_step
        state, loss = programs[size](state, batch)
        # One step runs while the next batch is loaded. Queueing batches for
        # more steps would only use more memory.
        jax.block_until_ready(log.losses[-1:])
        watchdog.advance()
        step += 1
        log.losses.append(loss)
        progress.advance()
        if step % config.log.every_steps == 0 or step == total:
          metrics = log.flush(step, state, batch, waited=ready.waited)
          state = state.replace(metrics=metrics)
        if step % every == 0 or step == total:
          watchdog.pause()
          log.check_finite(step)
          # Once a variable is not finite, its average never is again.
          _check_variables(state.variables, step)
          accuracy = _validate(experiment, state, step, writer, progress)
          writer.flush()
          checkpoints.save(step, state, validation_accuracy=accuracy)
    log.check_finite(step)
    _check_variables(state.variables, step)
    watchdog.pause()
  except FloatingPointError as error:
    kept = checkpoints.steps()
    stays = f'checkpoint {kept[-1]} is kept' if kept else 'nothing was saved'
    raise FloatingPointError(
      f'{error}: lower optimizer.learning_rate or set optimizer.gradient_clip, '
      f'with another --workdir; {stays}'
    ) from error
  finally:
    progress.close()
  return state, bad_input.error


class _NotedInputError(contextlib.AbstractContextManager):
  """Ends its body at bad data and stores the exception in `error`."""

  error: InputError | None = None

  def __exit__(self, kind, error, trace):
    # If a file could not be written, no later checkpoint is saved: it would
    # hide the gap in the log.
    # In a job, other processes may be in the step for which data are missing.
    saved = job.count() == 1 and not isinstance(error, NotWrittenError)
    if isinstance(error, InputError) and saved:
      self.error = error
    return self.error is not None


def _validate(experiment, state, step, writer, progress):
  """Returns the accuracy on the validation split, or None without one."""
  if 'validation' not in experiment.dataset.splits:
    return None
  scores = evaluate(experiment, state.variables, split='validation')
  values = {f'validation_{name}': score for name, score in scores.items()}
  _check_finite(values, step)
  writer.write(step, values)
  progress.say(step, tables.metrics(values))
  return scores['accuracy']


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
  # A NaN membrane potential exceeds no threshold, so the loss can be finite
  # although the first layers are NaN.
  finite = jax.device_get(_all_finite(variables))
  for path, ok in jax.tree_util.tree_leaves_with_path(finite):
    if not ok:
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      raise FloatingPointError(
        f'expected finite variables, got {name} with NaN or infinity at step '
        f'{step}'
      )


class _Log:
  """Training metrics since the last line, and every loss, to find a NaN."""

  def __init__(self, experiment, writer, progress):
    self._writer, self._progress = writer, progress
    self._rate = experiment.learning_rate
    self._replicated = sharding.replicated(experiment.mesh)
    self._of_layers = None
    if experiment.config.log.per_layer:
      self._of_layers = make_layer_metrics(experiment)
    self._start(waited=0.0)

  def _start(self, *, waited):
    self.losses = []
    self._waited = waited
    self._time = time.monotonic()

  def check_finite(self, step):
    """Raises FloatingPointError naming the first step with a bad loss."""
    values = jax.device_get(self.losses)
    for at, value in enumerate(values, step - len(values) + 1):
      _check_finite({'loss': value}, at)

  def flush(self, step, state, batch, *, waited):
    """Writes a line; returns empty metrics for the next one.

    Args:
      step: the last step.
      state: the state after it, with the metrics since the last line.
      batch: the batch of that step, for the metrics of layers.
      waited: seconds spent waiting for data since the first step.
    """
    self.check_finite(step)
    values = {k: float(v) for k, v in state.metrics.compute().items()}
    values['learning_rate'] = float(self._rate(step - 1))
    seconds = time.monotonic() - self._time
    values['steps_per_second'] = len(self.losses) / seconds
    values['data_wait'] = (waited - self._waited) / seconds  # fraction of time
    self._progress.say(step, tables.metrics(values))
    if self._of_layers is not None:
      values |= jax.device_get(self._of_layers(state, batch))
    self._writer.write(step, values)
    self._start(waited=waited)
    # New buffers, because the next step donates them.
    return jax.device_put(TrainMetrics.empty(), self._replicated)
