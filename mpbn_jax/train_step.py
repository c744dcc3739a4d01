"""What does training build from a configuration, and what is one step of it?"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from clu import metrics as clu_metrics

from mpbn_jax import config as configs
from mpbn_jax import losses, optim, sharding
from mpbn_jax.datasets import get_spec, load_dataset
from mpbn_jax.datasets.base import Dataset
from mpbn_jax.datasets.batches import TrainingBatches
from mpbn_jax.errors import InputError
from mpbn_jax.models import build_model
from mpbn_jax.norm import NORMS
from mpbn_jax.wiring import readers_of_spikes


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
  """Averages since the last line of the log.

  A prediction for a mixed image is right as far as the weight of its label.
  """

  loss: clu_metrics.Average.from_output('loss')
  accuracy: clu_metrics.Average.from_output('right')


@dataclasses.dataclass(frozen=True)
class Experiment:
  """What a configuration describes, built and checked.

  Attributes:
    config: the whole configuration.
    model: the network.
    dataset: its splits and augmentations.
    batches: the training batches, of this host.
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
    dataset,
    batch_size=config.data.batch_size,
    seed=config.seed,
    host=sharding.host(),
    last=config.data.last_batch,
    devices=mesh.size,
  )
  return Experiment(
    config=config,
    model=model,
    dataset=dataset,
    batches=batches,
    mesh=mesh,
    total_steps=config.num_epochs * batches.steps_per_epoch,
  )


def for_epochs(experiment: Experiment, num_epochs: int) -> Experiment:
  """Returns the experiment with another number of epochs."""
  config = experiment.config.copy_and_resolve_references()
  config.num_epochs = num_epochs
  total = num_epochs * experiment.batches.steps_per_epoch
  return dataclasses.replace(experiment, config=config, total_steps=total)


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
      loss_of_labels = functools.partial(
        loss_function,
        step_logits,
        label_smoothing=config.loss.label_smoothing,
      )
      loss = losses.of_labels(loss_of_labels, batch).mean()
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
    predicted = logits.argmax(-1)
    right = losses.of_labels(
      lambda labels: (predicted == labels).astype(jnp.float32), batch
    )
    metrics = metrics.merge(
      TrainMetrics.single_from_model_output(loss=loss, right=right)
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
  """Raises what training would raise, without compiling or running.

  The last thing that it does is to fold, if the configuration says so: what no
  norm can be folded into is better named before.
  """
  state = jax.eval_shape(lambda: init_state(experiment))
  metrics = jax.eval_shape(TrainMetrics.empty)
  for size in experiment.batches.sizes:
    jax.eval_shape(step, state, metrics, experiment.batches.abstract(size))
  config = experiment.config
  norm = NORMS.get(config.model.spike_norm)
  if config.evaluation.fold_convolutions and norm is not None and norm.fold:
    x = jax.ShapeDtypeStruct((1, *experiment.dataset.example_shape), 'float32')
    readers_of_spikes(experiment.model, state.variables, x)
