"""Which layers read whose spikes? Derived from a network by tracing it."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from mpbn_jax.errors import InputError
from mpbn_jax.layers import LIF, ConvNorm, Identity, Readout, SpikeNorm

_READERS = (ConvNorm, Identity, Readout)
# What hands channels on as they are, or means of them: a factor of a channel
# passes through.
_LINEAR = {
  *('broadcast_in_dim', 'convert_element_type', 'copy', 'pad', 'reduce_sum'),
  *('reduce_window_sum', 'reshape', 'sharding_constraint', 'slice'),
  *('squeeze', 'transpose'),
}
_SOURCE, _READER, _END = 'spikes:', 'reads:', 'end:'


def readers_of_spikes(
  model: nn.Module, variables: Mapping, x: Any
) -> dict[str, tuple[str, ...]]:
  """Returns {path of a norm of spikes: paths of the layers that read it}.

  The network is traced once, with every layer's input and output marked, and
  the marks are followed through the operations between layers. Nothing is
  computed, and nothing is written down a second time.

  Args:
    model: the network.
    variables: its variables, or their shapes.
    x: an input, or its shape (`jax.ShapeDtypeStruct`).

  Returns:
    Paths are 'stage1_block1_conv1', or 'stage2_blocks/conv1' in a block.

  Raises:
    InputError: a layer reads a sum of several norms of spikes, or something
      stands between that does not hand a channel's factor on: there a norm of
      the spikes cannot be folded.

  Example:
    >>> import functools
    >>> from mpbn_jax import build_model
    >>> model = build_model({'name': 'spiking_cnn', 'spike_norm': 'psp_bn'})
    >>> x = jax.ShapeDtypeStruct((1, 8, 8, 1), 'float32')
    >>> init = functools.partial(model.init, train=False)
    >>> variables = jax.eval_shape(init, jax.random.key(0), x)
    >>> readers_of_spikes(model, variables, x)['lif4_spikes']
    ('head',)
  """

  def mark(function, args, kwargs, context):
    module = context.module
    if context.method_name != '__call__':
      return function(*args, **kwargs)
    path = '/'.join(module.path)
    if isinstance(module, SpikeNorm):
      return checkpoint_name(function(*args, **kwargs), _SOURCE + path)
    if isinstance(module, _READERS):
      x, *others = args
      y = function(checkpoint_name(x, _READER + path), *others, **kwargs)
      return checkpoint_name(y, _END + path)
    if isinstance(module, LIF):
      return checkpoint_name(function(*args, **kwargs), _END + path)
    return function(*args, **kwargs)

  with nn.intercept_methods(mark):
    traced = jax.make_jaxpr(
      lambda variables, x: model.apply(variables, x, train=False)
    )(variables, x)
  read: dict[str, frozenset[str]] = {}
  _follow(traced.jaxpr, [frozenset()] * len(traced.jaxpr.invars), read)

  readers: dict[str, tuple[str, ...]] = {}
  for reader, sources in read.items():
    if len(sources) > 1:
      raise InputError(
        f'expected {reader!r} to read the spikes of one layer, got '
        f'{", ".join(sorted(sources))}: their norms cannot be folded into it'
      )
    for source in sources:
      readers[source] = (*readers.get(source, ()), reader)
  return readers


def _follow(
  jaxpr: Jaxpr, inputs: Sequence[frozenset], read: dict
) -> list[frozenset]:
  """Returns what reaches each output, given what reaches each input.

  Fills `read` with what reaches every reader.
  """
  reaches = dict(zip(jaxpr.invars, inputs, strict=True))

  def of(variable):
    if isinstance(variable, Literal):
      return frozenset()
    return reaches.get(variable, frozenset())

  for equation in jaxpr.eqns:
    sources = [of(variable) for variable in equation.invars]
    results = _through(equation, sources, read)
    reaches.update(zip(equation.outvars, results, strict=True))
  return [of(variable) for variable in jaxpr.outvars]


def _through(equation, sources, read):
  """Returns what reaches each output of one equation."""
  together = frozenset().union(*sources)
  if equation.primitive.name == 'name':
    mark = equation.params['name']
    if mark.startswith(_SOURCE):
      return [frozenset([mark.removeprefix(_SOURCE)])]
    if mark.startswith(_READER):
      reader = mark.removeprefix(_READER)
      read[reader] = read.get(reader, frozenset()) | together
    if mark.startswith(_END):
      return [frozenset()]
    return [together]

  inner = _inner(equation)
  if inner is not None:
    results = _follow(inner, sources, read)
    if equation.primitive.name == 'scan':
      # What leaves a step in the carry enters the next one.
      first, count = equation.params['num_consts'], equation.params['num_carry']
      for i in range(count):
        sources[first + i] = sources[first + i] | results[i]
      results = _follow(inner, sources, read)
    return results
  if together and not _is_linear(equation.primitive.name, sources):
    together |= {f'the operation {equation.primitive.name!r}'}
  return [together] * len(equation.outvars)


def _is_linear(operation, sources):
  """Returns whether a factor of a channel passes through an operation."""
  if operation == 'mul':
    return not all(sources)
  if operation == 'div':
    return not sources[1]
  return operation in _LINEAR


def _inner(equation) -> Jaxpr | None:
  """Returns the program in an equation that takes the equation's inputs."""
  for value in equation.params.values():
    jaxpr = value.jaxpr if isinstance(value, ClosedJaxpr) else value
    if isinstance(jaxpr, Jaxpr) and len(jaxpr.invars) == len(equation.invars):
      return jaxpr
  return None
