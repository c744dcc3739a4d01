"""Compiled-ahead networks (StableHLO through `jax.export`), one file each.

Such a file needs JAX and nothing else: images in uint8 as a data set stores
them, logits out, for any batch size, on CPU, GPU and TPU. Normalization and
variables are inside.
"""

import datetime
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

import mpbn_jax
from mpbn_jax import streaming
from mpbn_jax.datasets.base import Spec
from mpbn_jax.errors import InputError, unknown
from mpbn_jax.evaluation import recorded
from mpbn_jax.models.network import SpikingNetwork

PLATFORMS = ('cpu', 'cuda', 'tpu')
OUTPUTS = ('logits', 'spikes')


def export_network(
  model: SpikingNetwork,
  variables: Mapping,
  *,
  spec: Spec,
  outputs: str = 'logits',
  platforms: Sequence[str] = PLATFORMS,
) -> export.Exported:
  """Returns the program of a whole sequence, images -> logits.

  Args:
    model: the network.
    variables: its variables, usually folded and stripped. They become
      constants; the predicate of a folded neuron decides alike in any program.
    spec: the data set; its normalization is part of the program.
    outputs: 'logits', or 'spikes' for (logits, {layer: spikes}) with boolean
      spikes [B, T, ..., C], as `evaluation.recorded` names them.
    platforms: platforms on which the program can run.

  Returns:
    A program whose `call` takes uint8 images [B, H, W, C], or frames [B, T, H,
    W, C] if the data set has frames, of any batch size B, and returns logits
    float32 [B, num_classes]. `serialize` makes bytes of it; `fun_name` says
    with which versions, on which platform and when it was made.

  Raises:
    InputError: an unknown output.

  Example:
    >>> from mpbn_jax.datasets import get_spec
    >>> exported = export_network(model, variables, spec=get_spec('digits'))
    >>> exported.call(jnp.zeros((3, 8, 8, 1), jnp.uint8)).shape
    (3, 10)
  """
  if outputs not in OUTPUTS:
    raise unknown('outputs', outputs, OUTPUTS)
  variables = _constants(variables)

  def network(images):
    x = spec.normalize(images)
    if outputs == 'logits':
      return model.apply(variables, x, train=False)
    logits, layers = recorded(model, variables, x)
    return logits, {name: layer['spikes'] > 0 for name, layer in layers.items()}

  images = (_any_batch(spec.example_shape(model.num_steps)),)
  return _exported(network, images, platforms)


def export_step(
  model: SpikingNetwork,
  variables: Mapping,
  *,
  spec: Spec,
  platforms: Sequence[str] = PLATFORMS,
) -> tuple[export.Exported, export.Exported]:
  """Returns the programs of a stream, see `streaming`.

  Args:
    model: as in `export_network`, like the others.
    variables: its variables.
    spec: the data set.
    platforms: platforms on which the programs can run.

  Returns:
    (start, step): start(frame) -> the state before the first frame, of which it
    reads the batch size; step(state, frame) -> (state, logits of this step).
    Frames are uint8 [B, H, W, C].

  Raises:
    InputError: the network cannot be streamed.

  Example:
    >>> from mpbn_jax.datasets import get_spec
    >>> start, step = export_step(model, variables, spec=get_spec('digits'))
    >>> frame = jnp.zeros((3, 8, 8, 1), jnp.uint8)
    >>> state, logits = step.call(start.call(frame), frame)
    >>> state['lif1']['u_res'].shape, logits.shape
    ((3, 8, 8, 4), (3, 10))
  """
  variables = _constants(variables)

  def start(frame):
    x = spec.normalize(frame)
    return streaming.initial_state(model, variables, x)

  def step(state, frame):
    return streaming.step(model, variables, state, spec.normalize(frame))

  frame = _any_batch(spec.image_shape)
  state = jax.eval_shape(start, frame)
  return (
    _exported(start, (frame,), platforms),
    _exported(step, (state, frame), platforms),
  )


def load_exported(path: pathlib.Path | str) -> export.Exported:
  """Returns the program in a file.

  Raises:
    InputError: there is none, or it cannot be read, or not by this version of
      JAX.
  """
  path = pathlib.Path(path)
  try:
    return export.deserialize(bytearray(path.read_bytes()))
  # The reader checks nothing: damage surfaces as any error.
  except Exception as error:
    reason = getattr(error, 'strerror', None) or str(error)
    reason = reason.strip().split('\n')[0] or type(error).__name__
    raise InputError(
      f'expected a program that jax.export wrote in {path}, which JAX '
      f'{jax.__version__} cannot read ({reason}): export the network again'
    ) from error


def _constants(variables):
  """Returns variables in NumPy: a program belongs to no device."""
  return jax.tree.map(np.asarray, jax.device_get(dict(variables)))


def _any_batch(shape):
  """Returns the type of uint8 images of any batch size."""
  (batch,) = export.symbolic_shape('b')
  return jax.ShapeDtypeStruct((batch, *shape), jnp.uint8)


def _exported(
  function: Callable, arguments: Any, platforms: Sequence[str]
) -> export.Exported:
  # The name travels with the file.
  function.__name__ += (
    f' (mpbn_jax {mpbn_jax.__version__}, jax {jax.__version__}, made on '
    f'{jax.default_backend()}, {datetime.datetime.now(datetime.UTC):%Y-%m-%d})'
  )
  program = export.export(jax.jit(function), platforms=tuple(platforms))
  try:
    return program(*arguments)
  except jax.errors.InconclusiveDimensionOperation as error:
    reason = str(error).strip().split('\n')[0]
    raise InputError(
      'expected a network that treats batches of any size alike, got a '
      f'decision about the size b: {reason}'
    ) from error
