"""How is a network trained? State, step and the loop around it."""

import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from clu import metrics as clu_metrics
from clu import parameter_overview

from mpbn_jax import config as configs
from mpbn_jax import losses, optim, record, sharding
from mpbn_jax.checkpoint import Checkpoints
from mpbn_jax.datasets import get_spec, load_dataset
from mpbn_jax.datasets.base import Dataset, TrainingBatches
from mpbn_jax.errors import InputError
from mpbn_jax.evaluate import evaluate
from mpbn_jax.interrupt import Interrupted, SignalCatcher
from mpbn_jax.models import build_model


@flax.struct.dataclass
class TrainState:
  """Everything that training carries from step to step.

  Attributes:
    step: how many updates were made; the only counter.
    params: of the network.
    batch_stats: running statistics.
    opt_state: of `optim.optimizer`.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: Any

  @property
  def variables(self) -> dict:
    """The variables that the model is applied to."""
    return {'params': self.params, 'batch_stats': self.batch_stats}


@flax.struct.dataclass
class TrainMetrics(clu_metrics.Collection):
  """Averages since the last line of the log."""

  loss: clu_metrics.Average.from_output('loss')
  accuracy: clu_metrics.Accuracy


@dataclasses.dataclass(frozen=True)
class Experiment:
  """What a configuration describes, built and checked.

  Attributes:
    config: the whole configuration.
    model: the network.
    dataset: in memory.
    batches: the training batches.
    mesh: all devices.
    total_steps: updates until the end.
  """

  config: Mapping
  model: nn.Module
  dataset: Dataset
  batches: TrainingBatches
  mesh: jax.sharding.Mesh
  total_steps: int


def build_network(config: Mapping, *, mesh: jax.sharding.Mesh | None = None):
  """Returns (model, `Spec` of its data, mesh), checked; reads no data.

  Raises:
    InputError: anything in the configuration that cannot be used.
  """
  configs.check_config(config)
  model = build_model(config.model)
  spec = get_spec(config.data.name)
  if config.model.num_classes != spec.num_classes:
    raise InputError(
      f'model.num_classes must be {spec.num_classes}, the classes of '
      f'{spec.name!r}, got {config.model.num_classes}'
    )
  mesh = sharding.make_mesh() if mesh is None else mesh
  for part in ('data', 'evaluation'):
    sharding.check_batch_size(
      f'{part}.batch_size', config[part].batch_size, mesh
    )
  return model, spec, mesh


def build(config: Mapping, *, mesh: jax.sharding.Mesh | None = None):
  """Returns the checked `Experiment` of a configuration; writes nothing."""
  model, _, mesh = build_network(config, mesh=mesh)
  dataset = load_dataset(config.data, num_steps=config.model.num_steps)
  batches = TrainingBatches(
    dataset, batch_size=config.data.batch_size, seed=config.seed
  )
  return Experiment(
    config=config,
    model=model,
    dataset=dataset,
    batches=batches,
    mesh=mesh,
    total_steps=config.num_epochs * batches.steps_per_epoch,
  )


def start_state(config: Mapping, variables: Mapping) -> TrainState:
  """Returns the state before the first step, with these variables."""
  params = variables['params']
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats=variables.get('batch_stats', {}),
    opt_state=optim.optimizer(config.optimizer).init(params),
  )


def init_state(experiment: Experiment) -> TrainState:
  """Returns the state before the first step, replicated over the mesh."""
  config, model = experiment.config, experiment.model
  shape = (1, *experiment.dataset.example_shape)

  def init(key):
    return start_state(config, model.init(key, jnp.zeros(shape), train=False))

  replicated = sharding.replicated(experiment.mesh)
  return jax.jit(init, out_shardings=replicated)(jax.random.key(config.seed))


def make_train_step(experiment: Experiment) -> Callable:
  """Returns the compiled (state, metrics, batch) -> (state, metrics, loss).

  State and metrics are replicated and donated, the batch is split along
  'data'. Under `jit` over the mesh every mean is over the whole batch:
  statistics and loss are those of one device.
  """
  config, model = experiment.config, experiment.model
  transform = optim.optimizer(config.optimizer)
  rate = optim.learning_rate(
    config.optimizer,
    steps_per_epoch=experiment.batches.steps_per_epoch,
    num_epochs=config.num_epochs,
  )

  loss_function = losses.get_loss(config.loss.name)

  def step(state, metrics, batch):
    images = experiment.dataset.spec.normalize(batch['image'])

    def loss_of(params):
      variables = {'params': params, 'batch_stats': state.batch_stats}
      step_logits, updates = model.apply(
        variables,
        images,
        train=True,
        mutable=['batch_stats'],
        method='step_logits',
      )
      loss = loss_function(
        step_logits,
        batch['label'],
        label_smoothing=config.loss.label_smoothing,
      ).mean()
      return loss, (step_logits.mean(1), updates)

    (loss, (logits, updates)), gradients = jax.value_and_grad(
      loss_of, has_aux=True
    )(state.params)
    directions, opt_state = transform.update(
      gradients, state.opt_state, state.params
    )
    learning_rate = rate(state.step)
    params = optax.apply_updates(
      state.params, jax.tree.map(lambda d: -learning_rate * d, directions)
    )
    metrics = metrics.merge(
      TrainMetrics.single_from_model_output(
        loss=loss, logits=logits, labels=batch['label']
      )
    )
    state = TrainState(
      step=state.step + 1,
      params=params,
      batch_stats=updates.get('batch_stats', {}),
      opt_state=opt_state,
    )
    return state, metrics, loss

  replicated = sharding.replicated(experiment.mesh)
  batch = sharding.along_batch(experiment.mesh)
  return jax.jit(
    step,
    in_shardings=(replicated, replicated, batch),
    out_shardings=replicated,
    donate_argnums=(0, 1),
  )


def check_trainable(experiment: Experiment, step: Callable) -> None:
  """Raises what a training step would raise, without compiling or running."""
  state = jax.eval_shape(lambda: init_state(experiment))
  metrics = jax.eval_shape(TrainMetrics.empty)
  jax.eval_shape(step, state, metrics, experiment.batches.batch(0))


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
