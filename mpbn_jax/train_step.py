"""The state of training, and one step of it."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Self

import flax.struct
import jax
import jax.numpy as jnp
import optax
from clu import metrics as clu_metrics

from mpbn_jax import averages, losses, memory, programs, sharding
from mpbn_jax.experiment import Experiment
from mpbn_jax.norm import NORMS
from mpbn_jax.wiring import readers_of_spikes


@flax.struct.dataclass
class TrainMetrics(clu_metrics.Collection):
  """Averages since the last line of the log.

  A prediction for a mixed image counts as correct with the weight of its label.
  """

  # Type checkers do not understand how clu declares metrics.
  loss: clu_metrics.Average.from_output('loss')  # type: ignore[valid-type]
  accuracy: clu_metrics.Average.from_output('correct')  # type: ignore[valid-type]


@flax.struct.dataclass
class TrainState:
  """Everything that training carries from step to step.

  Attributes:
    step: number of updates; the only counter.
    params: parameters of the network.
    batch_stats: running statistics.
    opt_state: state of the optimizer.
    metrics: averages since the last line of the log.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: Any
  metrics: TrainMetrics

  @property
  def raw_variables(self) -> dict:
    """The variables that the next step trains."""
    return {'params': self.params, 'batch_stats': self.batch_stats}

  @property
  def variables(self) -> dict:
    """The variables of the network to evaluate, fold or start from."""
    return self.raw_variables

  def with_variables(self, variables: Mapping) -> Self:
    """Returns this state with other variables."""
    return dataclasses.replace(
      self,
      params=variables['params'],
      batch_stats=variables.get('batch_stats', {}),
    )


# A class of its own: with a field that is None in other runs, Orbax would not
# restore the checkpoints that were saved before there were averages.
@flax.struct.dataclass
class AveragedTrainState(TrainState):
  """A state that also carries averages of the variables (`optimizer.ema`).

  Attributes:
    averages: {'params', 'batch_stats'}, averaged after every update.
  """

  averages: Any

  @property
  def variables(self) -> dict:
    """The averages: the network to evaluate, fold or start from."""
    return self.averages

  def with_variables(self, variables: Mapping) -> Self:
    """Returns this state with other variables; their averages start afresh."""
    state = super().with_variables(variables)
    start = averages.start(state.raw_variables)
    return dataclasses.replace(state, averages=start)


def start_state(
  variables: Mapping,
  *,
  optimizer: optax.GradientTransformation,
  averaged: bool = False,
) -> TrainState:
  """Returns the state before the first step, with these variables.

  Args:
    variables: {'params', 'batch_stats'} of a network.
    optimizer: its state is part of the state.
    averaged: whether the state carries averages of the variables.
  """
  params = variables['params']
  stats = variables.get('batch_stats', {})
  fields = {
    'step': jnp.zeros((), jnp.int32),
    'params': params,
    'batch_stats': stats,
    'opt_state': optimizer.init(params),
    'metrics': TrainMetrics.empty(),
  }
  if not averaged:
    return TrainState(**fields)
  start = averages.start({'params': params, 'batch_stats': stats})
  return AveragedTrainState(**fields, averages=start)


def make_init(experiment: Experiment) -> Any:
  """Returns the compiled function key -> state before the first step.

  The state is replicated over the mesh.
  """
  return _init(
    experiment.model,
    (1, *experiment.dataset.example_shape),
    experiment.optimizer,
    experiment.config.optimizer.ema > 0,
    experiment.mesh,
  )


@programs.shared
def _init(model, shape, optimizer, averaged, mesh):
  def init(key):
    variables = model.init(key, jnp.zeros(shape), train=False)
    return start_state(variables, optimizer=optimizer, averaged=averaged)

  return jax.jit(init, out_shardings=sharding.replicated(mesh))


def init_key(experiment: Experiment) -> jax.Array:
  """Returns the key of the initial parameters."""
  return jax.random.key(experiment.config.seed)


def init_state(experiment: Experiment) -> TrainState:
  """Returns the state before the first step."""
  return make_init(experiment)(init_key(experiment))


def abstract_state(experiment: Experiment, *, init: Any = None) -> TrainState:
  """Returns shapes, dtypes and shardings of `init_state` without compiling.

  Args:
    experiment: the experiment.
    init: the result of `make_init` if it will be called too: it is then traced
      only once.
  """
  init = init or make_init(experiment)
  state: TrainState = init.eval_shape(init_key(experiment))
  return state


def make_loss(experiment: Experiment) -> Any:
  """Returns the loss of a batch in training, not compiled.

  (params, batch_stats, batch, mutable=...) -> (loss, (logits [B, K], updates
  of the mutable collections)).
  """
  loss = losses.Loss.from_config(experiment.config.loss)
  return functools.partial(
    _loss, experiment.model, experiment.dataset.spec, loss
  )


def _loss(
  model, spec, loss_of, params, batch_stats, batch, *, mutable=('batch_stats',)
):
  step_logits, updates = model.apply(
    {'params': params, 'batch_stats': batch_stats},
    spec.normalize(batch['image']),
    train=True,
    mutable=list(mutable),
    method='step_logits',
  )
  loss = loss_of(step_logits, batch)
  return loss, (step_logits.mean(1), updates)


