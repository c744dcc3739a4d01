"""Losses, learning rates and updates of the paper's Section 5."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mpbn_jax import InputError, losses, optim

SETTINGS = dict(
  name='sgd',
  learning_rate=0.1,
  schedule='cosine',
  warmup_epochs=0.0,
  decay_every='step',
  momentum=0.9,
  b2=0.99,
  nesterov=False,
  weight_decay=0.01,
  gradient_clip=0.0,
)
PARAMS = {
  'conv1': {'kernel': jnp.ones((1, 1, 1, 2)), 'bn': {'scale': jnp.ones(2)}},
  'head': {'kernel': jnp.ones((2, 1)), 'bias': jnp.ones(1)},
}


def test_loss_is_the_cross_entropy():
  logits, labels = jnp.array([[2.0, 0.0], [1.0, 1.0]]), jnp.array([0, 1])
  expected = [np.log(1 + np.exp(-2)), np.log(2)]
  np.testing.assert_allclose(
    losses.cross_entropy(logits, labels), expected, rtol=1e-6
  )


STEP_LOGITS = np.random.default_rng(0).normal(0, 2, (5, 3, 4))  # [B, T, K]
LABELS = np.array([0, 3, 1, 2, 2])


def test_default_loss_is_that_of_the_mean_logits():
  got = losses.get_loss('cross_entropy')(STEP_LOGITS, LABELS)
  expected = losses.cross_entropy(STEP_LOGITS.mean(1), LABELS)
  np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_tet_is_the_mean_of_the_losses_of_the_steps():
  got = losses.get_loss('tet')(STEP_LOGITS, LABELS, label_smoothing=0.1)
  steps = [
    losses.cross_entropy(STEP_LOGITS[:, t], LABELS, label_smoothing=0.1)
    for t in range(3)
  ]
  np.testing.assert_allclose(got, np.mean(steps, 0), rtol=1e-6)


def test_regularizer_draws_the_logits_of_all_steps_to_its_target():
  loss = jnp.float32(2.0)
  got = losses.regularized(loss, STEP_LOGITS, weight=0.1, target=1.0)
  distance = [(x - 1) ** 2 for x in STEP_LOGITS.ravel()]
  np.testing.assert_allclose(got, 1.8 + 0.1 * np.mean(distance), rtol=1e-6)
  assert losses.regularized(loss, STEP_LOGITS, weight=0.0, target=1.0) is loss


def _softmax(logits):
  powers = np.exp(logits - logits.max(-1, keepdims=True))
  return powers / powers.sum(-1, keepdims=True)


def test_distillation_is_the_divergence_of_each_step_from_the_mean_logits():
  got = losses.distilled(
    jnp.float32(2.0), STEP_LOGITS, weight=0.3, temperature=1.5
  )
  divergences = []
  for example in STEP_LOGITS:
    teacher = _softmax(example.mean(0) / 1.5)
    for logits in example:
      student = _softmax(logits / 1.5)
      divergences.append(sum(teacher * np.log(teacher / student)))
  expected = 0.7 * 2 + 0.3 * 1.5**2 * np.mean(divergences)
  np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_gradient_of_distillation_passes_through_the_steps_alone():
  # The derivative of KL(teacher || softmax(z)) is softmax(z) - teacher.
  got = jax.grad(
    lambda x: losses.distilled(0.0, x, weight=0.3, temperature=1.5)
  )(jnp.asarray(STEP_LOGITS, jnp.float32))
  teacher = _softmax(STEP_LOGITS.mean(1, keepdims=True) / 1.5)
  of_steps = (_softmax(STEP_LOGITS / 1.5) - teacher) / 1.5
  expected = 0.3 * 1.5**2 * of_steps / STEP_LOGITS[..., 0].size
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-8)


def test_distillation_with_weight_0_leaves_the_loss():
  loss = jnp.float32(2.0)
  got = losses.distilled(loss, STEP_LOGITS, weight=0.0, temperature=2.0)
  assert got is loss


def test_distillation_of_one_step_is_refused():
  with pytest.raises(InputError, match='several time steps, got T = 1, where'):
    losses.distilled(0.0, STEP_LOGITS[:, :1], weight=0.3, temperature=2.0)


@pytest.mark.parametrize('name', losses.LOSSES)
def test_all_losses_agree_at_one_step(name):
  one = STEP_LOGITS[:, :1]
  np.testing.assert_allclose(
    losses.get_loss(name)(one, LABELS),
    losses.cross_entropy(one[:, 0], LABELS),
    rtol=1e-6,
  )


def test_unknown_loss_lists_the_known_ones():
  with pytest.raises(InputError, match="unknown loss 'mse'.*cross_entropy, te"):
    losses.get_loss('mse')


def test_label_smoothing_spreads_its_share_over_all_classes():
  logits, labels = jnp.array([[2.0, 0.0]]), jnp.array([0])
  log = jax.nn.log_softmax(logits)[0]
  expected = -(0.95 * log[0] + 0.05 * log[1])
  smoothed = losses.cross_entropy(logits, labels, label_smoothing=0.1)
  np.testing.assert_allclose(smoothed, [expected], rtol=1e-6)


def test_rate_falls_from_its_peak_to_zero_as_a_cosine():
  rate = optim.learning_rate(SETTINGS, steps_per_epoch=10, num_epochs=4)
  for step, share in ((0, 1), (10, 0.5 + 0.5**1.5), (20, 0.5), (40, 0)):
    np.testing.assert_allclose(rate(step), 0.1 * share, atol=1e-7)


def test_warm_up_rises_linearly_to_the_peak():
  settings = SETTINGS | {'warmup_epochs': 0.5}
  rate = optim.learning_rate(settings, steps_per_epoch=10, num_epochs=4)
  np.testing.assert_allclose(
    [rate(step) for step in (0, 1, 5, 40)], [0, 0.02, 0.1, 0], atol=1e-7
  )


def test_rate_of_the_reference_moves_once_an_epoch():
  settings = SETTINGS | {'decay_every': 'epoch'}
  rate = optim.learning_rate(settings, steps_per_epoch=10, num_epochs=4)
  # PyTorch's CosineAnnealingLR(T_max=4), stepped after every epoch.
  expected = [0.05 * (1 + np.cos(np.pi * epoch / 4)) for epoch in range(4)]
  got = [float(rate(step)) for step in range(40)]
  np.testing.assert_allclose(got, np.repeat(expected, 10), rtol=1e-5)


def test_warm_up_rises_with_every_step_either_way():
  settings = SETTINGS | {'decay_every': 'epoch', 'warmup_epochs': 1.5}
  rate = optim.learning_rate(settings, steps_per_epoch=10, num_epochs=4)
  np.testing.assert_allclose(
    [rate(step) for step in (0, 3, 14)], [0, 0.02, 0.1 * 14 / 15], rtol=1e-5
  )
  assert rate(20) == rate(29) > rate(30)


def test_unknown_decay_lists_the_known_ones():
  settings = SETTINGS | {'decay_every': 'day'}
  with pytest.raises(InputError, match="decay_every 'day'.*epoch, step"):
    optim.learning_rate(settings, steps_per_epoch=10, num_epochs=4)


def test_other_schedules_fall_linearly_or_not_at_all():
  settings = SETTINGS | {'warmup_epochs': 1.0, 'schedule': 'linear'}
  rate = optim.learning_rate(settings, steps_per_epoch=10, num_epochs=5)
  expected = [0, 0.05, 0.1, 0.05, 0]
  got = [rate(step) for step in (0, 5, 10, 30, 50)]
  np.testing.assert_allclose(got, expected, atol=1e-7)
  by_epoch = settings | {'decay_every': 'epoch'}
  rate = optim.learning_rate(by_epoch, steps_per_epoch=10, num_epochs=5)
  np.testing.assert_allclose([rate(31), rate(39)], 0.05, rtol=1e-6)
  settings = SETTINGS | {'schedule': 'constant'}
  rate = optim.learning_rate(settings, steps_per_epoch=10, num_epochs=5)
  np.testing.assert_allclose([rate(0), rate(49)], 0.1)


def test_unknown_schedules_and_optimizers_list_the_known_ones():
  with pytest.raises(InputError, match="schedule 'step'.*constant, cosine"):
    optim.learning_rate(
      SETTINGS | {'schedule': 'step'}, steps_per_epoch=1, num_epochs=1
    )
  with pytest.raises(InputError, match=r"optimizer\.name 'adam'.*'adamw'"):
    optim.optimizer(SETTINGS | {'name': 'adam'})


def _directions(settings, gradients_of_steps):
  transform = optim.optimizer(SETTINGS | settings)
  state = transform.init(PARAMS)
  for gradients in gradients_of_steps:
    directions, state = transform.update(gradients, state, PARAMS)
  return directions


def test_only_kernels_decay():
  zeros = jax.tree.map(jnp.zeros_like, PARAMS)
  directions = _directions({}, [zeros])
  assert (directions['conv1']['kernel'] == 0.01).all()
  assert (directions['head']['kernel'] == 0.01).all()
  assert (directions['conv1']['bn']['scale'] == 0).all()
  assert (directions['head']['bias'] == 0).all()


def test_momentum_is_pytorchs():
  ones = jax.tree.map(jnp.ones_like, PARAMS)
  directions = _directions({'weight_decay': 0.0}, [ones, ones, ones])
  # v = 0.9 v + g: 1, 1.9, 2.71.
  np.testing.assert_allclose(directions['head']['bias'], 2.71, rtol=1e-6)


def test_clipping_bounds_the_global_norm_of_the_gradients():
  large = jax.tree.map(lambda p: 100 * jnp.ones_like(p), PARAMS)
  directions = _directions({'weight_decay': 0.0, 'gradient_clip': 2.0}, [large])
  np.testing.assert_allclose(optax.tree.norm(directions), 2.0, rtol=1e-6)


@pytest.mark.parametrize('nesterov', [False, True])
def test_updates_are_optaxs_sgd(nesterov):
  gradients = jax.tree.map(lambda p: 0.3 * jnp.ones_like(p), PARAMS)
  directions = _directions(
    {'weight_decay': 0.0, 'nesterov': nesterov}, [gradients, gradients]
  )
  sgd = optax.sgd(1.0, 0.9, nesterov=nesterov)
  state = sgd.init(PARAMS)
  for _ in range(2):
    updates, state = sgd.update(gradients, state)
  jax.tree.map(
    lambda d, u: np.testing.assert_allclose(-d, u, rtol=1e-6),
    directions,
    updates,
  )


# {name: optax's own, with the settings above}
OPTAXS = {
  'sgd': lambda decay, mask: optax.chain(
    optax.add_decayed_weights(decay, mask), optax.sgd(1.0, 0.9)
  ),
  'adamw': lambda decay, mask: optax.adamw(
    1.0, 0.9, 0.99, weight_decay=decay, mask=mask
  ),
  'lamb': lambda decay, mask: optax.lamb(
    1.0, 0.9, 0.99, weight_decay=decay, mask=mask
  ),
}


@pytest.mark.parametrize('name', optim.OPTIMIZERS)
def test_every_optimizer_is_optaxs_with_decay_on_kernels_only(name):
  rng = np.random.default_rng(0)
  steps = [
    jax.tree.map(lambda p: jnp.float32(rng.normal(size=p.shape)), PARAMS)
    for _ in range(3)
  ]
  directions = _directions({'name': name, 'weight_decay': 0.1}, steps)
  theirs = OPTAXS[name](0.1, optim.is_kernel)
  state = theirs.init(PARAMS)
  for gradients in steps:
    updates, state = theirs.update(gradients, state, PARAMS)
  jax.tree.map(
    lambda d, u: np.testing.assert_allclose(-d, u, rtol=1e-5, atol=1e-7),
    directions,
    updates,
  )
