"""Which layers read whose spikes? Derived from a network by tracing it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from mpbn_jax import norm as norms
from mpbn_jax.axes import Axis, moved
from mpbn_jax.errors import InputError
from mpbn_jax.layers import LIF, ConvNorm, Identity, Readout, SpikeNorm

_READERS = (ConvNorm, Identity, Readout)
_SOURCE, _READER, _END = 'spikes:', 'reads:', 'end:'


class Flow(NamedTuple):
  """What a factor of each channel (and step) of some spikes has reached.

  Attributes:
    source: path of the norm of these spikes.
    axes: along which the factor differs: channels, steps.
    lost: where it stopped being such a factor, with no axes then; '' where it
      still is one.
  """

  source: str
  axes: tuple[Axis, ...]
  lost: str = ''


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
      entry = norms.NORMS.get(module.norm)
      has_steps = entry is not None and entry.per_step
      by = 'channel+step' if has_steps else 'channel'
      return checkpoint_name(function(*args, **kwargs), f'{_SOURCE}{by}:{path}')
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
  for reader, flows in read.items():
    sources = sorted({flow.source for flow in flows})
    lost = sorted({flow.lost for flow in flows} - {''})
    if len(flows) > 1 or lost:
      after = f' after {", ".join(lost)}' * bool(lost)
      raise InputError(
        f'expected {reader!r} to read the spikes of one layer, channel by '
        f'channel, got {", ".join(sources)}{after}: '
        f'{"their norms" if len(sources) > 1 else "its norm"} cannot be folded '
        'into it'
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


def _through(equation, flows, read):
  """Returns what reaches each output of one equation."""
  together = frozenset().union(*flows)
  if equation.primitive.name == 'name':
    shape = equation.outvars[0].aval.shape
    return [_at_mark(equation.params['name'], shape, together, read)]
  inner = _inner(equation)
  if inner is not None:
    if equation.primitive.name == 'scan':
      return _through_scan(equation, inner, flows, read)
    return _follow(inner, flows, read)
  reached = frozenset(_moved(flow, equation, flows) for flow in together)
  return [reached] * len(equation.outvars)


def _at_mark(mark, shape, flows, read):
  """Returns what goes on from the input or output of a layer."""
  if mark.startswith(_SOURCE):
    by, source = mark.removeprefix(_SOURCE).split(':', 1)
    axes = [_at_home(name, shape) for name in by.split('+')]
    # One channel, or one step: the same factor everywhere.
    return frozenset([Flow(source, tuple(a for a in axes if a.size > 1))])
  if mark.startswith(_READER):
    reader = mark.removeprefix(_READER)
    flows = frozenset(_in_place(flow, shape) for flow in flows)
    read[reader] = read.get(reader, frozenset()) | flows
  return frozenset() if mark.startswith(_END) else flows


def _at_home(name, shape):
  """Returns where layers have their steps and channels, [B, T, ..., C]."""
  position = {'channel': len(shape) - 1, 'step': 1}[name]
  return Axis(name, position, shape[position])


def _in_place(flow, shape):
  for axis in flow.axes:
    if axis != _at_home(axis.name, shape):
      return Flow(flow.source, (), f'moving the {axis.name} axis')
  return flow


def _moved(flow, equation, flows):
  """Returns a flow after an operation that is not a program of its own."""
  if flow.lost:
    return flow
  operation = equation.primitive.name
  linear = {'mul': not all(flows), 'div': not flows[-1]}.get(operation, True)
  axes = moved(flow.axes, equation)
  if not linear or axes is None:
    return Flow(flow.source, (), f'the operation {operation!r}')
  return flow._replace(axes=axes)


def _through_scan(equation, inner, flows, read):
  """Returns what reaches the last carry and the stacked outputs of a scan."""
  # Constants and carries are inside what they are outside, all else is one
  # step there. How a scan says which are which differs between JAX's versions.
  carried = _alike(equation.invars, inner.invars)
  count = _alike(equation.outvars, inner.outvars)
  first = carried - count
  flows = [*flows[:carried], *(_shifted(f, -1) for f in flows[carried:])]
  results = _follow(inner, flows, read)
  # What leaves a step in the carry enters the next one.
  for i in range(count):
    flows[first + i] = flows[first + i] | results[i]
  results = _follow(inner, flows, read)
  return [*results[:count], *(_shifted(f, 1) for f in results[count:])]


def _alike(outside, inside):
  """Returns how many variables have one shape outside and inside of a scan."""
  pairs = zip(outside, inside, strict=True)
  return sum(a.aval.shape == b.aval.shape for a, b in pairs)


def _shifted(flows, by):
  """Returns flows into or out of the steps of a scan, along the first axis."""

  def shifted(flow):
    axes = tuple(a._replace(position=a.position + by) for a in flow.axes)
    if any(axis.position < 0 for axis in axes):
      return Flow(flow.source, (), 'a scan')
    return flow._replace(axes=axes)

  return frozenset(shifted(flow) for flow in flows)


def _inner(equation) -> Jaxpr | None:
  """Returns the program in an equation that takes the equation's inputs."""
  for value in equation.params.values():
    jaxpr = value.jaxpr if isinstance(value, ClosedJaxpr) else value
    if isinstance(jaxpr, Jaxpr) and len(jaxpr.invars) == len(equation.invars):
      return jaxpr
  return None
