"""Torch twins of graphs, for tools that take PyTorch modules alone.

NeuroBench, for example, counts synaptic operations through hooks of `Conv2d`
and `Linear` and of activation modules: give it the class of `twin.neurons`.
"""

import functools
from typing import Any

import numpy as np

from mpbn_jax.errors import InputError
from mpbn_jax.graph import Graph, Node


def torch_twin(graph: Graph) -> Any:
  """Returns the network of a graph as a `torch.nn.Module`, in evaluation.

  `twin(frames)` returns logits [B, K] of frames [B, T, C, H, W], or of images
  [B, C, H, W] that are shown at every step. Every call starts anew. Modules
  have the names of their layers, with '_' in place of '/'; `twin.neurons` has
  those of neurons by their names in the graph, all of one class, whose buffers
  are `threshold`, `polarity` and `tau`.

  Args:
    graph: from `network_graph` or `quantize`.

  Raises:
    InputError: PyTorch is missing; the graph has kernels, factors or scales of
      each step, or a synaptic filter.
  """
  return _twin_class()(graph)


@functools.cache
def _twin_class() -> Any:
  """Returns the class of twins; PyTorch is imported only where it is needed."""
  try:
    import torch
  except ImportError as error:
    raise InputError(
      'expected PyTorch for a torch twin, got none: pip install torch'
    ) from error

  class Neurons(torch.nn.Module):
    """A layer of neurons with thresholds theta and polarities.

    One call is one step; `u` is kept between calls and None before the first.
    """

    def __init__(self, node: Node):
      super().__init__()
      for name in ('threshold', 'polarity', 'v_th'):
        array = node.arrays.get(name)
        if array is not None and array.ndim == len(node.shape) == 3:
          array = np.moveaxis(array, -1, 0)
        elif array is not None and array.ndim and len(node.shape) == 3:
          array = array[:, None, None]
        self.register_buffer(name, None if array is None else _tensor(array))
      self.register_buffer('tau', _tensor(node.arrays['tau']))
      self.register_buffer('start', _tensor(node.arrays['start']))
      self.u = None

    def forward(self, currents: torch.Tensor) -> torch.Tensor:
      """Returns spikes of currents [B, C, H, W] or [B, C]."""
      u = self.tau * (self.start if self.u is None else self.u) + currents
      spikes = (self.polarity * u > self.polarity * self.threshold).to(u.dtype)
      reset = u if self.v_th is None else self.v_th
      self.u = u - reset * spikes
      return spikes

  class Scale(torch.nn.Module):
    """A factor of each channel."""

    def __init__(self, node: Node):
      super().__init__()
      ends = (1,) * (len(node.shape) - 1)
      self.register_buffer(
        'scale', _tensor(node.arrays['scale']).view(-1, *ends)
      )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
      """Returns x [B, C, H, W] or [B, C], times the factors."""
      return self.scale * x

  class TorchTwin(torch.nn.Module):
    """The network of a graph in PyTorch, in evaluation."""

    def __init__(self, graph: Graph):
      super().__init__()
      self._graph = graph
      for node in graph.nodes:
        if node.kind in modules:
          _check_same_at_every_step(node)
          if _name(node) in self._modules:
            raise InputError(
              f'expected names of layers that differ in more than / and ., got '
              f'{node.name!r} beside {_name(node)!r}: rename one'
            )
          self.add_module(_name(node), modules[node.kind](node))
        elif node.kind == 'filter':
          raise InputError(
            f'expected {node.name!r} without a synaptic filter, got tau_s = '
            f'{node.settings["tau_s"]}: a torch twin has none'
          )

    @property
    def neurons(self) -> dict[str, Neurons]:
      """Returns {name of the graph: module} of the neuron layers."""
      nodes = self._graph.of_kind('neurons')
      return {node.name: getattr(self, _name(node)) for node in nodes}

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
      """Returns logits [B, K]; every call starts anew."""
      steps = self._graph.num_steps
      if frames.ndim == 4:
        frames = frames[:, None].expand(-1, steps, -1, -1, -1)
      channels_first = (steps, *_channels_first(self._graph.nodes[0].shape))
      if tuple(frames.shape[1:]) != channels_first:
        raise InputError(
          f'expected frames {["B", *channels_first]}, got '
          f'{list(frames.shape)}: channels come first'
        )
      for layer in self.neurons.values():
        layer.u = None
      return sum(self._step(frames[:, t]) for t in range(steps)) / steps

    def _step(self, frame):
      values = {self._graph.nodes[0].name: frame}
      for node in self._graph.nodes[1:]:
        x, *others = (values[name] for name in node.inputs)
        if node.kind == 'dense' and x.ndim == 4:  # rows of kernels are H, W, C
          x = x.permute(0, 2, 3, 1).flatten(1)
        if node.kind in modules:
          x = getattr(self, _name(node))(x)
        elif node.kind == 'add':
          x = x + others[0]
        elif node.kind == 'mean_over_space' and x.ndim == 4:
          x = x.mean((2, 3))
        values[node.name] = x
      return x

  modules = {
    'average_pool': _average_pool,
    'convolution': _convolution,
    'dense': _dense,
    'neurons': Neurons,
    'scale': Scale,
  }
  return TorchTwin


def _convolution(node):
  import torch

  kernel = np.transpose(node.arrays['kernel'], (3, 2, 0, 1))
  groups = node.settings['groups']
  layer = torch.nn.Conv2d(
    kernel.shape[1] * groups,
    kernel.shape[0],
    kernel.shape[2:],
    stride=node.settings['stride'],
    padding=node.settings['padding'],
    groups=groups,
    bias='bias' in node.arrays,
  )
  return _filled(layer, node, kernel)


def _dense(node):
  import torch

  kernel = node.arrays['kernel'].T
  layer = torch.nn.Linear(*kernel.shape[::-1], bias='bias' in node.arrays)
  return _filled(layer, node, kernel)


def _average_pool(node):
  import torch

  ceil = node.settings['ceil_mode']
  return torch.nn.AvgPool2d(
    node.settings['window'],
    node.settings['stride'],
    node.settings['padding'],
    ceil_mode=ceil,
    count_include_pad=not ceil,
  )


def _filled(layer, node, kernel):
  import torch

  layer.weight = torch.nn.Parameter(_tensor(kernel), requires_grad=False)
  if 'bias' in node.arrays:
    bias = _tensor(node.arrays['bias'])
    layer.bias = torch.nn.Parameter(bias, requires_grad=False)
  return layer


def _tensor(array):
  import torch

  return torch.from_numpy(np.array(array, order='C'))


def _name(node):
  return node.name.replace('/', '_').replace('.', '_')


def _channels_first(shape):
  return (shape[-1], *shape[:-1])


def _check_same_at_every_step(node):
  ranks = {'kernel': 4 if node.kind == 'convolution' else 2, 'factor': -1}
  for name in ('kernel', 'bias', 'scale', 'factor'):
    array = node.arrays.get(name)
    if array is not None and array.ndim > ranks.get(name, 1):
      raise InputError(
        f'expected {node.name!r} with the same {name} at every step, got one '
        'for each: a torch twin has layers without steps'
      )
