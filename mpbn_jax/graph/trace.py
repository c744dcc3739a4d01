"""The graph of a network, by running the network on signals."""

import inspect
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from mpbn_jax import norm as norms
from mpbn_jax.errors import InputError
from mpbn_jax.graph.nodes import Graph, Node, Shape
from mpbn_jax.layers import (
  LIF,
  ConvNorm,
  DenseNorm,
  Identity,
  Readout,
  SpikeNorm,
  Spikes,
  variables,
)
from mpbn_jax.layers.conv_norm import flattens, kernel_shape
from mpbn_jax.layers.currents import folded_factor, weights_of
from mpbn_jax.layers.readout import readout_weights, scale_of
from mpbn_jax.layers.signal import Signal
from mpbn_jax.layers.spikes import Fold, check_array


def network_graph(
  model: nn.Module, variables: Mapping, *, frame_shape: Shape
) -> Graph:
  """Returns the graph of a folded network in evaluation.

  Runs the network's own code on a `Signal` in place of frames [1, T, H, W, C]:
  every layer records itself. Whatever a network does besides is rejected, so a
  graph is complete or there is none. A network that scans over stacked blocks
  is replaced by the one that its method `unstacked(variables)` returns.

  Args:
    model: the network; it has `num_steps`, and returns the mean over time of
      the last linear layer (`SpikingNetwork`).
    variables: its variables without any open norm: `fold_all`, or variables of
      a network without norms.
    frame_shape: shape of a frame, [H, W, C].

  Returns:
    The graph. Nodes that the logits do not depend on are left out.

  Raises:
    InputError: a norm is not folded, or the network does something that a graph
      does not express; the message names it.

  Example:
    >>> from mpbn_jax import fold_all
    >>> graph = network_graph(model, fold_all(variables), frame_shape=(8, 8, 1))
    >>> [node.name for node in graph.of_kind('neurons')]
    ['lif1', 'lif2', 'lif3', 'lif4']
    >>> graph['lif3'].arrays['threshold'].shape
    (8,)
  """
  num_steps = getattr(model, 'num_steps', None)
  if num_steps is None:
    raise InputError(
      'expected a network with num_steps, such as a SpikingNetwork, got '
      f'{type(model).__name__}: give it this attribute'
    )
  variables = jax.device_get(dict(variables))
  if hasattr(model, 'unstacked'):
    model, variables = model.unstacked(variables)
  recorder = _Recorder()
  shape = tuple(map(int, frame_shape))
  name = recorder.record('input', inputs=(), shape=shape)
  signal = Signal(
    name, shape=(1, num_steps, *shape), record=recorder.record, form='steps'
  )
  y = _run(model, variables, signal)
  if not isinstance(y, Signal) or y._form != 'averaged':
    raise InputError(
      'expected a network that returns logits [B, K], the mean over time of '
      f'its last linear layer, got {y!r}: return that alone'
    )
  needed, nodes = {y.name}, []
  for node in reversed(recorder.nodes):
    if node.name in needed:
      nodes.append(node)
      needed.update(node.inputs)
  return Graph(nodes=tuple(reversed(nodes)), num_steps=num_steps)


def _run(model, variables, signal):
  try:
    with nn.intercept_methods(_intercept):
      return model.apply(variables, signal, train=False)
  except InputError:
    raise
  except Exception as error:
    reason = str(error).strip().split('\n')[0].split(' (http')[0]
    raise InputError(
      'expected a network of layers that a graph expresses, and its variables, '
      f'got one that cannot be run on signals: {type(error).__name__}: {reason}'
    ) from error


class _Recorder:
  """The nodes so far."""

  def __init__(self):
    self.nodes: list[Node] = []

  def record(
    self,
    kind: str,
    *,
    inputs: tuple[str, ...],
    shape: Shape,
    layer: str = '',
    settings: Mapping[str, Any] | None = None,
    arrays: Mapping[str, Any] | None = None,
  ) -> str:
    """Stores a node and returns its name."""
    taken = {node.name for node in self.nodes}
    same = sum(node.kind == kind for node in self.nodes)
    base = layer or (kind if kind == 'input' else f'{kind}{same + 1}')
    name, run = base, 1
    while name in taken:
      run += 1
      name = f'{base}({run})'
    node = Node(
      name=name,
      kind=kind,
      inputs=inputs,
      shape=tuple(map(int, shape)),
      settings=dict(settings or {}),
      arrays={
        key: np.asarray(value, np.float32)
        for key, value in (arrays or {}).items()
        if value is not None
      },
    )
    self.nodes.append(node)
    return name


# ---- layers


def _intercept(function, args, kwargs, context):
  """Records a layer that reads a signal, in place of running it."""
  module = context.module
  # A subclass may do anything: it runs, and rejects signals.
  record = _LAYERS.get(type(module))
  if record is None or context.method_name != '__call__':
    return function(*args, **kwargs)
  bound = inspect.signature(type(module).__call__).bind(module, *args, **kwargs)
  _, x, *_ = bound.arguments.values()
  if not isinstance(x, (Signal, Spikes)):
    raise InputError(
      f'expected {_name(module)!r} to read what another layer returns, got an '
      f'array, {x!r}: a graph holds layers alone'.replace('\n', ' ')
    )
  if bound.arguments.get('train', False):
    raise InputError(
      f'expected {_name(module)!r} in evaluation, got train=True: a graph is '
      'that of a network that is not trained'
    )
  if bound.arguments.get('copies', 1) != 1:
    raise InputError(
      f'expected {_name(module)!r} to read each step once, got copies='
      f'{bound.arguments["copies"]}: give it the frames of all steps'
    )
  (x._array if isinstance(x, Spikes) else x).check_steps(repr(_name(module)))
  return record(module, x)


