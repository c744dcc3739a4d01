"""Learning rates and optimizers (paper, Sec. 5: SGD, cosine, decay 1e-4)."""

from collections.abc import Callable, Mapping

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
  """Returns step -> learning rate: linear warm-up, then a schedule to the end.

      cosine:    rate = peak / 2 * (1 + cos(pi * t / num_epochs))
      linear:    rate = peak * (1 - t / num_epochs)
      constant:  rate = peak

  t is in epochs, and advances with every step or, as in the paper's code, every
  epoch. A warm-up of w epochs rises with every step; the schedule then spans
  the rest.

  Args:
    config: `config.optimizer`; uses learning_rate, warmup_epochs, schedule and
      decay_every.
    steps_per_epoch: batches per epoch.
    num_epochs: number of epochs after which the rate is 0.

  Raises:
    InputError: schedule or decay_every is unknown.
  """
  if config['schedule'] not in SCHEDULES:
    raise unknown('optimizer.schedule', config['schedule'], SCHEDULES)
  every = config['decay_every']
  if every not in DECAY_EVERY:
    raise unknown('optimizer.decay_every', every, DECAY_EVERY)
  return _learning_rate(
    config['learning_rate'],
    config['warmup_epochs'],
    config['schedule'],
    every,
    steps_per_epoch,
    num_epochs,
  )


@programs.shared
def _learning_rate(
  peak, warmup_epochs, schedule, every, steps_per_epoch, num_epochs
):
  warmup_steps = round(warmup_epochs * steps_per_epoch)
  steps = num_epochs * steps_per_epoch
  # Nothing but the schedule where there is no warm-up.
  smooth = optax.join_schedules(
    [
      optax.linear_schedule(0.0, peak, max(1, warmup_steps)),
      SCHEDULES[schedule](peak, steps - warmup_steps),
    ],
    [warmup_steps],
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

  Applies clipping by the global norm (optional), then one of `OPTIMIZERS`, with
  weight decay on kernels only. The caller applies the learning rate; its
  `state.step` is the only counter.

  Args:
    config: `config.optimizer`; uses name, momentum, b2, nesterov, weight_decay
      and gradient_clip (0 disables clipping).

  Raises:
    InputError: the name is unknown.
  """
  if config['name'] not in OPTIMIZERS:
    raise unknown('optimizer.name', config['name'], OPTIMIZERS)
  return _optimizer(
    OPTIMIZERS[config['name']],
    config['momentum'],
    config['b2'],
    config['nesterov'],
    config['weight_decay'],
    config['gradient_clip'],
  )


@programs.shared
def _optimizer(make, momentum, b2, nesterov, weight_decay, gradient_clip):
  clip = []
  if gradient_clip:
    clip.append(optax.clip_by_global_norm(gradient_clip))
  decay = optax.add_decayed_weights(weight_decay, is_kernel)
  parts = make(momentum=momentum, b2=b2, nesterov=nesterov, decay=decay)
  return optax.chain(*clip, *parts)


def sgd(*, momentum, b2, nesterov, decay):
  """Returns SGD with momentum in PyTorch's sense: v = momentum * v + g.

  Weight decay is added to the gradient, before the momentum.
  """
  del b2
  return decay, optax.trace(momentum, nesterov=nesterov)


def adamw(*, momentum, b2, nesterov, decay):
  """Returns Adam with decoupled weight decay (1711.05101); momentum is b1."""
  return optax.scale_by_adam(b1=momentum, b2=b2, nesterov=nesterov), decay


def lamb(*, momentum, b2, nesterov, decay):
  """Returns LAMB (1904.00962), for large batches; momentum is b1."""
  adam = optax.scale_by_adam(b1=momentum, b2=b2, eps=1e-6, nesterov=nesterov)
  return adam, decay, optax.scale_by_trust_ratio()


# {name: (momentum, b2, nesterov, decay) -> transformations, one after another}
OPTIMIZERS: dict[str, Callable] = {'sgd': sgd, 'adamw': adamw, 'lamb': lamb}

# {name: (peak, steps) -> schedule after the warm-up}
SCHEDULES: dict[str, Callable] = {
  'cosine': optax.cosine_decay_schedule,
  'linear': lambda peak, steps: optax.linear_schedule(peak, 0.0, steps),
  'constant': lambda peak, steps: optax.constant_schedule(peak),
}


def is_kernel(params: Mapping) -> Mapping:
  """Returns True for leaves with weight decay: convolution, linear kernels."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key == 'kernel', params
  )
