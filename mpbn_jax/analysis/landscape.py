"""The loss around a trained network, along filter-normalized directions."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from mpbn_jax import losses, programs, sharding
from mpbn_jax.datasets.base import Subset
from mpbn_jax.datasets.batches import evaluation_batches
from mpbn_jax.errors import InputError
from mpbn_jax.experiment import Experiment
from mpbn_jax.studies.intervals import mean_with_interval

RADII = (0.1, 0.25, 0.5, 1.0)
DIRECTIONS = 20
EXAMPLES = 512
SIDE = 9  # points of the 2D landscape along each direction
_NAME = 'landscape'  # of the split


@dataclasses.dataclass(frozen=True)
class Landscape:
  """The loss around a network.

  Attributes:
    loss: at the network itself.
    alphas: [A] multiples of a direction, 0 among them.
    lines: [directions, A] losses along each direction.
    grid: [n] multiples of the first two directions.
    plane: [n, n] losses at grid[i] * first + grid[j] * second.
    examples: number of training examples, without augmentation.
    seed: of the directions.
  """

  loss: float
  alphas: np.ndarray
  lines: np.ndarray
  grid: np.ndarray
  plane: np.ndarray
  examples: int
  seed: int

  def flatness(self) -> list[dict[str, Any]]:
    """Returns how far the loss rises at each radius, flat networks little.

    'mean' is the mean over directions of (loss(+r) + loss(-r)) / 2 - loss, with
    the 95 % bootstrap interval [low, high] over directions; 'largest' is the
    largest rise in any direction. No second derivatives are taken: surrogate
    gradients are the gradients of no function.
    """
    rows = []
    for radius in sorted({abs(a) for a in self.alphas} - {0}):
      at = np.flatnonzero(np.isclose(np.abs(self.alphas), radius))
      rises = self.lines[:, at] - self.loss
      mean, low, high = mean_with_interval(rises.mean(1))
      rows.append(
        {
          'radius': float(radius),
          'mean': mean,
          'low': low,
          'high': high,
          'largest': float(rises.max()),
        }
      )
    return rows

  def to_json(self) -> dict[str, Any]:
    """Returns JSON-serializable fields, and the flatness."""
    fields = {
      name: np.round(value, 6).tolist() if hasattr(value, 'tolist') else value
      for name, value in dataclasses.asdict(self).items()
    }
    return {**fields, 'flatness': self.flatness()}

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> 'Landscape':
    """Returns the landscape that `to_json` wrote; other fields are not read."""
    return cls(
      loss=values['loss'],
      **{
        name: np.array(values[name])
        for name in ('alphas', 'lines', 'grid', 'plane')
      },
      examples=values['examples'],
      seed=values['seed'],
    )


def filter_normalized(key: jax.Array, params: Mapping) -> dict:
  """Returns a random direction in which every filter has its kernel's norm.

      d = n * |w| / |n|,  n ~ N(0, 1), for the weights w of an output channel

  Without it, a network whose weights are larger would look flatter, although
  scaling a kernel before a normalization changes nothing. Biases, and
  parameters of norms and neurons, stay as they are. Source: Li et al., NeurIPS
  2018, 1712.09913, Sec. 4.

  Args:
    key: random key.
    params: parameters of a network.

  Example:
    >>> params = {'head': {'kernel': jnp.array([[3.0, 0.0], [4.0, 2.0]])}}
    >>> direction = filter_normalized(jax.random.key(0), params)
    >>> jnp.linalg.norm(direction['head']['kernel'], axis=0)
    Array([5., 2.], dtype=float32)
  """
  flat = traverse_util.flatten_dict(params)
  directions = {}
  for index, (path, leaf) in enumerate(sorted(flat.items())):
    if path[-1] != 'kernel':
      directions[path] = jnp.zeros_like(leaf)
      continue
    noise = jax.random.normal(jax.random.fold_in(key, index), leaf.shape)
    # Blocks that a program scans over are stacked on a first axis.
    axes = tuple(range(leaf.ndim % 2, leaf.ndim - 1))
    of_filter, of_noise = (
      jnp.sqrt(jnp.sum(jnp.square(x), axes, keepdims=True))
      for x in (leaf, noise)
    )
    directions[path] = noise * of_filter / of_noise
  return traverse_util.unflatten_dict(directions)


@programs.shared
def _loss_at(model, spec):
  @jax.jit
  def sums(variables, directions, multiples, batch):
    def moved(leaf, *along):
      return leaf + sum(m * d for m, d in zip(multiples, along, strict=True))

    params = jax.tree.map(moved, variables['params'], *directions)
    logits = model.apply(
      {**variables, 'params': params},
      spec.normalize(batch['image']),
      train=False,
    )
    each = losses.cross_entropy(logits, batch['label'])
    return jnp.where(batch['mask'], each, 0).sum()

  return sums


def landscape(
  experiment: Experiment,
  variables: Mapping,
  *,
  radii: Sequence[float] = RADII,
  directions: int = DIRECTIONS,
  examples: int = EXAMPLES,
  side: int = SIDE,
  seed: int = 0,
) -> Landscape:
  """Returns the training loss around a trained network.

  The statistics stay as they are, as in inference, and the examples are not
  augmented. They lie evenly spaced in the training split.

  Args:
    experiment: from `experiment.build`.
    variables: variables of its model, not folded: thresholds would be those of
      the unmoved network.
    radii: distances, as multiples of a filter-normalized direction.
    directions: how many random directions; at least 3, for an interval.
    examples: how many training examples; all if there are fewer.
    side: points of the plane along each direction, from -1 to 1; odd.
    seed: of the directions.

  Raises:
    InputError: folded variables, or an argument out of range.
  """
  _check(variables, radii, directions, examples, side)
  dataset = experiment.dataset
  train = dataset.splits['train']
  count = min(examples, len(train))
  chosen = Subset(train, np.linspace(0, len(train) - 1, count).astype(int))
  dataset = dataclasses.replace(dataset, splits={_NAME: chosen})
  devices = experiment.mesh.size
  size = min(experiment.config.evaluation.batch_size, count)
  size = max(1, size // devices) * devices
  batches = [
    sharding.shard_batch(batch, experiment.mesh)
    for batch in evaluation_batches(dataset, _NAME, batch_size=size)
  ]
  sums = _loss_at(experiment.model, experiment.dataset.spec)
  keys = jax.random.split(jax.random.key(seed), directions)
  make = jax.jit(filter_normalized)
  vectors = [make(key, variables['params']) for key in keys]

  def loss(first, a, second, b):
    along, multiples = (first, second), jnp.float32([a, b])
    total = sum(
      float(sums(variables, along, multiples, batch)) for batch in batches
    )
    return total / count

  alphas = np.array([-r for r in sorted(radii)[::-1]] + [0.0, *sorted(radii)])
  grid = np.linspace(-1, 1, side)
  first, second = vectors[:2]
  return Landscape(
    loss=loss(first, 0.0, second, 0.0),
    alphas=alphas,
    lines=np.array(
      [[loss(v, a, second, 0.0) for a in alphas] for v in vectors]
    ),
    grid=grid,
    plane=np.array([[loss(first, a, second, b) for b in grid] for a in grid]),
    examples=count,
    seed=seed,
  )


def _check(variables, radii, directions, examples, side):
  if 'threshold' in variables:
    raise InputError(
      'expected variables that are not folded, got folded ones, whose '
      'thresholds would not move: pass those of the training checkpoint'
    )
  if not len(radii) or not min(radii) > 0 or len(set(radii)) < len(radii):
    raise InputError(
      f'radii must be positive and different, got {tuple(radii)}'
    )
  for name, value, least in (
    ('directions', directions, 3),
    ('examples', examples, 1),
    ('side', side, 3),
  ):
    if value < least:
      raise InputError(f'{name} must be at least {least}, got {value}')
  if side % 2 == 0:
    raise InputError(f'side must be odd, to have the network in it, got {side}')
