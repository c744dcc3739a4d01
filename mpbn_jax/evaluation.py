"""Accuracy of a network, and its spike-by-spike comparison with another one."""

import dataclasses
import functools
from collections import OrderedDict
from collections.abc import Callable, Mapping

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics as clu_metrics

from mpbn_jax import losses, programs, sharding
from mpbn_jax.datasets.base import Spec
from mpbn_jax.datasets.batches import evaluation_batches
from mpbn_jax.datasets.prefetch import Prefetch
from mpbn_jax.errors import InputError
from mpbn_jax.experiment import Experiment
from mpbn_jax.layers import LIF
from mpbn_jax.layers.potentials import COLLECTION as POTENTIALS


@flax.struct.dataclass
class EvaluationMetrics(clu_metrics.Collection):
  """Averages over a split, excluding padding."""

  # Type checkers do not understand how clu declares metrics.
  loss: clu_metrics.Average.from_output('loss')  # type: ignore[valid-type]
  accuracy: clu_metrics.Accuracy


@programs.shared
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
  experiment: Experiment, variables: Mapping, *, split: str
) -> dict[str, float]:
  """Returns {'loss', 'accuracy'} over a split, counting every example once.

  Args:
    experiment: from `experiment.build`.
    variables: variables of its model, folded or not.
    split: 'test', or 'validation' if the data set has one.

  Example:
    >>> from mpbn_jax import config_files, experiment
    >>> config = config_files.load(f'{workdir}/config.json')
    >>> run = mpbn_jax.load_run(workdir)
    >>> scores = evaluate(
    ...   experiment.build(config), run.variables, split='test'
    ... )
    >>> sorted(scores)
    ['accuracy', 'loss']
  """
  step = _evaluation_step(experiment.model, experiment.dataset.spec)
  metrics = EvaluationMetrics.empty()
  for batch in sharded_batches(experiment, split):
    metrics = step(variables, metrics, batch)
  return {name: float(value) for name, value in metrics.compute().items()}


def sharded_batches(experiment, split):
  """Yields the batches of a split on the devices, prefetched by a thread."""
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
  """Comparison of two networks on the same examples.

  Attributes:
    accuracy: accuracy of the first network.
    other_accuracy: accuracy of the second network.
    spikes_compared: neurons times time steps times examples.
    spikes_differing: how many of these spikes differ.
    max_logit_difference: largest absolute difference between logits.
    firing_rate: {layer: spikes per neuron and step} of the first network, in
      the order in which the layers run; {layer[i]: ...} for n blocks that the
      program scans over.
  """

  accuracy: float
  other_accuracy: float
  spikes_compared: int
  spikes_differing: int
  max_logit_difference: float
  firing_rate: dict[str, float]


# Recorded beside a layer's spikes: an array that is empty inside the layer, so
# that its axes of nonzero size are those along which blocks are stacked.
_STACKED = 'stacked'


