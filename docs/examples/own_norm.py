"""A normalization of your own, after convolutions: the root mean square.

    y = scale * x / sqrt(E[x^2] + eps)

python main.py --config=docs/examples/own_norm.py
"""

import jax
import jax.numpy as jnp

from mpbn_jax import NORMS
from mpbn_jax.configs import digits
from mpbn_jax.norm import NormAfterConvolution


def init(shape, *, eps, alpha_v_th, num_steps):
  """Returns (params, stats), float32; constants count among the statistics."""
  del alpha_v_th, num_steps
  ones = jnp.ones(shape[-1:], jnp.float32)
  return {'scale': ones}, {'moment': ones, 'eps': jnp.float32(eps)}


def _gain(params, moment, stats):
  return params['scale'] * jax.lax.rsqrt(moment + stats['eps'])


def train(params, stats, x, *, momentum, copies=1):
  """Returns (y, moved statistics) of currents x [B, T, ..., C]."""
  del copies  # a moment of equal steps is that of one of them
  moment = jnp.mean(jnp.square(x.astype(jnp.float32)), range(x.ndim - 1))
  moved = (1 - momentum) * stats['moment'] + momentum * moment
  y = x * _gain(params, moment, stats)
  stats = {**stats, 'moment': jax.lax.stop_gradient(moved)}
  return y.astype(x.dtype), stats


def evaluate(params, stats, x):
  """Returns y by the running moment."""
  return (x * _gain(params, stats['moment'], stats)).astype(x.dtype)


def fold(params, stats, kernel, bias):
  """Returns the kernel and the bias that the norm makes of these."""
  gain = _gain(params, stats['moment'], stats)
  bias = jnp.zeros_like(gain) if bias is None else bias
  return {'kernel': kernel * gain, 'bias': bias * gain}


NORMS['rms'] = NormAfterConvolution(
  init=init, train=train, evaluate=evaluate, fold=fold
)


def get_config():
  config = digits.get_config()
  config.model.conv_norm = 'rms'
  config.evaluation.fold = 'all'
  return config
