"""Learning rate and optimizer (paper, Sec. 5: SGD, cosine, decay 1e-4)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from mpbn_jax.errors import unknown

# When the cosine moves on. The paper's code moves once an epoch.
DECAY_EVERY = ('step', 'epoch')


def learning_rate(
  config: Mapping, *, steps_per_epoch: int, num_epochs: int
) -> optax.Schedule:
  """Returns step -> learning rate: linear warm-up, then a cosine to 0.

      rate = peak / 2 * (1 + cos(pi * t / num_epochs)), t in epochs,

  t moving on with every step, or, as in the paper's code, with every epoch.
  A warm-up of w epochs rises with every step; the cosine then spans the rest.

  Args:
    config: `config.optimizer`; learning_rate, warmup_epochs and decay_every
      count.
    steps_per_epoch: batches in an epoch.
    num_epochs: after which the rate is 0.

  Raises:
    InputError: unknown decay_every.
  """
  every = config['decay_every']
  if every not in DECAY_EVERY:
    raise unknown('optimizer.decay_every', every, DECAY_EVERY)
  smooth = optax.warmup_cosine_decay_schedule(
    init_value=0.0 if config['warmup_epochs'] else config['learning_rate'],
    peak_value=config['learning_rate'],
    warmup_steps=round(config['warmup_epochs'] * steps_per_epoch),
    decay_steps=num_epochs * steps_per_epoch,
  )
  if every == 'step':
    return smooth
  warmup = config['warmup_epochs'] * steps_per_epoch

  def by_epoch(step):
    start = step // steps_per_epoch * steps_per_epoch
    return smooth(jnp.where(step < warmup, step, start))

  return by_epoch


def optimizer(config: Mapping) -> optax.GradientTransformation:
  """Returns gradients -> directions; the step is -learning rate * direction.

  Clipping by the global norm (if asked), then weight decay on the kernels
  alone, then momentum in PyTorch's sense: v = momentum * v + g. The learning
  rate is left to the caller, whose `state.step` is the only counter.

  Args:
    config: `config.optimizer`; momentum, nesterov, weight_decay and
      gradient_clip (0: none) count.
  """
  parts = []
  if config['gradient_clip']:
    parts.append(optax.clip_by_global_norm(config['gradient_clip']))
  parts.append(optax.add_decayed_weights(config['weight_decay'], is_kernel))
  parts.append(optax.trace(config['momentum'], nesterov=config['nesterov']))
  return optax.chain(*parts)


def is_kernel(params: Mapping) -> Mapping:
  """Returns True at the leaves that decay: convolution and linear kernels."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key == 'kernel', params
  )
