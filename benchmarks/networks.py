"""Spiking ResNets of this library: a training step and forward passes.

The scripts import `measure` first, which puts the checkout on the path.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mpbn_jax import build_model, fold, fold_convolutions, memory, strip
from mpbn_jax.layers import ConvNorm, DenseNorm, Readout

# Of products of float32; on CPU all are the same.
_PRODUCTS = {
  'float32': 'highest',
  'split': 'BF16_BF16_F32_X6',
  'tf32': 'tensorfloat32',
  'bfloat16': None,
}


def model(
  *,
  network: str,
  precision: str,
  num_steps: int,
  width: int,
  norm: bool = True,
  **settings,
):
  """Returns a network, with MPBN or without.

  Sets JAX's precision, and keeps pages as the command line does.
  """
  memory.reuse_pages()
  jax.config.update('jax_default_matmul_precision', _PRODUCTS[precision])
  return build_model(
    {
      'name': network,
      'num_steps': num_steps,
      'width': width,
      'membrane_norm': 'mpbn_channel' if norm else 'none',
      'dtype': 'bfloat16' if precision == 'bfloat16' else 'float32',
      **settings,
    }
  )


def initial(network, images):
  """Returns the variables of a new network."""
  x = jnp.asarray(images[:2])
  return jax.jit(lambda key: network.init(key, x, train=False))(
    jax.random.key(0)
  )


def step_of(network):
  """Returns the function (variables, x, labels) -> variables, a step of SGD."""

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

  return step


def training(network, images, labels):
  """Returns a function that takes a step of SGD, see `measure.in_turns`.

  Its attribute `planned` returns the memory that XLA plans for a step, in MiB.
  To ask takes memory itself (38 MiB for a ResNet20): ask when the peak of the
  process is known.
  """
  x, y = jnp.asarray(images), jnp.asarray(labels)
  state = [initial(network, images)]
  jitted = jax.jit(
    step_of(network),
    donate_argnums=0,
    compiler_options=memory.compiler_options(),
  )
  compiled = memory.compile_ahead(
    jitted, state[0], x, y, least=bool(getattr(network, 'remat', False))
  )

  def run():
    state[0] = compiled(state[0], x, y)
    return functools.partial(jax.block_until_ready, state[0])

  def planned():
    plan = compiled.memory_analysis()
    size = plan.temp_size_in_bytes + plan.argument_size_in_bytes
    return (size + plan.output_size_in_bytes - plan.alias_size_in_bytes) / 2**20

  run.planned = planned
  return run


def forward(network, variables, images, *, constants=False):
  """Returns (a function that computes the logits, its cost analysis).

  With `constants`, the variables are part of the program, as in an exported
  one.
  """
  x = jnp.asarray(images)
  variables = jax.tree.map(np.asarray, variables) if constants else variables
  inputs = (x,) if constants else (x, variables)

  def logits(x, variables=variables):
    return network.apply(variables, x, train=False)

  compiled = jax.jit(logits).lower(*inputs).compile()

  def run():
    return functools.partial(jax.block_until_ready, compiled(*inputs))

  return run, compiled.cost_analysis()


def flops(network, images) -> float:
  """Returns the FLOPs of all products in a forward pass.

  Counted from shapes: XLA does not count those of cuDNN.
  """
  counted = []

  def count(call, arguments, options, context):
    y = call(*arguments, **options)
    layer = context.module
    if isinstance(layer, (ConvNorm, DenseNorm, Readout)):
      kernel = layer.get_variable('params', 'kernel')
      counted.append(2 * math.prod(kernel.shape[:-1]) * y.size)
    return y

  x = jax.ShapeDtypeStruct(images.shape, images.dtype)
  with nn.intercept_methods(count):
    jax.eval_shape(lambda x: network.init(jax.random.key(0), x, train=False), x)
  return sum(counted)


def device_peak() -> float | None:
  """Returns the largest memory of the GPU in use so far, in MiB."""
  stats = jax.devices()[0].memory_stats()  # None on CPU
  return stats and stats['peak_bytes_in_use'] / 2**20


def folds(variables) -> dict:
  """Returns {name: variables} of MPBN, its fold, and the fold of all norms."""
  folded = fold(variables)
  return {
    'MPBN': variables,
    'folded': strip(folded),
    'folded with convolutions': strip(fold_convolutions(folded)),
  }


def floor(flops: float, *, precision: str):
  """Returns (a function of one square matmul, its FLOPs, about as many)."""
  # A multiple of what the matrix units of GPUs compute in one piece.
  side = 128 * max(1, round((flops / 2) ** (1 / 3) / 128))
  dtype = jnp.bfloat16 if precision == 'bfloat16' else jnp.float32
  # Zeros or ones would be faster on a GPU: they take less power.
  a = jax.random.normal(jax.random.key(0), (side, side), dtype)
  product = jax.jit(jnp.matmul)

  def run():
    return functools.partial(jax.block_until_ready, product(a, a))

  return run, 2 * side**3
