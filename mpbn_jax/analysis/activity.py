"""Activity of a network on a data set: spikes, potentials and predictions.

All statistics are streamed: a compiled program runs the network on a batch and
returns counts, so that memory does not grow with the data set.
"""

import dataclasses
import functools
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mpbn_jax import memory, programs, sharding
from mpbn_jax.analysis import histograms
from mpbn_jax.analysis.blocks import in_order, labels_of
from mpbn_jax.analysis.histograms import Histogram
from mpbn_jax.analysis.watching import shapes_of, watched
from mpbn_jax.datasets.base import Spec
from mpbn_jax.errors import InputError
from mpbn_jax.evaluation import sharded_batches, stacked_axes
from mpbn_jax.experiment import Experiment

EXAMPLES = 24  # that are kept of those predicted wrongly
_POTENTIALS = ('before', 'after')
_LARGEST = np.iinfo(np.int32).max


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class LayerActivity:
  """What a neuron layer did on a data set.

  Attributes:
    examples: number of examples.
    fired: int32 [T, ..., C]: the number of examples for which each neuron fired
      at each step.
    before: the membrane potentials before their norm.
    after: those after it; None if there is no norm, or it is folded.
  """

  examples: int
  fired: np.ndarray
  before: Histogram
  after: Histogram | None

  @property
  def neurons(self) -> int:
    """The number of neurons."""
    return int(np.prod(self.fired.shape[1:]))

  @property
  def spikes(self) -> np.ndarray:
    """The number of spikes at each step, int64 [T]."""
    axes = tuple(range(1, self.fired.ndim))
    return self.fired.sum(axes, dtype=np.int64)

  @property
  def firing_rate(self) -> np.ndarray:
    """Spikes per neuron and example at each step, [T]."""
    return self.spikes / (self.examples * self.neurons)

  @property
  def silent(self) -> int:
    """The number of neurons that never fire, at no step of any example."""
    return int((self.fired == 0).all(0).sum())

  @property
  def always_firing(self) -> int:
    """The number of neurons that fire at every step of every example."""
    return int((self.fired == self.examples).all(0).sum())


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class WrongExample:
  """An example whose prediction is wrong.

  Attributes:
    index: its place in the split.
    label: its class.
    prediction: the class with the largest logit.
    probability: the softmax of the mean logits there.
    image: uint8 [H, W, C], or frames [T, H, W, C].
  """

  index: int
  label: int
  prediction: int
  probability: float
  image: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Activity:
  """What a network did on a data set.

  Attributes:
    examples: number of examples.
    layers: {layer: its activity} in the order in which they run; {layer[i]:
      ...} for blocks that the program scans over.
    confusion: int64 [K, K]: how many examples of class i are predicted as j.
    wrong: examples that are predicted wrongly with the largest probability, at
      most `EXAMPLES`.
  """

  examples: int
  layers: dict[str, LayerActivity]
  confusion: np.ndarray
  wrong: tuple[WrongExample, ...]

  @property
  def accuracy(self) -> float:
    """The share of examples that are predicted correctly."""
    return int(np.trace(self.confusion)) / self.examples


@programs.shared
def _moments(model, spec, mesh):
  """Returns the compiled function of the first batch, for the bins."""

  @functools.partial(
    jax.jit,
    out_shardings=sharding.replicated(mesh),
    compiler_options=memory.compiler_options(),
  )
  def of_batch(variables, batch):
    mask = batch['mask']
    groups = _groups(len(mask), mesh.size)

    def moments(layer, given):
      del given
      return {
        kind: histograms.moments_of(layer[kind], mask, groups=groups)
        for kind in _POTENTIALS
        if kind in layer
      }

    images = spec.normalize(batch['image'])
    _, found = watched(model, variables, images, moments, given={})
    return found

  return of_batch


@programs.shared
def _program(model: nn.Module, spec: Spec, mesh: jax.sharding.Mesh):
  """Returns the compiled function of a batch."""

  @functools.partial(
    jax.jit,
    donate_argnums=1,
    out_shardings=sharding.replicated(mesh),
    compiler_options=memory.compiler_options(),
  )
  def of_batch(variables, fired, bins, batch):
    groups = _groups(len(batch['mask']), mesh.size)
    count = functools.partial(_of_layer, batch['mask'], groups)
    logits, found = watched(
      model, variables, spec.normalize(batch['image']), count, given=bins
    )
    new = {name: fired[name] + found[name].pop('fired') for name in fired}
    probabilities = jax.nn.softmax(logits)
    return new, {
      'layers': found,
      'prediction': logits.argmax(-1),
      'probability': probabilities.max(-1),
      'finite': jnp.isfinite(logits).all(-1),
      'label': batch['label'],
      'mask': batch['mask'],
    }

  return of_batch


def _groups(batch_size, devices):
  """Returns the largest number of groups up to 16 that devices can share."""
  share = batch_size // devices
  return max(n for n in range(1, 17) if share % n == 0)


def _of_layer(mask, groups, layer, bins):
  """Returns counts of a layer, or of one block, in a batch."""
  spikes = layer['spikes']
  real = mask.reshape((-1, *(1,) * (spikes.ndim - 1)))
  return {
    'fired': ((spikes > 0) & real).sum(0, dtype=jnp.int32),
    **{
      kind: histograms.count(
        layer[kind], mask, first=first, width=width, groups=groups
      )
      for kind, (first, width) in bins.items()
    },
  }


