"""The convolution and its gradients as sums of products of TF32."""

from functools import partial

from jax import lax

from mpbn_jax.ops import convolution_plain, split


def forward(x, kernel, strides, padding):
  """Returns the convolution, by two or three of TF32."""
  multiply = partial(
    _tf32(convolution_plain.forward), strides=strides, padding=padding
  )
  return split.product(multiply, x, kernel, spikes=True)


def input_gradient(cotangent, x, kernel, strides, padding):
  """Returns the gradient of x, by three of TF32."""

  def multiply(cotangent, kernel):
    gradient = _tf32(convolution_plain.input_gradient)
    return gradient(cotangent, x, kernel, strides, padding)

  return split.product(multiply, cotangent, kernel)


def kernel_gradient(cotangent, x, kernel, strides, padding):
  """Returns the gradient of the kernel, by two or three of TF32."""

  def multiply(x, cotangent):
    gradient = _tf32(convolution_plain.kernel_gradient)
    return gradient(cotangent, x, kernel, strides, padding)

  return split.product(multiply, x, cotangent, spikes=True)


def _tf32(product):
  return partial(product, precision=lax.Precision.HIGH)
