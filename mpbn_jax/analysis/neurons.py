"""Thresholds of all neurons, and potentials and spikes of a few of them."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from mpbn_jax import programs
from mpbn_jax.analysis.blocks import in_order, labels_of, unstacked
from mpbn_jax.evaluation import recorded

NEURONS = 6
_BINS = 32
_LARGEST = np.finfo(np.float32).max


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Traces:
  """A few neurons of a layer while the network sees one example.

  A neuron fires if polarity * potential > polarity * threshold.

  Attributes:
    index: int [n, axes], which neurons: (row, column, channel), for example.
    potential: float32 [n, T], of membranes after charging; of norms that do not
      fold, after the norm.
    threshold: float32 [n]; infinite if a neuron always or never fires.
    polarity: float32 [n], 1 or -1.
    spikes: bool [n, T].
    v_th: the firing threshold of the layer; None if channels have their own.
  """

  index: np.ndarray
  potential: np.ndarray
  threshold: np.ndarray
  polarity: np.ndarray
  spikes: np.ndarray
  v_th: float | None

  def to_json(self) -> dict[str, Any]:
    """Returns JSON-serializable fields; infinities are None."""
    return {
      'neuron': self.index.tolist(),
      'potential': _finite(self.potential),
      'threshold': _finite(self.threshold),
      'polarity': self.polarity.astype(int).tolist(),
      'spikes': self.spikes.astype(int).tolist(),
      'v_th': self.v_th,
    }


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Thresholds:
  """The thresholds of a layer, one per channel or element.

  Attributes:
    edges: [n + 1] edges of bins from the smallest finite threshold to the
      largest; empty if there is none.
    counts: int [n].
    negative_polarity: how many neurons (or channels) fire below theirs.
    never_fire: how many have one that no finite potential exceeds.
    always_fire: how many have one that every finite potential exceeds.
  """

  edges: np.ndarray
  counts: np.ndarray
  negative_polarity: int
  never_fire: int
  always_fire: int

  @property
  def size(self) -> int:
    """The number of thresholds."""
    return int(self.counts.sum()) + self.never_fire + self.always_fire

  def to_json(self) -> dict[str, Any]:
    """Returns JSON-serializable fields."""
    fields = dataclasses.asdict(self)
    return {
      k: v.tolist() if isinstance(v, np.ndarray) else v
      for k, v in fields.items()
    }


def thresholds_of(threshold: np.ndarray, polarity: np.ndarray) -> Thresholds:
  """Returns the histogram of thresholds and the number of special ones.

  Args:
    threshold: any shape.
    polarity: the same shape, 1 or -1.

  Example:
    >>> found = thresholds_of(np.array([0.5, -np.inf]), np.array([1, -1]))
    >>> found.never_fire, found.negative_polarity, int(found.counts.sum())
    (1, 1, 1)
  """
  level = np.asarray(polarity * threshold, np.float64)
  ordinary = np.asarray(threshold, np.float64)[np.abs(level) < _LARGEST]
  counts, edges = np.zeros(0, int), np.zeros(0)
  if ordinary.size:
    counts, edges = np.histogram(ordinary, bins=_BINS)
  return Thresholds(
    edges=edges,
    counts=counts,
    negative_polarity=int((np.asarray(polarity) < 0).sum()),
    never_fire=int((level >= _LARGEST).sum()),
    always_fire=int((level <= -_LARGEST).sum()),
  )


@programs.shared
def _program(model):
  return jax.jit(functools.partial(recorded, model, potentials=True))


def neurons_of(
  model: nn.Module,
  variables: Mapping,
  x: jax.Array,
  *,
  neurons: int = NEURONS,
) -> dict[str, tuple[Traces, Thresholds]]:
  """Returns {layer: (traces of a few neurons, thresholds of all)}.

  The neurons are evenly spaced among those that fire at some steps only, and
  then among the others, so that calls with equal arguments return equal ones.

  Args:
    model: the network.
    variables: its variables, usually with folded thresholds. A neuron without a
      folded norm has the threshold v_th, which is compared with the potential
      after the norm.
    x: one example, [1, H, W, C] or [1, T, H, W, C].
    neurons: how many per layer; all if there are fewer.
  """
  _, layers = _program(model)(variables, x)
  found = {}
  labels = {name: labels_of(name, layer) for name, layer in layers.items()}
  for name, block in in_order(labels):
    # The one example of a block.
    of_block = {
      key: np.asarray(unstacked(layers[name], key)[block][0])
      for key in layers[name]
      if key not in ('stacked', 'currents')
    }
    found[labels[name][block]] = _of_block(of_block, neurons)
  return found


def _of_block(layer, count):
  u, spikes = layer.get('after', layer['before']), layer['spikes'] > 0
  threshold = layer.get('threshold', layer['v_th'])[0]  # of all steps
  polarity = layer['polarity'][0] if 'polarity' in layer else np.float32(1)
  times = spikes.sum(0).reshape(-1)
  changing = (times > 0) & (times < len(spikes))
  order = [np.flatnonzero(changing), np.flatnonzero(~changing)]
  chosen: list[int] = []
  for candidates in order:
    wanted = min(count - len(chosen), len(candidates))
    places = np.linspace(0, len(candidates) - 1, wanted).astype(int)
    chosen += candidates[places].tolist()
  chosen = sorted(chosen)

  def of_chosen(x):
    return np.broadcast_to(x, spikes.shape[1:]).reshape(-1)[chosen]

  traces = Traces(
    index=np.stack(np.unravel_index(chosen, spikes.shape[1:]), -1),
    potential=u.reshape((len(u), -1))[:, chosen].T,
    threshold=of_chosen(threshold),
    polarity=of_chosen(polarity),
    spikes=spikes.reshape((len(u), -1))[:, chosen].T,
    v_th=float(layer['v_th'].item()) if layer['v_th'].size == 1 else None,
  )
  polarity = np.broadcast_to(polarity, threshold.shape)
  return traces, thresholds_of(threshold, polarity)


def _finite(values):
  """Returns nested lists with None in place of what JSON does not have."""
  return np.where(np.isfinite(values), values, None).tolist()
