"""The network that is deployed, and what every file of it is compared with."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import cast

import jax
import numpy as np

from mpbn_jax import norm
from mpbn_jax.datasets.base import Spec
from mpbn_jax.evaluation import recorded
from mpbn_jax.experiment import Experiment
from mpbn_jax.folding import fold_all, strip
from mpbn_jax.graph import Graph, network_graph
from mpbn_jax.models.network import SpikingNetwork
from mpbn_jax.report import fold_network, why_not_folded
from mpbn_jax.tree import norms_at
from mpbn_jax.wiring import readers_of_spikes

_EXAMPLES = 256  # test images that files are compared on, at most
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
  """

  model: SpikingNetwork
  trained: Mapping
  folded: Mapping
  spec: Spec
  images: np.ndarray

  @functools.cached_property
  def reference(self) -> tuple[np.ndarray, list[dict[str, np.ndarray]]]:
    """(logits [N, K], {layer: spikes} of each batch) of the folded network."""

    @jax.jit
    def run(variables, images):
      x = self.spec.normalize(images)
      logits, layers = recorded(self.model, variables, x)
      return logits, {name: v['spikes'] > 0 for name, v in layers.items()}

    parts = [
      jax.device_get(run(self.folded, images)) for images in self.batches()
    ]
    logits = np.concatenate([logits for logits, _ in parts])
    return logits, [spikes for _, spikes in parts]

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

  def batches(self) -> Iterator[np.ndarray]:
    """Yields the images in batches."""
    for i in range(0, len(self.images), _AT_ONCE):
      yield self.images[i : i + _AT_ONCE]

  def differences(self, run: Callable[[np.ndarray], np.ndarray]) -> dict:
    """Returns how another program's logits differ from the folded network's.

    Args:
      run: uint8 images -> logits [B, K].

    Returns:
      The number of `examples`; how many `predictions` differ; the `largest`
      difference of a logit; the number of examples with logits that differ
      `beyond_rounding`, by more than `ROUNDING`.
    """
    logits = np.concatenate([run(images) for images in self.batches()])
    expected, _ = self.reference
    change = np.abs(logits - expected).max(-1)
    return {
      'examples': len(logits),
      'predictions': int((logits.argmax(-1) != expected.argmax(-1)).sum()),
      'largest': float(change.max()),
      # NaN counts.
      'beyond_rounding': int((~(change <= ROUNDING)).sum()),
    }

  def flips(self, run: Callable) -> dict:
    """Returns how many spikes of another program differ.

    Args:
      run: uint8 images -> (logits, {layer: spikes}).

    Returns:
      The number of `spikes` compared and of `flips`.
    """
    spikes = flips = 0
    for images, expected in zip(self.batches(), self.reference[1], strict=True):
      _, found = run(images)
      for name, of_layer in expected.items():
        spikes += of_layer.size
        flips += int((np.asarray(found[name]) != of_layer).sum())
    return {'spikes': spikes, 'flips': flips}


def deployed(experiment: Experiment, variables: Mapping) -> Deployed:
  """Returns what a run deploys: its network, folded as the configuration says.

  Args:
    experiment: from `experiment.build`.
    variables: the trained variables of its model.
  """
  test = experiment.dataset.splits['test']
  images, _ = test.read(np.arange(min(len(test), _EXAMPLES)))
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
  )
