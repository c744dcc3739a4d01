"""Spiking ResNet20 of this library: a training step and forward passes.

The scripts import `measure` first, which puts the checkout on the path.
"""

import jax
import jax.numpy as jnp
import numpy as np

from mpbn_jax import build_model, fold, fold_convolutions, strip

SIDE = 32


def data(batch: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns random (images [B, 32, 32, 3], labels)."""
  rng = np.random.default_rng(0)
  images = rng.normal(size=(batch, SIDE, SIDE, 3)).astype(np.float32)
  return images, rng.integers(0, 10, batch)


def model(*, num_steps: int, width: int, norm: bool = True, **settings):
  """Returns ResNet20, with MPBN or without."""
  return build_model(
    {
      'name': 'resnet20',
      'num_steps': num_steps,
      'width': width,
      'membrane_norm': 'mpbn_channel' if norm else 'none',
      **settings,
    }
  )


def initial(network, images):
  """Returns the variables of a new network."""
  x = jnp.asarray(images[:2])
  return jax.jit(lambda key: network.init(key, x, train=False))(
    jax.random.key(0)
  )


def training(network, images, labels):
  """Returns a function that takes a step of SGD and waits for it."""
  x, y = jnp.asarray(images), jnp.asarray(labels)
  state = [initial(network, images)]

  def step(variables, x, y):
    def loss_of(params):
      logits, updates = network.apply(
        {**variables, 'params': params}, x, train=True, mutable=['batch_stats']
      )
      log = jax.nn.log_softmax(logits)
      return -jnp.take_along_axis(log, y[:, None], 1).mean(), updates

    gradients, updates = jax.grad(loss_of, has_aux=True)(variables['params'])
    params = jax.tree.map(
      lambda p, g: p - 0.01 * g, variables['params'], gradients
    )
    return {'params': params, **updates}

  compiled = jax.jit(step, donate_argnums=0).lower(state[0], x, y).compile()

  def run():
    state[0] = jax.block_until_ready(compiled(state[0], x, y))

  return run


def forward(network, variables, images):
  """Returns (a function that waits for the logits, its cost analysis)."""
  x = jnp.asarray(images)
  compiled = (
    jax.jit(lambda variables, x: network.apply(variables, x, train=False))
    .lower(variables, x)
    .compile()
  )
  cost = compiled.cost_analysis()
  return lambda: jax.block_until_ready(compiled(variables, x)), cost


def folds(variables) -> dict:
  """Returns {name: variables} of MPBN, its fold, and the fold of all norms."""
  folded = fold(variables)
  return {
    'MPBN': variables,
    'folded': strip(folded),
    'folded with convolutions': strip(fold_convolutions(folded)),
  }


def floor(flops: float):
  """Returns a function that computes one square matmul of so many FLOPs."""
  side = round((flops / 2) ** (1 / 3))
  a = jnp.ones((side, side))
  product = jax.jit(jnp.matmul)
  return lambda: jax.block_until_ready(product(a, a))
