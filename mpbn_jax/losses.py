"""Losses on the logits of every time step."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from mpbn_jax.errors import unknown


def cross_entropy(
  logits: jax.Array, labels: jax.Array, *, label_smoothing: float = 0.0
) -> jax.Array:
  """Returns the softmax cross-entropy of each example, [...].

  Args:
    logits: [..., K].
    labels: [...] integers.
    label_smoothing: fraction of the target spread evenly over all classes.
  """
  targets = jax.nn.one_hot(labels, logits.shape[-1])
  targets = optax.smooth_labels(targets, label_smoothing)
  return optax.softmax_cross_entropy(logits, targets)


def of_labels(
  per_example: Callable[[jax.Array], jax.Array], batch: Mapping[str, jax.Array]
) -> jax.Array:
  """Returns `per_example` of the labels of a batch, [B].

  With mixup, returns the weighted sum over both labels.

  Args:
    per_example: labels [B] -> [B], for example a loss.
    batch: 'label' and, for mixed images, 'mix_label' and 'mix_weight'.
  """
  value = per_example(batch['label'])
  if 'mix_label' not in batch:
    return value
  weight = batch['mix_weight']
  return weight * value + (1 - weight) * per_example(batch['mix_label'])


def of_mean(step_logits, labels, *, label_smoothing=0.0):
  """Returns the cross-entropy of the logits' mean over T (Eq. 3), [B]."""
  logits = step_logits.mean(1)
  return cross_entropy(logits, labels, label_smoothing=label_smoothing)


def tet(step_logits, labels, *, label_smoothing=0.0):
  """Returns the mean over T of each step's cross-entropy, [B].

  Temporal Efficient Training (Deng et al. 2022, 2202.11946); `regularized` has
  its second term.
  """
  labels = jnp.broadcast_to(labels[:, None], step_logits.shape[:2])
  losses = cross_entropy(step_logits, labels, label_smoothing=label_smoothing)
  return losses.mean(1)


def regularized(
  loss: jax.Array, step_logits: jax.Array, *, weight: float, target: float
) -> jax.Array:
  """Returns a loss with TET's regularizer of the logits of all steps.

      (1 - weight) * loss + weight * mean((step_logits - target)^2)

  It keeps the logits of single steps from growing (Deng et al. 2022,
  2202.11946).

  Args:
    loss: a scalar.
    step_logits: [B, T, K].
    weight: in [0, 1); 0 returns the loss as it is.
    target: what every logit is drawn to.
  """
  if weight == 0:
    return loss
  return (1 - weight) * loss + weight * jnp.mean(
    jnp.square(step_logits - target)
  )


# (step_logits [B, T, K], labels [B], *, label_smoothing) -> [B].
LOSSES: dict[str, Callable[..., jax.Array]] = {
  'cross_entropy': of_mean,
  'tet': tet,
}


def get_loss(name: str) -> Callable[..., jax.Array]:
  """Returns a loss by name.

  Raises:
    InputError: the name is unknown (lists the known ones).
  """
  if name not in LOSSES:
    raise unknown('loss', name, LOSSES)
  return LOSSES[name]
