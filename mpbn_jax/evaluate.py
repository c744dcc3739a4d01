"""How good is a network, and does its folded form fire the same spikes?"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics as clu_metrics

from mpbn_jax import losses, sharding
from mpbn_jax.datasets.base import Spec
from mpbn_jax.datasets.batches import evaluation_batches
from mpbn_jax.datasets.prefetch import Prefetch


@flax.struct.dataclass
class EvaluationMetrics(clu_metrics.Collection):
  """Averages over a split, padding left out."""

  loss: clu_metrics.Average.from_output('loss')
  accuracy: clu_metrics.Accuracy


# One compiled program for each model and data set, however often it is asked.
@functools.lru_cache(maxsize=8)
def _evaluation_step(model: nn.Module, spec: Spec) -> Callable:
  @jax.jit
  def step(variables, metrics, batch):
    images = spec.normalize(batch['image'])
    logits = model.apply(variables, images, train=False)
    new = EvaluationMetrics.single_from_model_output(
      loss=losses.cross_entropy(logits, batch['label']),
      logits=logits,
      labels=batch['label'],
      mask=batch['mask'],
    )
    return metrics.merge(new)

  return step


def evaluate(
  experiment: Any, variables: Mapping, *, split: str
) -> dict[str, float]:
  """Returns {'loss', 'accuracy'} over a split, every example once.

  Args:
    experiment: as from `train.build`.
    variables: of its model; folded ones too.
    split: 'test', or 'validation' where there is one.
  """
  step = _evaluation_step(experiment.model, experiment.dataset.spec)
  metrics = EvaluationMetrics.empty()
  for batch in _sharded_batches(experiment, split):
    metrics = step(variables, metrics, batch)
  return {name: float(value) for name, value in metrics.compute().items()}


def _sharded_batches(experiment, split):
  """Yields the batches of a split on the devices, read ahead by a thread."""
  batches = evaluation_batches(
    experiment.dataset,
    split,
    batch_size=experiment.config.evaluation.batch_size,
    host=sharding.host(),
  )
  sharded = (sharding.shard_batch(b, experiment.mesh) for b in batches)
  with Prefetch(sharded, ahead=experiment.config.data.prefetch) as ready:
    yield from ready


# ---- folded against unfolded


@dataclasses.dataclass(frozen=True)
class Comparison:
  """One network against another on the same examples.

  Attributes:
    accuracy: of the first network.
    other_accuracy: of the second.
    spikes_compared: neurons times steps times examples.
    spikes_differing: how many of them differ.
    max_logit_difference: largest absolute difference of a logit.
    firing_rate: {layer: spikes per neuron and step} of the first network;
      of n blocks that are one in the program, {layer[i]: ...}.
  """

  accuracy: float
  other_accuracy: float
  spikes_compared: int
  spikes_differing: int
  max_logit_difference: float
  firing_rate: dict[str, float]


def recorded(
  model: nn.Module,
  variables: Mapping,
  x: jax.Array,
  *,
  forced: Mapping[str, Mapping[str, jax.Array]] | None = None,
):
  """Returns (logits, {layer: {'currents', 'spikes'}}) in evaluation mode.

  Args:
    model: the network.
    variables: its variables, folded or not.
    x: [B, H, W, C] or [B, T, H, W, C].
    forced: {layer: {'spikes': ...}}; what every neuron layer hands on in
      place of its own spikes, which are still recorded. So each layer is fed
      another network's spikes, and differences do not add up.

  Returns:
    Currents and spikes are [B, T, H, W, C], or [n, B, T, H, W, C] of n blocks
    that are one in the program; layers in no particular order.
  """
  handed_on: dict = {}
  for name, layer in (forced or {}).items():
    node = handed_on
    for key in name.split('/'):
      node = node.setdefault(key, {})
    node['spikes'] = layer['spikes']
  logits, kept = model.apply(
    {**variables, 'forced': handed_on},
    x,
    train=False,
    mutable=['intermediates'],
  )
  layers = {}

  def walk(tree, path):
    if 'spikes' in tree:
      layers['/'.join(path)] = {
        name: tree[name][0] for name in ('currents', 'spikes')
      }
      return
    for key, child in tree.items():
      walk(child, (*path, key))

  walk(kept['intermediates'], ())
  return logits, layers


@dataclasses.dataclass(frozen=True)
class LayerComparison:
  """One neuron layer of two networks, both fed the first one's spikes.

  Attributes:
    current_error: largest difference of a current over the largest current.
    flips: spikes that differ.
    spikes: decisions that were compared.
  """

  current_error: float
  flips: int
  spikes: int


def compare_layers(
  model: nn.Module, variables: Mapping, other: Mapping, x: jax.Array
) -> dict[str, LayerComparison]:
  """Returns {layer: how `other` differs}, each layer fed the same spikes.

  Free-running networks drift apart after the first flip; this says what one
  layer alone does, with folded convolutions for example.
  """
  run = jax.jit(functools.partial(recorded, model))
  _, layers = run(variables, x)
  _, others = run(other, x, forced=layers)

  def difference(ours, theirs):
    a, b = ours['currents'], theirs['currents']
    return LayerComparison(
      current_error=float(jnp.abs(a - b).max() / jnp.abs(a).max()),
      flips=int((ours['spikes'] != theirs['spikes']).sum()),
      spikes=int(a.size),
    )

  return {name: difference(layers[name], others[name]) for name in layers}


def compare(
  experiment: Any, variables: Mapping, other: Mapping, *, split: str
) -> Comparison:
  """Returns how the model with `other` variables differs from `variables`.

  The two networks are two compiled programs, as they would be in use, and
  every spike of every layer is compared. Padding is left out.

  Args:
    experiment: as from `train.build`.
    variables: of its model.
    other: of its model too; folded, say.
    split: 'test', as a rule.
  """
  model, normalize = experiment.model, experiment.dataset.spec.normalize

  @jax.jit
  def run(variables, batch):
    logits, layers = recorded(model, variables, normalize(batch['image']))
    return logits, {k: v['spikes'] > 0 for k, v in layers.items()}

  # Small, and whole on every host.
  @functools.partial(
    jax.jit, out_shardings=sharding.replicated(experiment.mesh)
  )
  def count(logits, other_logits, spikes, other_spikes, batch):
    mask = batch['mask']

    def right(logits):
      return mask & (logits.argmax(-1) == batch['label'])

    def per_example(spikes):  # [(n,) B, T, H, W, C] -> [(n,) B]
      kept = spikes & mask[:, None, None, None, None]
      return kept.sum(range(spikes.ndim - 4, spikes.ndim))

    change = jnp.abs(logits - other_logits)
    return {
      'mask': mask,
      'right': right(logits),
      'other_right': right(other_logits),
      'change': jnp.where(mask[:, None], change, 0).max(),
      'fires': jax.tree.map(per_example, spikes),
      'flips': jax.tree.map(
        lambda a, b: per_example(a ^ b), spikes, other_spikes
      ),
    }

  examples, right, other_right, largest = 0, 0, 0, 0.0
  fired: dict[str, int] = {}
  sizes: dict[str, int] = {}
  differing = 0
  for batch in _sharded_batches(experiment, split):
    logits, spikes = run(variables, batch)
    other_logits, other_spikes = run(other, batch)
    counts = jax.device_get(
      count(logits, other_logits, spikes, other_spikes, batch)
    )
    examples += int(counts['mask'].sum())
    right += int(counts['right'].sum())
    other_right += int(counts['other_right'].sum())
    # Not Python's max, which drops a NaN.
    largest = float(np.maximum(largest, counts['change']))
    for layer, fires in counts['fires'].items():
      size = int(np.prod(spikes[layer].shape[-4:]))
      for name, fires_of_block in _by_block(layer, fires.sum(-1)):
        fired[name] = fired.get(name, 0) + int(fires_of_block)
        sizes[name] = size
      differing += int(counts['flips'][layer].sum())
  return Comparison(
    accuracy=right / examples,
    other_accuracy=other_right / examples,
    spikes_compared=examples * sum(sizes.values()),
    spikes_differing=differing,
    max_logit_difference=largest,
    firing_rate={k: fired[k] / (examples * sizes[k]) for k in fired},
  )


def _by_block(layer, counts):
  """Yields (name, count): 'stage1_blocks/lif1[3]' where n blocks are one."""
  if counts.ndim == 0:
    yield layer, counts
    return
  for block, count in enumerate(counts):
    yield f'{layer}[{block}]', count
