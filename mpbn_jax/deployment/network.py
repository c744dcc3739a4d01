"""The network that is deployed, and what every file of it is compared with."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import cast

import jax
import numpy as np

from mpbn_jax import norm
from mpbn_jax.datasets.base import Spec
from mpbn_jax.evaluation import recorded, stacked_axes
from mpbn_jax.experiment import Experiment
from mpbn_jax.folding import fold_all, strip
from mpbn_jax.graph import Graph, network_graph
from mpbn_jax.models.network import SpikingNetwork
from mpbn_jax.report import fold_network, why_not_folded
from mpbn_jax.tree import norms_at
from mpbn_jax.wiring import readers_of_spikes

EXAMPLES = 256  # test images that files are compared on, at most
_AT_ONCE = 32
# Of two programs whose spikes are the same; those that differ by more have at
# least one spike that differs.
ROUNDING = 1e-5


@dataclasses.dataclass(frozen=True)
class Deployed:
  """A network to deploy.

  Attributes:
    model: the network.
    trained: its variables as they were trained.
    folded: folded as `evaluation.fold` says, or as trained if nothing folds.
    spec: the data set.
    images: test images, uint8 [N, H, W, C] or [N, T, H, W, C].
    labels: their labels, [N].
  """

  model: SpikingNetwork
  trained: Mapping
  folded: Mapping
  spec: Spec
  images: np.ndarray
  labels: np.ndarray

  @functools.cached_property
  def reference(self) -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """(logits [B, K], {layer: spikes [B, T, ..., C]}) of the folded network.

    One for each batch of the images. Scanned blocks are apart, with the names
    that their layers have in a graph.
    """

    @jax.jit
    def run(variables, images):
      x = self.spec.normalize(images)
      logits, layers = recorded(self.model, variables, x)
      spikes: dict[str, jax.Array] = {}
      for name, layer in layers.items():
        fired = layer['spikes'] > 0
        spikes |= _apart(name, fired) if stacked_axes(layer) else {name: fired}
      return logits, spikes

    return [
      jax.device_get(run(self.folded, self.images[i : i + _AT_ONCE]))
      for i in range(0, len(self.images), _AT_ONCE)
    ]

  @functools.cached_property
  def graph(self) -> Graph:
    """The graph of the network with all of its norms folded.

    Raises:
      InputError: a norm does not fold, or no graph expresses the network.
    """
    variables = self.trained
    if any(True for place in norm.PLACES for _ in norms_at(variables, place)):
      x = jax.ShapeDtypeStruct((1, *self.images.shape[1:]), np.float32)
      readers = readers_of_spikes(self.model, variables, x)
      variables = strip(fold_all(variables, readers=readers))
    return network_graph(
      self.model, variables, frame_shape=self.spec.image_shape
    )

  def differences(self, run: Callable, *, examples: int = EXAMPLES) -> dict:
    """Returns how another program differs from the folded network.

    Args:
      run: uint8 images -> (logits [B, K], {layer: spikes}) with the names of
        the network or of its graph. Without layers, no spikes are compared.
      examples: how many images are compared at most.

    Returns:
      The number of `examples`; how many `predictions` differ; the `largest`
      difference of a logit; the number of examples with logits that differ
      `beyond_rounding`, by more than `ROUNDING`; `accuracy` of the network and
      `other_accuracy`; and, of the `spikes` compared, how many are `flips`.
    """
    changes, classes, other_classes = [], [], []
    spikes = flips = 0
    for number, (logits, layers) in enumerate(self.reference):
      start = number * _AT_ONCE
      logits = logits[: max(examples - start, 0)]
      if not len(logits):
        break
      found, found_layers = run(self.images[start : start + len(logits)])
      found = np.asarray(found)
      changes.append(np.abs(found - logits).max(-1))
      classes.append(logits.argmax(-1))
      other_classes.append(found.argmax(-1))
      for name, layer in _as_in(layers, found_layers).items():
        spikes += layer.size
        flips += int((layer != layers[name][: len(logits)]).sum())
    change, ours = np.concatenate(changes), np.concatenate(classes)
    theirs = np.concatenate(other_classes)
    labels = self.labels[: len(change)]
    result = {
      'examples': len(change),
      'predictions': int((ours != theirs).sum()),
      'largest': float(change.max()),
      # NaN counts.
      'beyond_rounding': int((~(change <= ROUNDING)).sum()),
      'accuracy': float((ours == labels).mean()),
      'other_accuracy': float((theirs == labels).mean()),
    }
    return result | ({'spikes': spikes, 'flips': flips} if spikes else {})


def _apart(name, stacked):
  """Returns {layer: spikes} of the blocks that are stacked in an array."""
  block, _, layer = name.partition('/')
  return {f'{block}_{i}/{layer}': spikes for i, spikes in enumerate(stacked)}


def _as_in(reference, layers):
  """Returns boolean spikes with the names of a reference."""
  spikes: dict[str, np.ndarray] = {}
  for name, layer in layers.items():
    fired = np.asarray(layer) > 0
    spikes |= {name: fired} if name in reference else _apart(name, fired)
  return spikes


def deployed(experiment: Experiment, variables: Mapping) -> Deployed:
  """Returns what a run deploys: its network, folded as the configuration says.

  Args:
    experiment: from `experiment.build`.
    variables: the trained variables of its model.
  """
  test = experiment.dataset.splits['test']
  images, labels = test.read(np.arange(min(len(test), EXAMPLES)))
  variables = jax.device_get(variables)
  folded = variables
  if not why_not_folded(experiment.config):
    folded = jax.device_get(fold_network(experiment, variables))
  return Deployed(
    model=cast(SpikingNetwork, experiment.model),  # of `build_model`
    trained=variables,
    folded=folded,
    spec=experiment.dataset.spec,
    images=images,
    labels=labels,
  )
