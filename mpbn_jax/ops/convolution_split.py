"""The convolution and its gradients on tensor cores, with products of 24 bits.

Operands are sums of three numbers of bfloat16. Spikes are one, as are averages
of 2**k spikes. What the kernels do not compute (strided gradients of maps,
channels that are no multiple of 16) XLA does, without tensor cores.
"""

import jax.numpy as jnp
from jax import lax

from mpbn_jax.ops import convolution_kernels as kernels
from mpbn_jax.ops import convolution_plain, split

_PRECISION = lax.Precision.HIGHEST


def forward(x, kernel, strides, padding):
  """Returns the convolution, by three products of bfloat16, or six."""
  if not kernels.supported(x.shape, kernel.shape, padding):
    return convolution_plain.forward(x, kernel, strides, padding, _PRECISION)
  parts = split.parts(kernel)

  def of(*xs):
    return kernels.forward(xs, parts, strides, padding)

  return _where_exact(of, x)


def input_gradient(cotangent, x, kernel, strides, padding):
  """Returns the gradient of x, by six products of bfloat16."""
  if not kernels.supported(x.shape, kernel.shape, padding) or max(strides) > 1:
    gradient = convolution_plain.input_gradient
    return gradient(cotangent, x, kernel, strides, padding, _PRECISION)
  return kernels.input_gradient(
    split.parts(cotangent), split.parts(kernel), padding
  )


def kernel_gradient(cotangent, x, kernel, strides, padding):
  """Returns the gradient of the kernel, by three products or six."""
  if not kernels.supported(x.shape, kernel.shape, padding):
    gradient = convolution_plain.kernel_gradient
    return gradient(cotangent, x, kernel, strides, padding, _PRECISION)
  # XLA computes these and those of the gradient of x once.
  parts = split.parts(cotangent)

  def of(*xs):
    return kernels.kernel_gradient(xs, parts, kernel.shape, strides, padding)

  return _where_exact(of, x)


def _where_exact(function, x):
  """Calls a function of one part of x where that is all, or of three.

  Which it is is looked up whenever the program runs.
  """
  rounded = split.parts(x)[0]
  exact = jnp.all((rounded == x) & jnp.isfinite(x))

  def of_numbers(x, _):
    return function(*split.parts(x))

  def of_spikes(_, rounded):
    return function(rounded)

  return lax.cond(exact, of_spikes, of_numbers, x, rounded)
