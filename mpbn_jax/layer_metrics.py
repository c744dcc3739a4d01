"""Metrics of every layer during training: rates, gradients, thresholds."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import traverse_util

from mpbn_jax import norm, sharding
from mpbn_jax.experiment import Experiment
from mpbn_jax.folding import fold
from mpbn_jax.train_step import TrainState, make_loss
from mpbn_jax.tree import norms_at


def make_layer_metrics(experiment: Experiment) -> Callable:
  """Returns the compiled (state, batch) -> {name: scalar}.

      firing_rate/<layer>     spikes per neuron and step of a batch, in training
      gradient_norm/<layer>   norm of the gradient of a kernel on that batch
      threshold/<layer>       mean of the finite thresholds that the running
                              statistics fold into

  It changes nothing: training ends with the same bits. Blocks that the program
  scans over count as one layer. With `optimizer.accumulate` = k, the batch is
  one of its k groups.

  Args:
    experiment: from `experiment.build`.
  """
  loss, config = make_loss(experiment), experiment.config
  groups = config.optimizer.accumulate
  entry = norm.NORMS.get(config.model.membrane_norm)
  folds = entry is not None and entry.fold is not None

  def metrics(state: TrainState, batch: Mapping) -> dict[str, jax.Array]:
    # Those of one group, which every device has a part of.
    part = {k: x[::groups] for k, x in batch.items()}
    gradients, (_, updates) = jax.grad(
      lambda params: loss(
        params,
        state.batch_stats,
        part,
        mutable=('batch_stats', 'intermediates'),
      ),
      has_aux=True,
    )(state.params)
    found = {}
    for path, runs in _flat(updates.get('intermediates', {})).items():
      if path[-1] == 'spikes':
        rates = jnp.stack([spikes.mean(dtype=jnp.float32) for spikes in runs])
        found[_name('firing_rate', path)] = rates.mean()
    for path, gradient in _flat(gradients).items():
      if path[-1] == 'kernel':
        found[_name('gradient_norm', path)] = jnp.linalg.norm(
          gradient.reshape(-1)
        )
    variables = state.raw_variables
    if folds and any(True for _ in norms_at(variables, 'membrane')):
      for path, leaf in _flat(fold(variables)['threshold']).items():
        if path[-1] == 'threshold':
          found[_name('threshold', path)] = _mean_of_finite(leaf)
    return found

  return jax.jit(metrics, out_shardings=sharding.replicated(experiment.mesh))


def _flat(tree):
  return traverse_util.flatten_dict(tree)


def _name(what, path):
  return '/'.join((what, *path[:-1]))


def _mean_of_finite(threshold):
  """Returns the mean; 0 if no threshold is finite."""
  finite = jnp.abs(threshold) < jnp.finfo(jnp.float32).max
  total = jnp.where(finite, threshold, 0).sum()
  return total / jnp.maximum(finite.sum(), 1)
