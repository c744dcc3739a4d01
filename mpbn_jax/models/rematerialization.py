"""Parts of a network whose activations the backward pass computes again."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import lift

from mpbn_jax.layers import Spikes
from mpbn_jax.layers.spikes import closed, opened
from mpbn_jax.ops import kept
from mpbn_jax.ops.order import after

Part = Callable[[nn.Module, Any], Any]


def rematerialized(
  function: Part, module: nn.Module, *, policy: Callable
) -> Callable[[Any], Any]:
  """Returns x -> function(module, x) that stores what a policy says.

  The backward pass recomputes the rest (`jax.checkpoint`). Only useful in
  training: evaluation stores none anyway.

  Args:
    function: (module, x) -> y, which applies the layers of a block; x and y are
      arrays or `Spikes`.
    module: the network.
    policy: says what is stored, as in `jax.checkpoint`.
  """
  return _opened(lambda run: nn.remat(run, policy=policy), function, module)


def in_order(
  function: Part, module: nn.Module, *, spikes: bool
) -> Callable[[Any], Any]:
  """Returns x -> function(module, x), recomputed when its gradient is due.

  Only x is stored. The backward pass computes the rest again when it has the
  gradient of the result. (With `jax.checkpoint`, XLA's CPU backend merges the
  second computation with the first, or recomputes all parts at once, see
  `ops.order`.) The gradient of x waits for those of the kernels: XLA would
  postpone them, and keep all that they read until then.

  Args:
    function: as in `rematerialized`.
    module: the network.
    spikes: whether x, if it is an array, holds nothing but 0 and 1: it is then
      stored as bits. This is not checked.
  """

  def transform(run):
    def lifted(fn, scope, *arrays):
      def inner(scope_of, repack, variables, rngs, *arrays):
        def again(variables, rngs, *arrays):
          scope = scope_of(variables, rngs)
          return fn(scope, *arrays), repack(scope)

        part = _recomputed(again, spikes=spikes and len(arrays) == 1)
        return part(variables, rngs, *arrays)

      return lift.pack(inner, (True,), (True,), (True,), name='remat')(
        scope, *arrays
      )

    def call(module, *arrays):
      return nn.transforms.lift_direct_transform(
        lifted, (run,), module, *arrays, multi_scope=False
      )

    return call

  return _opened(transform, function, module)


def _opened(transform, function, module):
  """Returns x -> function(module, x), with a function of arrays transformed."""

  def call(x: jax.Array | Spikes) -> jax.Array | Spikes:
    arrays, form = opened(x)
    forms = []

    def run(module, *arrays):
      arrays, form_of_y = opened(function(module, closed(arrays, form)))
      forms.append(form_of_y)
      return arrays

    return closed(transform(run)(module, *arrays), forms[-1])

  return call


def _recomputed(function, *, spikes):
  """Returns the function (variables, rngs, *arrays), with its own backward."""

  def forward(variables, rngs, *arrays):
    stored = arrays
    if spikes:
      # Packed before y is computed. XLA would postpone it, and keep x.
      stored = [kept.pack(arrays[0])]
      arrays = [after(arrays[0], [stored[0][:1, :1]])]
    y = function(variables, rngs, *arrays)
    # An array without elements has the shape and the dtype to unpack to.
    form = jnp.zeros((0, *arrays[0].shape), arrays[0].dtype)
    return y, (variables, rngs, stored, form)

  def backward(residuals, cotangents):
    variables, rngs, stored, form = residuals
    here = [_few(y) for y in _floating(cotangents[0])]
    arrays = [after(x, here) for x in stored]
    if spikes:
      shape, dtype = form.shape[1:], form.dtype
      arrays = [kept.unpack(arrays[0], shape=shape, dtype=dtype)]
    _, pull = jax.vjp(function, variables, rngs, *arrays)
    of_variables, of_rngs, *of_arrays = pull(cotangents)
    kernels = [_few(y) for y in _floating(of_variables) if y.ndim == 4]
    of_arrays = [after(y, kernels) for y in of_arrays]
    return of_variables, of_rngs, *of_arrays

  part = jax.custom_vjp(function)
  part.defvjp(forward, backward)
  return part


def _floating(tree):
  leaves = jax.tree.leaves(tree)
  return [y for y in leaves if jnp.issubdtype(y.dtype, jnp.floating)]


def _few(x):
  """Returns a few elements of x, one of each part that is computed on its own.

  Parts are the taps of a kernel [kh, kw, C_in, C_out] and the time steps of
  activations [B, T, ..., C], which the program may join later.
  """
  if x.ndim == 4:
    return x[:, :, 0, 0]
  return x[0, :, *(0,) * (x.ndim - 2)] if x.ndim > 1 else x[:1]
