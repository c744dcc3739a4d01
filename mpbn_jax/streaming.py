"""Streaming: a network that reads one frame at a time, with explicit state.

A network given T frames carries the potentials of its neurons from step to
step. `step` does so from call to call, for frames that arrive one by one, with
the same layers and the same recurrence: the loop over time is the caller's.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from mpbn_jax import programs
from mpbn_jax.errors import InputError
from mpbn_jax.layers import LIF, SpikeNorm
from mpbn_jax.layers.carry import COLLECTION
from mpbn_jax.models.network import SpikingNetwork

# {layer: {'u_res': [B, ..., C]}}, nested like the variables; {'a': ...} for a
# synaptic filter; with one more axis in front for n scanned blocks.
State = Mapping[str, Any]
_CALLS = 'calls'


def initial_state(
  model: SpikingNetwork, variables: Mapping, frame: Any
) -> State:
  """Returns the state before the first frame of a sequence.

  Every sequence starts from it: membrane potentials of 0, or of the running
  mean with start='mean', and synaptic filters at 0.

  Args:
    model: the network.
    variables: its variables, folded or not.
    frame: a frame [B, H, W, C], or its shape (`jax.ShapeDtypeStruct`).

  Returns:
    {layer: {'u_res': membrane potentials [B, ..., C]}}, nested as the variables
    are; {'a': postsynaptic potentials} for a synaptic filter (tau_s > 0).

  Raises:
    InputError: the network cannot be streamed; the message names the layer or
      the norm (with parameters per time step, or a memory of its own).
    TypeError: the model is no `SpikingNetwork`.

  Example:
    >>> state = initial_state(model, variables, jnp.zeros((1, 8, 8, 1)))
    >>> state['lif1']['u_res'].shape
    (1, 8, 8, 4)
  """
  model, shape = _one_step(model, frame), tuple(frame.shape)
  # Symbols of two exports cannot be compared, as the cache would.
  known = all(isinstance(side, int) for side in shape)
  make = _compiled_start if known else _start
  return make(model, shape, jnp.dtype(frame.dtype))(variables)


def _start(model, shape, dtype):
  """Returns variables -> the state before the first frame, compiled."""

  def run(variables):
    ran: dict[tuple[str, ...], str] = {}  # {path: name of its potential}

    def note(function, args, kwargs, context):
      module = context.module
      name = _potential_of(module)
      if context.method_name == '__call__' and name:
        ran[module.path] = name
        module.sow('intermediates', _CALLS, jnp.zeros(()))
      return function(*args, **kwargs)

    with nn.intercept_methods(note):
      _, updates = model.apply(
        _without_state(variables),
        jnp.zeros(shape, dtype),
        train=False,
        mutable=[COLLECTION, 'intermediates'],
      )
    found = traverse_util.flatten_dict(updates)
    for path, name in ran.items():
      carried = (COLLECTION, *path, name) in found
      calls = len(found.get(('intermediates', *path, _CALLS), ()))
      _check_calls('/'.join(path), calls if carried else 0)
    return updates.get(COLLECTION, {})

  return jax.jit(run)  # the activations are dead code


# Every sequence starts here: it is compiled once.
_compiled_start = programs.shared(_start)


def step(
  model: SpikingNetwork, variables: Mapping, state: State, frame: jax.Array
) -> tuple[State, jax.Array]:
  """Returns (the state after one more frame, the logits of this step).

  The logits of a whole sequence are the mean of those of its steps (paper,
  Eq. 3). The function is pure; compile it once,

      step = jax.jit(functools.partial(streaming.step, model))

  and donate the state to save its copy. Neurons given the same currents fire
  the same spikes as in a call with all frames. Convolutions may be computed by
  another program, since fewer images are convolved at once, and differ in the
  last bits.

  Args:
    model: the network. Its number of steps does not matter.
    variables: its variables, folded or not.
    state: the state before, from `initial_state` or the last step.
    frame: [B, H, W, C], normalized as for the network.

  Returns:
    (state, logits [B, num_classes]).

  Raises:
    InputError: the state is not that of this network, or of another batch.
    TypeError: the model is no `SpikingNetwork`.

  Example:
    >>> frames = jnp.zeros((1, 3, 8, 8, 1))
    >>> state = initial_state(model, variables, frames[:, 0])
    >>> logits = []
    >>> for t in range(3):
    ...   state, now = step(model, variables, state, frames[:, t])
    ...   logits.append(now)
    >>> whole = model.apply(variables, frames, train=False)
    >>> bool(jnp.allclose(sum(logits) / 3, whole, atol=1e-5))
    True
  """
  state, logits, _ = _step(model, variables, state, frame, record=())
  return state, logits


def recorded_step(
  model: SpikingNetwork, variables: Mapping, state: State, frame: jax.Array
) -> tuple[State, jax.Array, dict[str, jax.Array]]:
  """Returns what `step` returns, and the spikes of every neuron layer.

  Args:
    model: as in `step`, like the others.
    variables: its variables.
    state: the state before.
    frame: [B, H, W, C].

  Returns:
    (state, logits, {layer: spikes [B, 1, ..., C]}), with one more axis for
    scanned blocks, as `evaluation.recorded` has them.

  Raises:
    InputError: as in `step`.
  """
  return _step(model, variables, state, frame, record=('intermediates',))


def _step(model, variables, state, frame, *, record):
  logits, updates = _one_step(model, frame).apply(
    {**_without_state(variables), COLLECTION: state},
    frame,
    train=False,
    mutable=[COLLECTION, *record],
  )
  new = updates.get(COLLECTION, {})
  _check_same(state, new)
  spikes = {
    '/'.join(path[:-1]): sown[0]
    for path, sown in traverse_util.flatten_dict(
      updates.get('intermediates', {})
    ).items()
    if path[-1] == 'spikes'
  }
  return new, logits, spikes


def _one_step(model, frame):
  """Returns the network with one step; checks it and the frame."""
  if not isinstance(model, SpikingNetwork):
    raise TypeError(
      'expected a SpikingNetwork, whose layers are called with [B, T, ..., C], '
      f'got {type(model).__name__}: make it a subclass to stream it'
    )
  if len(frame.shape) != 4:
    raise InputError(
      f'expected one frame [B, H, W, C], got shape {tuple(frame.shape)}: pass '
      'the frames of a sequence one by one'
    )
  return model.clone(num_steps=1)


def _potential_of(module):
  """Returns the name of the potential that a layer carries, or ''."""
  if isinstance(module, LIF):
    return 'u_res'
  return 'a' if isinstance(module, SpikeNorm) and module.tau_s > 0 else ''


def _without_state(variables):
  return {k: v for k, v in variables.items() if k != COLLECTION}


def _check_calls(name, calls):
  if calls == 0:
    raise InputError(
      f'expected the potentials of {name!r}, got none from the nn.scan or '
      "nn.vmap around it: give it variable_axes={'carry': 0, "
      "'intermediates': 0, ...}"
    )
  if calls > 1:
    raise InputError(
      f'expected layers that run once a step, got {name!r}, which runs {calls} '
      'times on one potential: give every call a layer of its own'
    )


def _check_same(state, new):
  """Raises InputError unless a state has the layers and shapes of the next."""
  before, after = (
    {
      path: leaf.shape
      for path, leaf in traverse_util.flatten_dict(tree).items()
    }
    for tree in (state, new)
  )
  for path in sorted(before.keys() | after.keys()):
    if before.get(path) != after.get(path):
      raise InputError(
        f'expected the state of this network and batch, {"/".join(path)} of '
        f'shape {after.get(path)}, got {before.get(path)}: take that of '
        'initial_state(model, variables, frame)'
      )