def recorded(
  model: nn.Module,
  variables: Mapping,
  x: jax.Array,
  *,
  given_spikes: Mapping[str, Mapping[str, jax.Array]] | None = None,
  potentials: bool = False,
):
  """Returns (logits, {layer: {'currents', 'spikes', 'stacked'}}) in evaluation.

  Args:
    model: a network with `LIF` layers.
    variables: its variables, folded or not.
    x: an input, usually [B, H, W, C] or [B, T, H, W, C].
    given_spikes: {layer: {'spikes': ...}}; the output of every neuron layer in
      place of its own spikes, which are still recorded. Each layer can thus
      receive another network's spikes, so that differences do not accumulate.
    potentials: whether to add the membrane potentials of each layer and what
      they are compared with (`layers.potentials.keep`).

  Returns:
    Layers in the order in which they run; a layer that runs repeatedly gets the
    names 'lif', 'lif(2)', .... Currents and spikes are [B, T, ..., C], with
    one more axis for each `nn.scan` or `nn.vmap` around the layer: `stacked`
    says which axes these are (`stacked_axes`).

  Raises:
    InputError: no neuron layer, or one whose spikes are not recorded;
      `given_spikes` for a layer that runs more than once.
  """
  ran: dict[tuple[str, ...], None] = {}

  def note(function, args, kwargs, context):
    y = function(*args, **kwargs)
    module = context.module
    if isinstance(module, LIF) and context.method_name == '__call__':
      ran[module.path] = None
      module.sow('intermediates', _STACKED, jnp.zeros((0,) * y.ndim))
    return y

  with nn.intercept_methods(note):
    logits, kept = model.apply(
      {**variables, 'given_spikes': _handed_on(given_spikes or {})},
      x,
      train=False,
      mutable=['intermediates', *[POTENTIALS] * potentials],
    )
  if not ran:
    raise InputError(
      'expected a network with neuron layers (LIF), got '
      f'{type(model).__name__} without one: there are no spikes to record'
    )
  # Unlike a dict, it keeps its order under `jax.jit`.
  layers: OrderedDict = OrderedDict()
  for path in ran:
    name = '/'.join(path)
    found = _at(kept.get('intermediates', {}), path)
    if _STACKED not in found:
      raise InputError(
        f'expected to record the spikes of {name!r}, got none from the '
        "nn.scan or nn.vmap around it: give it variable_axes={'intermediates': "
        "0, 'given_spikes': 0, ...}"
      )
    of_potentials = _at(kept.get(POTENTIALS, {}), path)
    if potentials and not of_potentials:
      raise InputError(
        f'expected to record the potentials of {name!r}, got none from the '
        "nn.scan or nn.vmap around it: give it variable_axes={'potentials': 0, "
        '...}, as it has for intermediates'
      )
    runs = len(found[_STACKED])
    if name in (given_spikes or {}) and runs > 1:
      raise InputError(
        f'expected layers that run once, to feed each the same spikes, got '
        f'{name!r}, which runs {runs} times: use `compare` instead'
      )
    for run in range(runs):
      layers[f'{name}({run + 1})' if run else name] = {
        **{key: found[key][run] for key in ('currents', 'spikes', _STACKED)},
        **{key: values[run] for key, values in of_potentials.items()},
      }
  return logits, layers


def _handed_on(given_spikes):
  tree: dict = {}
  for name, layer in given_spikes.items():
    node = tree
    for key in name.split('/'):
      node = node.setdefault(key, {})
    node['spikes'] = layer['spikes']
  return tree


def _at(tree, path):
  for key in path:
    tree = tree.get(key, {})
  return tree


def stacked_axes(layer: Mapping[str, jax.Array]) -> tuple[int, ...]:
  """Returns the axes of a layer's recorded spikes that stack blocks."""
  return tuple(i for i, side in enumerate(layer[_STACKED].shape) if side)


@dataclasses.dataclass(frozen=True)
class LayerComparison:
  """One neuron layer of two networks, both given the first network's spikes.

  Attributes:
    current_error: largest difference of input currents, relative to the largest
      current.
    flips: number of spikes that differ.
    spikes: number of spikes compared.
  """

  current_error: float
  flips: int
  spikes: int


@programs.shared
def _recorded(model):
  return jax.jit(functools.partial(recorded, model))


def compare_layers(
  model: nn.Module, variables: Mapping, other: Mapping, x: jax.Array
) -> dict[str, LayerComparison]:
  """Returns {layer: how `other` differs}, giving each layer the same spikes.

  Free-running networks drift apart after the first flip; this isolates the
  difference of each layer, for example with folded convolutions.
  """
  run = _recorded(model)
  _, layers = run(variables, x)
  _, others = run(other, x, given_spikes=layers)

  def difference(ours, theirs):
    a, b = ours['currents'], theirs['currents']
    change = jnp.abs(a - b).max()
    return LayerComparison(
      # Currents that are 0 in both networks do not differ.
      current_error=float(jnp.where(change, change / jnp.abs(a).max(), 0)),
      flips=int((ours['spikes'] != theirs['spikes']).sum()),
      spikes=int(a.size),
    )

  return {name: difference(layers[name], others[name]) for name in layers}


@programs.shared
def _recorded_spikes(model, spec):
  @jax.jit
  def run(variables, batch):
    images = spec.normalize(batch['image'])
    logits, layers = recorded(model, variables, images)
    for layer in layers.values():
      layer['spikes'] = layer['spikes'] > 0
      del layer['currents']
    return logits, layers

  return run


