"""What happens inside a trained network: everything that its report shows."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mpbn_jax import norm, report
from mpbn_jax.analysis.activity import Activity, LayerActivity, activity
from mpbn_jax.analysis.conventions import CONVENTIONS
from mpbn_jax.analysis.energy import AC_PJ, MAC_PJ, Energy, energy
from mpbn_jax.analysis.inputs import count_inputs
from mpbn_jax.analysis.neurons import Thresholds, Traces, neurons_of
from mpbn_jax.errors import InputError
from mpbn_jax.experiment import Experiment
from mpbn_jax.folding import fold_all, strip
from mpbn_jax.graph import network_graph
from mpbn_jax.tree import norms_at
from mpbn_jax.wiring import readers_of_spikes

EXAMPLE = 0  # the one whose traces are shown


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Inside:
  """What happens inside a network on the test set.

  Attributes:
    activity: spikes, potentials and predictions of the network.
    neurons: {layer: (traces of a few neurons on the first test example,
      thresholds of all)}, with folded thresholds if they fold.
    not_folded: why the thresholds are not folded; None if they are.
    energies: {convention: operations of the network with all norms folded}.
    no_energy: why there are none; None if there are.
  """

  activity: Activity
  neurons: dict[str, tuple[Traces, Thresholds]]
  not_folded: str | None
  energies: dict[str, Energy]
  no_energy: str | None

  def to_json(self) -> dict[str, Any]:
    """Returns all numbers, JSON-serializable."""
    found = self.activity
    return {
      'examples': found.examples,
      'accuracy': found.accuracy,
      'layers': {
        name: {
          **_layer(layer),
          'thresholds': self.neurons[name][1].to_json(),
          'traces': self.neurons[name][0].to_json(),
        }
        for name, layer in found.layers.items()
      },
      'thresholds_not_folded': self.not_folded,
      'traced_example': EXAMPLE,
      'confusion': found.confusion.tolist(),
      'wrong': [
        {
          field: getattr(each, field)
          for field in ('index', 'label', 'prediction', 'probability')
        }
        for each in found.wrong
      ],
      'energy': {
        'picojoules_per_mac': MAC_PJ,
        'picojoules_per_ac': AC_PJ,
        'memory_traffic': 'left out',
        'not_counted': self.no_energy,
        'conventions': {k: v.to_json() for k, v in self.energies.items()},
      },
    }


def _layer(layer: LayerActivity) -> dict[str, Any]:
  return {
    'neurons': layer.neurons,
    'firing_rate': layer.firing_rate.tolist(),
    'spikes': layer.spikes.tolist(),
    'silent': layer.silent,
    'always_firing': layer.always_firing,
    'potential_before': layer.before.to_json(),
    'potential_after': None if layer.after is None else layer.after.to_json(),
  }


def look_inside(experiment: Experiment, variables: Mapping) -> Inside:
  """Returns what happens inside a network on the test set.

  Args:
    experiment: from `experiment.build` or `report.restore`.
    variables: trained variables of its model, not folded.
  """
  found = activity(experiment, variables)
  to_thresholds = _to_thresholds(experiment)
  not_folded = report.why_not_folded(to_thresholds.config)
  if not_folded is not None:
    not_folded = not_folded.split(';')[0]  # without how other norms fold
  shown = variables
  if not_folded is None:
    shown = report.fold_network(to_thresholds, variables)
  dataset = experiment.dataset
  images, _ = dataset.splits['test'].read(np.array([EXAMPLE]))
  x = dataset.spec.normalize(jnp.asarray(images))
  neurons = neurons_of(experiment.model, shown, x)
  energies, no_energy = {}, None
  try:
    folded = _all_folded(experiment, variables)
    shape = dataset.spec.image_shape
    graph = network_graph(experiment.model, folded, frame_shape=shape)
    inputs = count_inputs(graph, experiment)
    energies = {
      name: energy(graph, inputs, convention=name) for name in CONVENTIONS
    }
  except InputError as error:
    no_energy = str(error)
  return Inside(
    activity=found,
    neurons=neurons,
    not_folded=not_folded,
    energies=energies,
    no_energy=no_energy,
  )


def _to_thresholds(experiment):
  """Returns the experiment with norms of potentials folded, and no others."""
  config = experiment.config.copy_and_resolve_references()
  config.evaluation.fold = 'thresholds'
  return dataclasses.replace(experiment, config=config)


def _all_folded(experiment, variables):
  """Returns the variables with all norms folded; the same without any."""
  if not any(True for p in norm.PLACES for _ in norms_at(variables, p)):
    return variables
  shape = (1, *experiment.dataset.example_shape)
  x = jax.ShapeDtypeStruct(shape, np.float32)
  readers = readers_of_spikes(experiment.model, variables, x)
  return strip(fold_all(variables, readers=readers))
