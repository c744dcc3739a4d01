"""An experiment, built from a configuration and checked."""

import dataclasses

import flax.linen as nn
import jax
import ml_collections
import optax

from mpbn_jax import config as config_lib
from mpbn_jax import optim, sharding
from mpbn_jax.datasets import get_spec, load_dataset
from mpbn_jax.datasets.base import Dataset, Spec
from mpbn_jax.datasets.batches import TrainingBatches
from mpbn_jax.errors import InputError
from mpbn_jax.models import build_model


@dataclasses.dataclass(frozen=True)
class Experiment:
  """The objects that a configuration describes.

  Attributes:
    config: the whole configuration.
    model: the network.
    dataset: its splits and augmentations.
    batches: the training batches of this host.
    optimizer: turns gradients into directions, without learning rate and sign:
      params -= learning_rate(step) * direction.
    learning_rate: step -> learning rate.
    mesh: the devices.
    total_steps: number of updates.
  """

  config: ml_collections.ConfigDict
  model: nn.Module
  dataset: Dataset
  batches: TrainingBatches
  optimizer: optax.GradientTransformation
  learning_rate: optax.Schedule
  mesh: jax.sharding.Mesh
  total_steps: int


def build_network(
  config: ml_collections.ConfigDict, *, mesh: jax.sharding.Mesh | None = None
) -> tuple[nn.Module, Spec, jax.sharding.Mesh]:
  """Returns checked (model, `Spec` of its data, mesh) without reading data.

  Raises:
    InputError: the configuration is invalid.
  """
  config_lib.check_config(config)
  model = build_model(config.model)
  spec = get_spec(config.data.name)
  if config.model.num_classes != spec.num_classes:
    raise InputError(
      f'model.num_classes must be {spec.num_classes}, the number of classes of '
      f'{spec.name!r}, got {config.model.num_classes}'
    )
  mesh = sharding.make_mesh() if mesh is None else mesh
  for part in ('data', 'evaluation'):
    sharding.check_batch_size(
      f'{part}.batch_size', config[part].batch_size, mesh
    )
  return model, spec, mesh


def build(
  config: ml_collections.ConfigDict, *, mesh: jax.sharding.Mesh | None = None
) -> Experiment:
  """Returns the checked `Experiment` of a configuration; writes nothing.

  Args:
    config: as in `configs/default.py`.
    mesh: devices; None uses all of them.

  Raises:
    InputError: the configuration is invalid.
  """
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
  accumulate = config.optimizer.accumulate
  for size in batches.sizes:
    if size % (accumulate * mesh.size):
      raise InputError(
        f'optimizer.accumulate must divide the batches of {size} examples into '
        f'groups that {mesh.size} devices share equally, got {accumulate}: set '
        'another one, or another --config.data.batch_size'
      )
    _check_stats_groups(config.model.stats_groups, size // accumulate, mesh)
  return Experiment(
    config=config,
    model=model,
    dataset=dataset,
    batches=batches,
    optimizer=optim.optimizer(config.optimizer),
    mesh=mesh,
    **_schedule(config, batches),
  )


def _check_stats_groups(groups, batch_size, mesh):
  """Raises InputError unless the groups divide a batch and fit the devices."""
  if batch_size % groups:
    raise InputError(
      f'model.stats_groups must divide the {batch_size} examples that are '
      f'trained together, got {groups}: set another one, or another '
      '--config.data.batch_size'
    )
  devices = mesh.size
  if groups % devices and devices % groups:
    # XLA would collect the activations of the whole batch on every device.
    near = max(1, groups // devices) * devices
    raise InputError(
      f'model.stats_groups must divide the {devices} devices or be a multiple '
      f'of them, got {groups}: set --config.model.stats_groups={near}, for '
      'example, or use another number of devices'
    )


def for_epochs(experiment: Experiment, num_epochs: int) -> Experiment:
  """Returns the experiment with another number of epochs."""
  config = experiment.config.copy_and_resolve_references()
  config.num_epochs = num_epochs
  return dataclasses.replace(
    experiment, config=config, **_schedule(config, experiment.batches)
  )


def _schedule(config, batches):
  """Returns the fields that depend on the number of epochs."""
  rate = optim.learning_rate(
    config.optimizer,
    steps_per_epoch=batches.steps_per_epoch,
    num_epochs=config.num_epochs,
  )
  total = config.num_epochs * batches.steps_per_epoch
  return {'learning_rate': rate, 'total_steps': total}
