"""A surrogate gradient of your own: a Gaussian window.

python main.py --config=docs/examples/own_surrogate.py
"""

import jax.numpy as jnp
from jax.scipy.stats import norm

from mpbn_jax import SURROGATES
from mpbn_jax.configs import digits
from mpbn_jax.surrogate import Surrogate

SURROGATES['gaussian'] = Surrogate(
  # Of x = n - v_th: the derivative that the backward pass uses, and a function
  # that has it.
  derivative=lambda x, width: norm.pdf(x, scale=width).astype(jnp.float32),
  primitive=lambda x, width: norm.cdf(x, scale=width),
  parameter=0.5,
  meaning='width',
)


def get_config():
  config = digits.get_config()
  config.model.surrogate = 'gaussian'
  return config
