"""What is minimized?"""

import jax
import optax


def cross_entropy(
  logits: jax.Array, labels: jax.Array, *, label_smoothing: float = 0.0
) -> jax.Array:
  """Returns the softmax cross-entropy of each example, [B].

  Args:
    logits: [B, K], averaged over the steps (paper, Eq. 3).
    labels: [B] integers.
    label_smoothing: share of the target spread evenly over all classes.
  """
  targets = jax.nn.one_hot(labels, logits.shape[-1])
  targets = optax.smooth_labels(targets, label_smoothing)
  return optax.softmax_cross_entropy(logits, targets)
