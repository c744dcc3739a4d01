"""Training with self-distillation between time steps."""

import jax
import numpy as np

from mpbn_jax import losses, sharding, train_step
from mpbn_jax.configs import digits
from mpbn_jax.experiment import build


def test_loss_of_mixed_images_has_the_term_of_distillation():
  config = digits.get_config()
  config.model.update({'width': 2, 'num_steps': 2, 'unroll': False})
  config.data.update({'batch_size': 16, 'mixup': 0.4})
  config.loss.update({'distillation': 0.3, 'distillation_temperature': 1.5})
  experiment = build(config)
  batch = experiment.batches.batch(0)
  state = train_step.init_state(experiment)
  images = experiment.dataset.spec.normalize(batch['image'])
  logits, _ = jax.jit(
    lambda variables: experiment.model.apply(
      variables,
      images,
      train=True,
      mutable=['batch_stats'],
      method='step_logits',
    )
  )(state.variables)
  loss = losses.of_labels(
    lambda labels: losses.of_mean(logits, labels), batch
  ).mean()
  expected = losses.distilled(loss, logits, weight=0.3, temperature=1.5)
  assert expected < 0.9 * loss  # the term is not small
  step = train_step.make_train_step(experiment)
  _, got = step(state, sharding.shard_batch(batch, experiment.mesh))
  np.testing.assert_allclose(jax.device_get(got), expected, rtol=1e-5)
