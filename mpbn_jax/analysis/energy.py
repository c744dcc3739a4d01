"""Synaptic operations and energy of a folded network."""

import dataclasses
from fractions import Fraction
from typing import Any

import numpy as np

from mpbn_jax.analysis.conventions import CONVENTIONS, Convention
from mpbn_jax.analysis.inputs import Inputs, Output, per_step
from mpbn_jax.analysis.operations import count
from mpbn_jax.errors import unknown
from mpbn_jax.graph import Graph

# 45 nm, 32-bit floating point (Horowitz, ISSCC 2014).
MAC_PJ = 4.6
AC_PJ = 0.9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operations:
  """Operations of one node for one example: means over a data set.

  Attributes:
    name: name of the node.
    kind: kind of the node.
    macs: multiply-accumulates of all steps.
    acs: accumulates of all steps.
    ann_macs: multiply-accumulates of the node in an ANN, which runs it once and
      whose values are real numbers.
    ann_acs: accumulates there.
    nonzero: the share of what it reads that is not 0.
    constant: whether it reads the same at every step.
  """

  name: str
  kind: str
  macs: Fraction
  acs: Fraction
  ann_macs: int
  ann_acs: int
  nonzero: float
  constant: bool

  @property
  def picojoules(self) -> float:
    """Energy of one example."""
    return picojoules(self.macs, self.acs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Energy:
  """Operations of a network for one example, by one convention.

  Memory traffic is left out: on most hardware, moving weights and potentials
  takes more energy than adding them.

  Attributes:
    convention: the convention.
    layers: operations of each node that the convention counts.
    other_first_layer: (MACs, ACs) of the network with the other choice of
      `first_layer`; None if the frames of the steps differ.
  """

  convention: Convention
  layers: tuple[Operations, ...]
  other_first_layer: tuple[Fraction, Fraction] | None

  @property
  def macs(self) -> Fraction:
    """Multiply-accumulates."""
    return sum((each.macs for each in self.layers), Fraction(0))

  @property
  def acs(self) -> Fraction:
    """Accumulates."""
    return sum((each.acs for each in self.layers), Fraction(0))

  @property
  def picojoules(self) -> float:
    """Energy of one example."""
    return picojoules(self.macs, self.acs)

  @property
  def once_picojoules(self) -> float:
    """Energy of one example if the layers that see the image run once."""
    if self.other_first_layer is None or self.convention.first_layer == 'once':
      return self.picojoules
    return picojoules(*self.other_first_layer)

  @property
  def ann_macs(self) -> int:
    """Multiply-accumulates of the same network as an ANN."""
    return sum(each.ann_macs for each in self.layers)

  @property
  def ann_acs(self) -> int:
    """Accumulates of the same network as an ANN."""
    return sum(each.ann_acs for each in self.layers)

  @property
  def ann_picojoules(self) -> float:
    """Energy of that ANN for one example."""
    return picojoules(self.ann_macs, self.ann_acs)

  def to_json(self) -> dict[str, Any]:
    """Returns JSON-serializable fields, with totals and energies."""
    other = None
    if self.other_first_layer is not None:
      macs, acs = self.other_first_layer
      energy = picojoules(macs, acs)
      other = {'macs': float(macs), 'acs': float(acs), 'picojoules': energy}
    totals = ('macs', 'acs', 'picojoules')
    return {
      'convention': dataclasses.asdict(self.convention),
      **{name: float(getattr(self, name)) for name in totals},
      **{f'ann_{name}': getattr(self, f'ann_{name}') for name in totals},
      'other_first_layer': other,
      'layers': [
        {
          **dataclasses.asdict(each),
          **{name: float(getattr(each, name)) for name in totals},
        }
        for each in self.layers
      ],
    }


def picojoules(macs: Fraction | int, acs: Fraction | int) -> float:
  """Returns the energy of operations at 45 nm, 32 bits.

  Example:
    >>> picojoules(10, 100)
    136.0
  """
  return float(macs) * MAC_PJ + float(acs) * AC_PJ


def energy(
  graph: Graph, inputs: Inputs, *, convention: str | Convention = 'mpbn_jax'
) -> Energy:
  """Returns the operations of a folded network, by a convention.

  Args:
    graph: from `network_graph`.
    inputs: from `count_inputs`, of the same graph.
    convention: a key of `CONVENTIONS`, or one of your own.

  Raises:
    InputError: the convention is unknown.
  """
  if isinstance(convention, str):
    if convention not in CONVENTIONS:
      raise unknown('convention', convention, CONVENTIONS)
    convention = CONVENTIONS[convention]
  constant = _constant_nodes(graph) if inputs.static else set()
  dense = dataclasses.replace(convention, zero_weights=True, neurons=False)
  layers, other = [], [Fraction(0), Fraction(0)]
  for node in graph.nodes:
    steps = graph.num_steps
    if node.name in constant and convention.first_layer == 'once':
      steps = 1
    macs, acs = count(node, inputs, convention, steps=steps)
    # An ANN runs once, and everything that it reads is a real number.
    ann = count(node, _of_ann(inputs, node), dense, steps=1)
    if not (macs or acs or any(ann)):
      continue
    times = Fraction(1)
    if node.name in constant:
      times = Fraction(graph.num_steps + 1 - steps, steps)
    other[0] += macs * times
    other[1] += acs * times
    read = [out.nonzero for out in inputs.of(node)]
    size = sum(counts.size for counts in read) * inputs.examples
    layers.append(
      Operations(
        name=node.name,
        kind=node.kind,
        macs=macs,
        acs=acs,
        ann_macs=int(ann[0]),
        ann_acs=int(ann[1]),
        nonzero=sum(int(counts.sum(dtype=np.int64)) for counts in read) / size,
        constant=node.name in constant,
      )
    )
  return Energy(
    convention=convention,
    layers=tuple(layers),
    other_first_layer=(other[0], other[1]) if constant else None,
  )


def _constant_nodes(graph):
  """Returns the nodes with weights that read the same image at every step."""
  same: set[str] = set()
  for node in graph.nodes:
    if node.kind in ('neurons', 'filter') or per_step(node):
      continue
    if all(name in same for name in node.inputs):
      same.add(node.name)
  return same - {graph.nodes[0].name}


def _of_ann(inputs, node):
  """Returns inputs of a node that are real numbers, none of them 0."""
  outputs = {
    name: Output(
      nonzero=np.ones((1, *inputs.outputs[name].nonzero.shape[1:]), np.int64),
      binary=False,
      ternary=False,
    )
    for name in node.inputs
  }
  return Inputs(examples=1, outputs=outputs, static=False)
