"""Signals: what flows between the layers of a network, without its numbers.

`graph.network_graph` runs a network on a signal in place of an array of frames.
Every layer and function that understands signals records itself and returns
another signal; anything else rejects them. The network itself thus says what
its graph is.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from mpbn_jax.errors import InputError
from mpbn_jax.layers.opaque import Opaque

# Kinds of nodes that are no layers.
AVERAGE_POOL = 'average_pool'
MEAN_OVER_SPACE = 'mean_over_space'
ADD = 'add'
MEAN_OVER_TIME = 'mean_over_time'

# (kind, inputs=, shape=, layer=, settings=, arrays=) -> name of the node
Record = Callable[..., str]


class Signal(Opaque):
  """A signal [1, T, ..., C], opaque except for shape, ndim and dtype.

  `ConvNorm`, `DenseNorm`, `LIF`, `Identity` and `Readout` read signals under
  the interceptor of `graph.network_graph`; `average_pool`, `mean_over_space`
  and `over_time` take them; two of the same shape may be added. The last one is
  averaged over time, `.mean(1)`.

  Attributes:
    name: name of the node that returns it.
    shape: [1, T, ..., C]; [T, ..., C] inside `over_time`; [1, K] averaged over
      time.
    ndim: its rank.
    dtype: float32.
  """

  __slots__ = ('_form', '_record', 'name', 'shape')

  def __init__(
    self,
    name: str,
    *,
    shape: tuple[int, ...],
    record: Record,
    form: str = 'steps',
  ):
    """Only `network_graph` and signals create instances.

    Args:
      name: see the class.
      shape: see the class.
      record: stores a node.
      form: 'steps', 'merged' (inside `over_time`) or 'averaged' (over time).
    """
    self.name, self.shape = name, shape
    self._record, self._form = record, form

  @property
  def ndim(self) -> int:
    return len(self.shape)

  @property
  def dtype(self) -> Any:
    return jnp.dtype('float32')

  def then(
    self,
    kind: str,
    *,
    shape: tuple[int, ...],
    others: 'tuple[Signal, ...]' = (),
    layer: str = '',
    settings: Mapping[str, Any] | None = None,
    arrays: Mapping[str, np.ndarray] | None = None,
  ) -> 'Signal':
    """Records a node that reads this signal, and returns the node's signal.

    Args:
      kind: kind of the node.
      shape: shape of its output at one step, [..., C].
      others: further signals that it reads.
      layer: path of the layer; '' for a function.
      settings: settings of the layer.
      arrays: weights of the layer.
    """
    if self._form == 'averaged':
      self._refuse()
    name = self._record(
      kind,
      inputs=(self.name, *(other.name for other in others)),
      shape=tuple(shape),
      layer=layer,
      settings=settings or {},
      arrays=arrays or {},
    )
    lead = self.shape[: 1 if self._form == 'merged' else 2]
    return self._like(name, (*lead, *shape), self._form)

  def merged(self) -> 'Signal':
    """Returns the signal with its steps on the first axis."""
    self.check_steps('over_time')
    return self._like(self.name, self.shape[1:], 'merged')

  def split(self) -> 'Signal':
    """Returns the signal that `merged` merged."""
    self.check_merged('the result of a function')
    return self._like(self.name, (1, *self.shape), 'steps')

  def check_merged(self, function: str) -> None:
    """Raises InputError outside `over_time`."""
    if self._form != 'merged':
      raise InputError(
        f'expected {function} inside over_time, got the {self._what()} outside '
        'of it: over_time(lambda x: average_pool(x, window=2), x), for example'
      )

  def check_steps(self, function: str) -> None:
    """Raises InputError inside `over_time` or after the mean over time."""
    if self._form != 'steps':
      raise InputError(
        f'expected {function} to read [B, T, ..., C], got the {self._what()} '
        f'of shape {list(self.shape)}, {self._form}: call it outside over_time '
        'and before the mean over time'
      )

  def astype(self, dtype: Any) -> 'Signal':
    """Returns the signal; only float32 is understood."""
    if jnp.dtype(dtype) != self.dtype:
      raise InputError(
        f'expected a float32 network, got one that rounds to {dtype}: its '
        "graph is that of the network with dtype='float32', so build that one"
      )
    return self

  def mean(self, axis: Any = None) -> 'Signal':
    """Returns the mean over time of [1, T, K], and rejects any other mean."""
    if axis != 1 or self._form != 'steps' or self.ndim != 3:
      self._refuse()
    y = self.then(MEAN_OVER_TIME, shape=self.shape[2:])
    return self._like(y.name, (1, *self.shape[2:]), 'averaged')

  def __add__(self, other: Any) -> 'Signal':
    if not isinstance(other, Signal):
      if isinstance(other, Opaque):
        other._refuse()
      self._refuse()
    if (self.shape, self._form) != (other.shape, other._form):
      raise InputError(
        f'expected signals of one shape to add, got the {self._what()}, '
        f'{list(self.shape)}, and that of {other.name!r}, {list(other.shape)}: '
        'a graph has no broadcasting'
      )
    lead = 1 if self._form == 'merged' else 2
    return self.then(ADD, shape=self.shape[lead:], others=(other,))

  def __repr__(self) -> str:
    # Where JAX does not look for `__jax_array__`, it shows only this text.
    shape = ', '.join(map(str, self.shape))
    return f'<signal of {self.name!r}, float32[{shape}], without numbers>'

  def _like(self, name, shape, form):
    return Signal(name, shape=shape, record=self._record, form=form)

  def _what(self) -> str:
    return f'signal of {self.name!r}'

  def _instead(self) -> str:
    return (
      'which ConvNorm, DenseNorm, LIF, Identity, Readout, average_pool, '
      'mean_over_space, over_time, a sum of two and a last .mean(1) '
      'understand: a network with any other operation has no graph'
    )
