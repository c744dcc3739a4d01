"""The convolution and its gradients as XLA's own operations.

Tests compare the other lowerings with them.
"""

from functools import partial

import jax
from jax import lax


def forward(x, kernel, strides, padding, precision=None, groups=1):
  """Returns the convolution as XLA's own operation."""
  return lax.conv_general_dilated(
    x,
    kernel,
    strides,
    padding,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=groups,
    precision=precision,
  )


def input_gradient(cotangent, x, kernel, strides, padding, precision=None):
  """Returns the gradient of x that JAX derives from `forward`."""
  static = {'strides': strides, 'padding': padding, 'precision': precision}
  product = partial(forward, kernel=kernel, **static)
  return jax.linear_transpose(product, x)(cotangent)[0]


def kernel_gradient(cotangent, x, kernel, strides, padding, precision=None):
  """Returns the gradient of the kernel that JAX derives from `forward`."""
  static = {'strides': strides, 'padding': padding, 'precision': precision}
  product = partial(forward, x, **static)
  return jax.linear_transpose(product, kernel)(cotangent)[0]
