"""Losses on the logits of every time step."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Self

import jax
import jax.numpy as jnp
import optax

from mpbn_jax.errors import InputError, unknown


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


def distilled(
  loss: jax.Array, step_logits: jax.Array, *, weight: float, temperature: float
) -> jax.Array:
  """Returns a loss with self-distillation from the mean logits to every step.

      (1 - weight) * loss + weight * temperature^2 * mean(divergence)
      divergence = KL(teacher || student)                       [B, T]
      teacher = softmax(step_logits.mean(1) / temperature)      [B, K]
      student = softmax(step_logits / temperature)              [B, T, K]

  The mean is over the batch and T. No gradient passes through the teacher, and
  no labels are needed.

  The divergence of softened predictions, and the factor temperature^2 that
  keeps the size of its gradient, are those of Hinton et al. (2015, 1503.02531).
  Yu et al. (2025, 2501.15925) teach every step of a spiking network with this
  divergence too; in their code, the teacher is the mean logits of the steps
  that predict the label, and the term is added to the loss. The mean over all
  steps, which suits mixed labels, and the weights that sum to 1, as in
  `regularized`, are ours. The temporal teacher of Zuo et al. (2024, 2406.07862)
  is the same network run for more steps.

  Args:
    loss: a scalar.
    step_logits: [B, T, K], T > 1.
    weight: in [0, 1); 0 returns the loss as it is.
    temperature: positive; a higher one gives classes with small probabilities
      more influence.

  Raises:
    InputError: T = 1, where the term is always 0.

  Example:
    >>> step_logits = jnp.zeros((8, 4, 10))
    >>> distilled(jnp.ones(()), step_logits, weight=0.5, temperature=2.0)
    Array(0.5, dtype=float32)
  """
  if weight == 0:
    return loss
  steps = step_logits.shape[1]
  if steps == 1:
    raise InputError(
      'self-distillation needs logits of several time steps, got T = 1, where '
      'it is always 0: set model.num_steps to 2 or more, or loss.distillation '
      'to 0'
    )
  logits = step_logits / temperature
  teacher = jax.lax.stop_gradient(logits.mean(1, keepdims=True))
  divergence = optax.losses.kl_divergence_with_log_targets(
    jax.nn.log_softmax(logits), jax.nn.log_softmax(teacher)
  )
  return (1 - weight) * loss + weight * temperature**2 * divergence.mean()


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
  """The loss of a batch, with everything that a configuration adds to it.

  Attributes:
    of_steps: (step logits [B, T, K], labels [B], label_smoothing=) -> [B].
    label_smoothing: fraction of the label that all classes share.
    regularizer: weight of `regularized`.
    regularizer_target: its target.
    distillation: weight of `distilled`.
    distillation_temperature: its temperature.

  Example:
    >>> loss = Loss(of_steps=of_mean)
    >>> batch = {'label': jnp.array([0, 1])}
    >>> loss(jnp.zeros((2, 4, 10)), batch).round(2)
    Array(2.3, dtype=float32)
  """

  of_steps: Callable[..., jax.Array]
  label_smoothing: float = 0.0
  regularizer: float = 0.0
  regularizer_target: float = 1.0
  distillation: float = 0.0
  distillation_temperature: float = 2.0

  @classmethod
  def from_config(cls, config: Mapping) -> Self:
    """Returns the loss that a section `loss` of a configuration describes."""
    settings = dict(config)
    return cls(of_steps=get_loss(settings.pop('name')), **settings)

  def __call__(
    self, step_logits: jax.Array, batch: Mapping[str, jax.Array]
  ) -> jax.Array:
    """Returns the scalar loss of logits [B, T, K] and a batch's labels."""

    def of(labels):
      smoothing = self.label_smoothing
      return self.of_steps(step_logits, labels, label_smoothing=smoothing)

    loss = regularized(
      of_labels(of, batch).mean(),
      step_logits,
      weight=self.regularizer,
      target=self.regularizer_target,
    )
    return distilled(
      loss,
      step_logits,
      weight=self.distillation,
      temperature=self.distillation_temperature,
    )