@programs.shared
def _counts(mesh):
  # The results are small and replicated on every host.
  @functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
  def count(logits, other_logits, layers, other_layers, batch):
    mask = batch['mask']

    def correct(logits):
      return mask & (logits.argmax(-1) == batch['label'])

    flips = {
      name: {**layer, 'spikes': layer['spikes'] ^ other_layers[name]['spikes']}
      for name, layer in layers.items()
    }
    change = jnp.abs(logits - other_logits)
    bad = ~(jnp.isfinite(logits) & jnp.isfinite(other_logits)).all(-1)
    return {
      'mask': mask,
      'correct': correct(logits),
      'other_correct': correct(other_logits),
      'change': jnp.where(mask[:, None], change, 0).max(),
      'not_finite': mask & bad,
      'fires': {k: _per_example(k, v, mask) for k, v in layers.items()},
      'flips': {k: _per_example(k, v, mask) for k, v in flips.items()},
    }

  return count


def compare(
  experiment: Experiment, variables: Mapping, other: Mapping, *, split: str
) -> Comparison:
  """Returns how the model with `other` variables differs from `variables`.

  The two networks are two compiled programs, as in actual use, and every spike
  of every layer is compared. Padding is excluded.

  Args:
    experiment: from `experiment.build`.
    variables: variables of its model.
    other: other variables of its model, for example folded ones.
    split: usually 'test'.
  """
  run = _recorded_spikes(experiment.model, experiment.dataset.spec)
  count = _counts(experiment.mesh)
  examples, correct, other_correct, largest = 0, 0, 0, 0.0
  fired: dict[str, int] = {}
  sizes: dict[str, int] = {}
  differing = 0
  for batch in sharded_batches(experiment, split):
    logits, layers = run(variables, batch)
    other_logits, other_layers = run(other, batch)
    counts = jax.device_get(
      count(logits, other_logits, layers, other_layers, batch)
    )
    if counts['not_finite'].any():
      raise FloatingPointError(
        f'expected finite logits on the split {split!r}, got NaN or infinity '
        f'for {counts["not_finite"].sum()} of {counts["mask"].sum()} examples '
        'of a batch: the accuracy cannot be computed'
      )
    examples += int(counts['mask'].sum())
    correct += int(counts['correct'].sum())
    other_correct += int(counts['other_correct'].sum())
    largest = max(largest, float(counts['change']))
    for layer, record in layers.items():
      fires = counts['fires'][layer].sum(-1)
      for name, fires_of_block in _by_block(layer, fires):
        fired[name] = fired.get(name, 0) + int(fires_of_block)
        sizes[name] = _neurons(record)
      differing += int(counts['flips'][layer].sum())
  return Comparison(
    accuracy=correct / examples,
    other_accuracy=other_correct / examples,
    spikes_compared=examples * sum(sizes.values()),
    spikes_differing=differing,
    max_logit_difference=largest,
    firing_rate={k: fired[k] / (examples * sizes[k]) for k in fired},
  )


def _per_example(name, layer, mask):
  """Returns a layer's spike counts, [(n,) B]; 0 where the mask is False."""
  spikes, stacked = layer['spikes'], stacked_axes(layer)
  spikes = jnp.moveaxis(spikes, stacked, tuple(range(len(stacked))))
  inside = spikes.shape[len(stacked) :]
  if inside[0] != len(mask):
    raise InputError(
      f'expected spikes [B, T, ..., C] of {len(mask)} examples from {name!r}, '
      f'got shape {inside}: pass neuron layers arrays with the batch on the '
      'first axis'
    )
  summed = tuple(range(len(stacked) + 1, spikes.ndim))
  return jnp.where(mask, spikes.sum(summed), 0)


def _neurons(layer):
  """Returns neurons times steps for one example and one of n blocks."""
  shape, stacked = layer['spikes'].shape, stacked_axes(layer)
  inside = [side for i, side in enumerate(shape) if i not in stacked]
  return int(np.prod(inside[1:]))


def _by_block(layer, counts):
  """Yields (name, count); 'stage1_blocks/lif1[3]' for scanned blocks."""
  for index in np.ndindex(counts.shape):
    block = ','.join(map(str, index))
    yield (f'{layer}[{block}]' if index else layer), counts[index]