def activity(
  experiment: Experiment,
  variables: Mapping,
  *,
  split: str = 'test',
  examples: int = EXAMPLES,
) -> Activity:
  """Returns what the network does on a split, every example counted once.

  Spikes and potentials are counted as integers; the first batch decides the
  bins of the potentials, which stay fixed.

  Args:
    experiment: from `experiment.build`.
    variables: variables of its model, folded or not.
    split: usually 'test'.
    examples: how many wrongly predicted examples are kept.

  Raises:
    FloatingPointError: a logit is not finite.
    InputError: the batches or the split are too large to be counted.
  """
  parts = experiment.model, experiment.dataset.spec, experiment.mesh
  run, moments = _program(*parts), _moments(*parts)
  counter = _Counter(experiment, variables, split=split, examples=examples)
  for number, batch in enumerate(sharded_batches(experiment, split)):
    if number == 0:
      counter.choose_bins(moments, batch)
    counter.add(run, batch)
  return counter.result()


class _Counter:
  """The counts so far."""

  def __init__(self, experiment, variables, *, split, examples):
    self._experiment, self._variables = experiment, variables
    self._split, self._keep = split, examples
    self._seen = 0
    self._classes = experiment.dataset.spec.num_classes
    self._confusion = np.zeros((self._classes,) * 2, np.int64)
    self._wrong: list[WrongExample] = []

  def choose_bins(self, moments, batch):
    """Runs the first batch for the moments of its potentials."""
    layers = shapes_of(
      self._experiment.model,
      self._variables,
      jax.eval_shape(self._experiment.dataset.spec.normalize, batch['image']),
    )
    self._check_size(layers)
    self._kinds = {
      name: [kind for kind in _POTENTIALS if kind in layer]
      for name, layer in layers.items()
    }
    self._labels = {k: labels_of(k, layer) for k, layer in layers.items()}
    axes = {k: len(stacked_axes(layer)) for k, layer in layers.items()}
    shapes = {k: layer['spikes'].shape for k, layer in layers.items()}
    # Of the axes that stack blocks.
    self._sides = {k: shapes[k][: axes[k]] for k in layers}
    empty = {
      k: np.zeros((*self._sides[k], *shapes[k][axes[k] + 1 :]), np.int32)
      for k in layers
    }
    where = sharding.replicated(self._experiment.mesh)
    found = jax.device_get(moments(self._variables, batch))
    self._bins = {
      (name, kind): [
        histograms.bins_of(rows)
        for rows in np.split(found[name][kind], len(self._labels[name]))
      ]
      for name in layers
      for kind in self._kinds[name]
    }
    self._fired = jax.device_put(empty, where)
    self._counts = dict.fromkeys(self._bins, np.int64(0))

  def _check_size(self, layers):
    for name, layer in layers.items():
      axes = len(stacked_axes(layer))
      batch, _, *inside = layer['spikes'].shape[axes:]
      if batch * int(np.prod(inside)) > _LARGEST:
        raise InputError(
          f'expected at most {_LARGEST:,} potentials of a layer in a batch, '
          f'got more in {name!r}: set a smaller --config.evaluation.batch_size'
        )
    size = len(self._experiment.dataset.splits[self._split])
    if size > _LARGEST:
      raise InputError(f'expected at most {_LARGEST:,} examples, got {size:,}')

  def _given(self):
    """Returns {layer: {kind: (first, width)}} with the axes of its blocks."""
    tree: dict = {name: {} for name in self._kinds}
    for (name, kind), of_blocks in self._bins.items():
      tree[name][kind] = tuple(
        np.float32(values).reshape(self._sides[name])
        for values in zip(*of_blocks, strict=True)
      )
    return tree

  def add(self, run, batch):
    """Counts a batch."""
    self._fired, found = run(self._variables, self._fired, self._given(), batch)
    found = jax.device_get(found)
    mask = found['mask']
    bad = int((~found['finite'] & mask).sum())
    if bad:
      raise FloatingPointError(
        f'expected finite logits on the split {self._split!r}, got NaN or '
        f'infinity for {bad} of {mask.sum()} examples of a batch: their '
        'predictions mean nothing'
      )
    for name, kind in self._counts:
      counts = found['layers'][name][kind]
      counts = counts.reshape((-1, *counts.shape[-2:])).astype(np.int64)
      self._counts[name, kind] = self._counts[name, kind] + counts
    labels, predictions = found['label'][mask], found['prediction'][mask]
    np.add.at(self._confusion, (labels, predictions), 1)
    self._remember(batch, found)
    self._seen += int(mask.sum())

  def _remember(self, batch, found):
    wrong = found['mask'] & (found['label'] != found['prediction'])
    for place in np.flatnonzero(wrong):
      probability = float(found['probability'][place])
      full = len(self._wrong) >= self._keep
      if full and probability <= self._wrong[-1].probability:
        continue
      example = WrongExample(
        index=self._seen + int(place),
        label=int(found['label'][place]),
        prediction=int(found['prediction'][place]),
        probability=probability,
        image=np.asarray(batch['image'][int(place)]),
      )
      self._wrong.append(example)
      self._wrong.sort(key=lambda each: (-each.probability, each.index))
      del self._wrong[self._keep :]

  def result(self) -> Activity:
    layers = {}
    fired = {
      name: counts.reshape((-1, *counts.shape[len(self._sides[name]) :]))
      for name, counts in jax.device_get(self._fired).items()
    }
    for name, block in in_order(self._labels):
      found = {
        kind: histograms.histogram(
          self._counts[name, kind][block], self._bins[name, kind][block]
        )
        for kind in self._kinds[name]
      }
      layers[self._labels[name][block]] = LayerActivity(
        examples=self._seen,
        fired=fired[name][block],
        before=found['before'],
        after=found.get('after'),
      )
    return Activity(
      examples=self._seen,
      layers=layers,
      confusion=self._confusion,
      wrong=tuple(self._wrong),
    )