def _name(module):
  return variables.path_of(module) or type(module).__name__


def _refuse_open(module, norm, fold):
  raise InputError(
    f'expected {_name(module)!r} without a norm, got {norm!r}, which is not '
    f'folded: {fold} (--config.evaluation.fold=all on the command line)'
  )


def _weighted(module, x, kind, *, kernel_shape, shape, groups=1, settings=None):
  """Records a ConvNorm or DenseNorm."""
  x, kernel, bias, folded = weights_of(
    module, x, shape=kernel_shape, groups=groups
  )
  if module.norm != norms.NONE and not folded:
    _refuse_open(module, module.norm, 'fold the variables with fold_all')
  steps = x.shape[1]
  if kernel.ndim > len(kernel_shape):
    variables.check_steps_equal(module, kernel.shape[0], steps)
  if len(shape) == 3 and kind == 'dense':  # at every pixel
    kernel = kernel[..., None, None, :, :]
    kind, settings = 'convolution', {'stride': 1, 'padding': 0, 'groups': 1}
  return x.then(
    kind,
    shape=shape,
    layer=_name(module),
    settings=settings,
    arrays={
      'kernel': kernel,
      'bias': bias,
      'factor': folded_factor(module, steps=steps) if folded else None,
    },
  )


def _convolution(module, x):
  size, stride, padding = module.kernel_size, module.stride, module.padding
  *_, height, width, channels = x.shape
  sides = [
    (side + 2 * padding - size) // stride + 1 for side in (height, width)
  ]
  return _weighted(
    module,
    x,
    'convolution',
    kernel_shape=kernel_shape(module, channels),
    shape=(*sides, module.features),
    groups=module.groups,
    settings={'stride': stride, 'padding': padding, 'groups': module.groups},
  )


def _dense(module, x):
  flat = flattens(module, x)
  fan_in = int(np.prod(x.shape[2:])) if flat else x.shape[-1]
  lead = () if flat else x.shape[2:-1]
  return _weighted(
    module,
    x,
    'dense',
    kernel_shape=(fan_in, module.features),
    shape=(*lead, module.features),
  )


def _readout(module, x):
  if x.ndim != 3:
    raise InputError(
      f'expected {_name(module)!r} to read [B, T, C], got {x!r}: apply '
      'mean_over_space to maps'
    )
  x, kernel, bias = readout_weights(module, x)
  arrays = {'kernel': kernel, 'bias': bias}
  shape = (module.features,)
  return x.then('dense', shape=shape, layer=_name(module), arrays=arrays)


def _identity(module, x):
  x, scale = scale_of(module, x)
  if scale is None:
    return x
  shape, arrays = x.shape[2:], {'scale': scale}
  return x.then('scale', shape=shape, layer=_name(module), arrays=arrays)


def _neurons(module, currents):
  check_array(currents)
  variables.check_input('currents', currents)
  shape = currents.shape[2:]
  tau, v_th = module._tau_and_v_th(shape[-1])
  if module.has_variable('threshold', 'threshold'):
    folded = variables.folded_neurons(module, shape)
    threshold, polarity = folded['threshold'], folded['polarity']
    v_th = v_th if module.learn_v_th else folded['v_th']
  elif module.norm == norms.NONE:
    threshold = np.broadcast_to(np.float32(v_th), shape[-1:])
    polarity = np.ones(shape[-1:], np.float32)
  else:
    _refuse_open(module, module.norm, 'fold the variables with fold_all')
  start = module._start()
  spikes = currents.then(
    'neurons',
    shape=shape,
    layer=_name(module),
    settings={'reset': module.reset},
    arrays={
      'threshold': threshold,
      'polarity': polarity,
      'tau': tau,
      'start': 0.0 if start is None else start.value,
      'v_th': v_th if module.reset == 'soft' else None,
    },
  )
  path = (*module.path, 'spike_norm')
  collection = module.get_variable('folded', 'spike_norm', {})
  return _normed(module, spikes, module.spike_norm, path, collection)


def _spike_norm(module, spikes):
  check_array(spikes)
  variables.check_input('spikes', spikes)
  collection = {'readers': module.get_variable('folded', 'readers', None)}
  collection = {key: v for key, v in collection.items() if v is not None}
  return _normed(module, spikes, module.norm, module.path, collection)


def _normed(module, spikes, norm, path, folded):
  """Returns spikes after the synaptic filter, with a norm that is folded."""
  if module.tau_s:
    spikes = spikes.then(
      'filter',
      shape=spikes.shape[2:],
      layer='/'.join(path),
      settings={'tau_s': float(module.tau_s)},
    )
  if norm == norms.NONE:
    return spikes
  if not norms.NORMS[norm].fold:
    raise InputError(
      f'expected {_name(module)!r} without a norm of its spikes that does not '
      f'fold, got {norm!r} ({norms.NORMS[norm].why_not}): train the network '
      'with another spike_norm'
    )
  if 'readers' not in folded:
    _refuse_open(
      module, norm, 'fold the variables with fold_all and readers_of_spikes'
    )
  return Spikes(spikes, path=path, fold=Fold.DONE)  # type: ignore[arg-type]


_LAYERS = {
  ConvNorm: _convolution,
  DenseNorm: _dense,
  LIF: _neurons,
  SpikeNorm: _spike_norm,
  Identity: _identity,
  Readout: _readout,
}
