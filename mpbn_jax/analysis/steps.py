"""Accuracy of a trained network with other numbers of time steps."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from mpbn_jax import config as config_lib
from mpbn_jax import norm
from mpbn_jax.datasets import load_dataset
from mpbn_jax.errors import InputError
from mpbn_jax.evaluation import compare, evaluate
from mpbn_jax.experiment import Experiment
from mpbn_jax.models import build_model

STEPS = (1, 2, 4, 8)
_SPLIT = 'test'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
  """A network evaluated with one number of time steps.

  Attributes:
    num_steps: T.
    accuracy: on the test split.
    loss: cross-entropy of the mean logits over T.
    firing_rate: {layer: spikes per neuron and step}.
    folded_accuracy: accuracy of the folded network; None if nothing folds.
    spikes_compared: neurons times steps times examples; None likewise.
    spikes_differing: how many spikes the fold changes; None likewise.
  """

  num_steps: int
  accuracy: float
  loss: float
  firing_rate: dict[str, float]
  folded_accuracy: float | None
  spikes_compared: int | None
  spikes_differing: int | None

  @property
  def mean_firing_rate(self) -> float:
    """Spikes per neuron and step: the mean over layers."""
    return float(np.mean(list(self.firing_rate.values())))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
  """A network evaluated with several numbers of time steps.

  Attributes:
    trained: the number of time steps that it was trained with.
    examples: number of test examples.
    points: one per number of time steps, in ascending order.
  """

  trained: int
  examples: int
  points: tuple[Point, ...]

  def to_json(self) -> dict[str, Any]:
    """Returns JSON-serializable fields, with mean firing rates."""
    points = [
      {**dataclasses.asdict(p), 'mean_firing_rate': p.mean_firing_rate}
      for p in self.points
    ]
    return {
      'trained': self.trained,
      'examples': self.examples,
      'points': points,
    }

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> 'Curve':
    """Returns the curve that `to_json` wrote; other fields are not read."""
    names = [field.name for field in dataclasses.fields(Point)]
    return cls(
      trained=values['trained'],
      examples=values['examples'],
      points=tuple(
        Point(**{name: point[name] for name in names})
        for point in values['points']
      ),
    )


def default_steps(trained: int) -> tuple[int, ...]:
  """Returns `STEPS` and the number of time steps of training, ascending.

  Example:
    >>> default_steps(6)
    (1, 2, 4, 6, 8)
  """
  return tuple(sorted({*STEPS, trained}))


def curve(
  experiment: Experiment,
  variables: Mapping,
  *,
  steps: Sequence[int] | None = None,
  folded: Mapping | None = None,
) -> Curve:
  """Returns a trained network's test accuracy for each number of time steps.

  The network is built again with each T and keeps its variables, running
  statistics included: those are of the T of training. Images are shown T times;
  event recordings are divided into T frames.

  Args:
    experiment: from `experiment.build`, with the T of training.
    variables: variables of its model.
    steps: numbers of time steps; None takes `default_steps`.
    folded: the same variables folded, to compare with; None compares nothing.

  Raises:
    InputError: a T is not positive, or appears twice; the network has
      parameters per time step (names them), or the data set has frames for one
      T only, and another T is asked for.
  """
  trained = experiment.config.model.num_steps
  steps = default_steps(trained) if steps is None else tuple(sorted(steps))
  _check(experiment, steps)
  # All are built first: what cannot be evaluated is refused within seconds.
  experiments = [_with_steps(experiment, variables, t) for t in steps]
  points = tuple(_point(each, variables, folded) for each in experiments)
  size = len(experiment.dataset.splits[_SPLIT])
  return Curve(trained=trained, examples=size, points=points)


def _check(experiment, steps):
  if not steps or min(steps) < 1 or len(set(steps)) < len(steps):
    raise InputError(
      'steps must be different positive numbers of time steps, got '
      f'{list(steps)}'
    )
  settings = experiment.config.model
  trained = settings.num_steps
  per_step = [
    f'{place}_norm = {settings[f"{place}_norm"]!r}'
    for place in norm.PLACES
    if getattr(norm.NORMS.get(settings[f'{place}_norm']), 'per_time_step', '')
  ]
  if per_step and set(steps) != {trained}:
    raise InputError(
      'expected norms that treat all time steps alike, to evaluate with other '
      f'T than the {trained} of training, got {" and ".join(per_step)}, with '
      f'parameters for each of {trained} steps: train a run for each T, or '
      f'evaluate with T = {trained} alone'
    )


def _with_steps(experiment, variables, num_steps):
  """Returns the experiment with another T, to be evaluated only."""
  trained = experiment.config.model.num_steps
  if num_steps == trained:
    return experiment
  config = experiment.config.copy_and_resolve_references()
  config.model.num_steps = num_steps
  dataset = experiment.dataset
  if dataset.spec.frames:
    try:
      dataset = load_dataset(config.data, num_steps=num_steps)
    except InputError as error:
      raise InputError(
        f'expected the recordings of {config.data.name!r} in {num_steps} '
        f'frames, to evaluate with T = {num_steps}, got an error ({error}); or '
        f'leave T = {num_steps} out'
      ) from error
  model = build_model(config.model)
  _check_shapes(model, variables, dataset, trained)
  return dataclasses.replace(
    experiment, config=config, model=model, dataset=dataset
  )


def _check_shapes(model, variables, dataset, trained):
  """Raises InputError if a layer of the network has a parameter per step."""
  x = jax.ShapeDtypeStruct((1, *dataset.example_shape), jnp.float32)
  key = jax.random.key(0)
  wanted = jax.eval_shape(lambda x: model.init(key, x, train=False), x)
  ours, theirs = (
    {
      name: leaf.shape
      for name, leaf in traverse_util.flatten_dict(tree, sep='/').items()
    }
    for tree in (variables, wanted)
  )
  changed = [
    f'{name}: {ours.get(name)} -> {theirs.get(name)}'
    for name in sorted(ours.keys() | theirs.keys())
    if ours.get(name) != theirs.get(name)
  ]
  if changed:
    raise InputError(
      'expected variables of the same shapes for every T, got others for T = '
      f'{model.num_steps} than for the {trained} of training '
      f'({config_lib.listed(changed)}): train a run for each T'
    )


def _point(experiment, variables, folded):
  nothing = folded is None
  found = compare(
    experiment, variables, variables if nothing else folded, split=_SPLIT
  )
  return Point(
    num_steps=experiment.config.model.num_steps,
    accuracy=found.accuracy,
    loss=evaluate(experiment, variables, split=_SPLIT)['loss'],
    firing_rate=found.firing_rate,
    folded_accuracy=None if nothing else found.other_accuracy,
    spikes_compared=None if nothing else found.spikes_compared,
    spikes_differing=None if nothing else found.spikes_differing,
  )