def make_train_step(experiment: Experiment) -> Any:
  """Returns the compiled (state, batch) -> (state, loss).

  The state is replicated and donated, and the batch is split along 'data'.
  Under `jit` over the mesh every mean is over the whole batch: statistics and
  loss are the same as on one device. With `model.stats_groups`, batch
  statistics are those of groups, on any number of devices.

  On CPU it cannot be called inside another `jit`: see
  `memory.compiler_options`.

  With `optimizer.accumulate` = k, the batch is trained as k groups, one after
  the other: example i belongs to group i mod k. Batch statistics are those of a
  group, running ones move k times, and the gradient is the mean over groups.
  `model.stats_groups` divides each of these groups.

  With `optimizer.ema`, the state's averages follow every update; training does
  not read them.
  """
  return _train_step(
    experiment.model,
    experiment.dataset.spec,
    losses.Loss.from_config(experiment.config.loss),
    experiment.optimizer,
    experiment.learning_rate,
    experiment.config.optimizer.accumulate,
    experiment.config.optimizer.ema,
    experiment.mesh,
  )


@programs.shared
def _train_step(
  model,
  spec,
  loss,
  optimizer,
  learning_rate,
  accumulate,
  ema,
  mesh,
):
  loss_of = functools.partial(_loss, model, spec, loss)

  def backward(params, batch_stats, batch):
    """Returns (gradients, batch_stats, loss, whether each is correct)."""
    (loss, (logits, updates)), gradients = jax.value_and_grad(
      loss_of, has_aux=True
    )(params, batch_stats, batch)
    predicted = logits.argmax(-1)
    correct = losses.of_labels(
      lambda labels: (predicted == labels).astype(jnp.float32), batch
    )
    return gradients, updates.get('batch_stats', {}), loss, correct

  def step(state, batch):
    if accumulate == 1:
      gradients, batch_stats, loss, correct = backward(
        state.params, state.batch_stats, batch
      )
    else:
      gradients, batch_stats, loss, correct = _accumulated(
        backward, state.params, state.batch_stats, batch, groups=accumulate
      )
    directions, opt_state = optimizer.update(
      gradients, state.opt_state, state.params
    )
    rate = learning_rate(state.step)
    params = optax.apply_updates(
      state.params, jax.tree.map(lambda d: -rate * d, directions)
    )
    metrics = state.metrics.merge(
      TrainMetrics.single_from_model_output(loss=loss, correct=correct)
    )
    # With jax_enable_x64 a count would become int64: another state.
    metrics = jax.tree.map(
      lambda new, old: new.astype(old.dtype), metrics, state.metrics
    )
    before = state.step
    state = state.replace(
      step=before + 1,
      params=params,
      batch_stats=batch_stats,
      opt_state=opt_state,
      metrics=metrics,
    )
    if ema:
      averaged = averages.update(
        state.averages, state.raw_variables, decay=ema, step=before
      )
      state = state.replace(averages=averaged)
    return state, loss

  replicated = sharding.replicated(mesh)
  return jax.jit(
    step,
    in_shardings=(replicated, sharding.along_batch(mesh)),
    out_shardings=replicated,
    donate_argnums=0,
    compiler_options=memory.compiler_options(),
  )


def _accumulated(backward, params, batch_stats, batch, *, groups):
  """Returns what `backward` returns, with one group of the batch at a time."""

  def group_of(x):
    # Not B / groups examples in a row: every device keeps its part of B.
    return x.reshape(-1, groups, *x.shape[1:]).swapaxes(0, 1)

  def add(carry, group):
    batch_stats, total = carry
    gradients, batch_stats, *outputs = backward(params, batch_stats, group)
    return (batch_stats, jax.tree.map(jnp.add, total, gradients)), outputs

  start = batch_stats, jax.tree.map(jnp.zeros_like, params)
  (batch_stats, total), (loss, correct) = jax.lax.scan(
    add, start, jax.tree.map(group_of, batch)
  )
  gradients = jax.tree.map(lambda total: total / groups, total)
  return gradients, batch_stats, loss.mean(), correct.reshape(-1)


def check_trainable(experiment: Experiment, *, init: Any, step: Any) -> None:
  """Raises the errors that training would raise, without compiling or running.

  Training ends with a fold if the configuration says so: a norm that cannot be
  folded is better reported before training.

  Args:
    experiment: the experiment.
    init: the result of `make_init`.
    step: the result of `make_train_step`.
  """
  # With the shardings of the first call, which then need not trace again.
  state = abstract_state(experiment, init=init)
  for size in experiment.batches.sizes:
    batch = experiment.batches.abstract(size)
    batch = sharding.abstract_batch(batch, experiment.mesh)
    step.eval_shape(state, batch)
  config = experiment.config
  norm = NORMS.get(config.model.spike_norm)
  if config.evaluation.fold == 'all' and norm is not None and norm.fold:
    x = jax.ShapeDtypeStruct((1, *experiment.dataset.example_shape), 'float32')
    readers_of_spikes(experiment.model, state.variables, x)
