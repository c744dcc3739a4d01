"""Learning rate and optimizer (paper, Sec. 5: SGD, cosine, decay 1e-4)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from mpbn_jax import programs
from mpbn_jax.errors import unknown

# When the cosine decays; in the paper's code, once per epoch.
DECAY_EVERY = ('step', 'epoch')


def learning_rate(
  config: Mapping, *, steps_per_epoch: int, num_epochs: int
) -> optax.Schedule:
  """Returns step -> learning rate: linear warm-up, then a cosine to 0.

      rate = peak / 2 * (1 + cos(pi * t / num_epochs)), t in epochs,

  where t advances with every step or, as in the paper's code, every epoch. A
  warm-up of w epochs rises with every step; the cosine then spans the rest.

  Args:
    config: `config.optimizer`; uses learning_rate, warmup_epochs and
      decay_every.
    steps_per_epoch: batches per epoch.
    num_epochs: number of epochs after which the rate is 0.

  Raises:
    InputError: decay_every is unknown.
  """
  every = config['decay_every']
  if every not in DECAY_EVERY:
    raise unknown('optimizer.decay_every', every, DECAY_EVERY)
  return _learning_rate(
    config['learning_rate'],
    config['warmup_epochs'],
    every,
    steps_per_epoch,
    num_epochs,
  )


@programs.shared
def _learning_rate(peak, warmup_epochs, every, steps_per_epoch, num_epochs):
  smooth = optax.warmup_cosine_decay_schedule(
    init_value=0.0 if warmup_epochs else peak,
    peak_value=peak,
    warmup_steps=round(warmup_epochs * steps_per_epoch),
    decay_steps=num_epochs * steps_per_epoch,
  )
  if every == 'step':
    return smooth
  warmup = warmup_epochs * steps_per_epoch

  def by_epoch(step):
    start = step // steps_per_epoch * steps_per_epoch
    return smooth(jnp.where(step < warmup, step, start))

  return by_epoch


def optimizer(config: Mapping) -> optax.GradientTransformation:
  """Returns gradients -> directions; the step is -learning rate * direction.

  Applies clipping by the global norm (optional), weight decay on kernels only,
  and momentum in PyTorch's sense: v = momentum * v + g. The caller applies the
  learning rate; its `state.step` is the only counter.

  Args:
    config: `config.optimizer`; uses momentum, nesterov, weight_decay and
      gradient_clip (0 disables clipping).
  """
  return _optimizer(
    config['momentum'],
    config['nesterov'],
    config['weight_decay'],
    config['gradient_clip'],
  )


@programs.shared
def _optimizer(momentum, nesterov, weight_decay, gradient_clip):
  parts = []
  if gradient_clip:
    parts.append(optax.clip_by_global_norm(gradient_clip))
  parts.append(optax.add_decayed_weights(weight_decay, is_kernel))
  parts.append(optax.trace(momentum, nesterov=nesterov))
  return optax.chain(*parts)


def is_kernel(params: Mapping) -> Mapping:
  """Returns True for leaves with weight decay: convolution, linear kernels."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key == 'kernel', params
  )
