"""How do gradients become updates? (Paper, Sec. 5: SGD, cosine, decay 1e-4.)"""

from collections.abc import Mapping

import jax
import optax


def learning_rate(
  config: Mapping, *, steps_per_epoch: int, num_epochs: int
) -> optax.Schedule:
  """Returns step -> learning rate: linear warm-up, then a cosine to 0.

  Args:
    config: `config.optimizer`; learning_rate and warmup_epochs count.
    steps_per_epoch: batches in an epoch.
    num_epochs: after which the rate is 0.
  """
  return optax.warmup_cosine_decay_schedule(
    init_value=0.0 if config['warmup_epochs'] else config['learning_rate'],
    peak_value=config['learning_rate'],
    warmup_steps=round(config['warmup_epochs'] * steps_per_epoch),
    decay_steps=num_epochs * steps_per_epoch,
  )


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
