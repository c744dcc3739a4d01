"""Graphs of small networks whose folded variables are made up."""

import functools

import common
import jax
import jax.numpy as jnp
import numpy as np

from mpbn_jax import build_model, fold_all, readers_of_spikes, strip
from mpbn_jax.evaluation import recorded
from mpbn_jax.graph import network_graph
from mpbn_jax.interop.nir import nir_names, read_nir, write_nir
from mpbn_jax.interop.nir_interpreter import run_nir

STEPS = 3
CHANNELS = 2


@functools.cache
def network(name='spiking_cnn', side=None, **settings):
  """Returns (model, folded variables, frames [2, T, H, W, C]).

  No fold is compiled: the variables have the shapes of a folded and stripped
  network's, and random values, some polarities negative.
  """
  side = common.SIDES[name] if side is None else side
  model = build_model(
    {'name': name, 'width': 2, 'num_steps': STEPS, 'unroll': False, **settings}
  )
  frames = np.random.default_rng(1).normal(
    size=(2, STEPS, side, side, CHANNELS)
  )
  frames = frames.astype(np.float32)

  def folded(key):
    variables = model.init(key, frames, train=False)
    norms = {model.conv(1).norm, model.lif().norm, model.lif().spike_norm}
    if norms == {'none'}:
      return variables
    readers = None
    if model.lif().spike_norm != 'none':
      readers = readers_of_spikes(model, variables, frames)
    return strip(fold_all(variables, readers=readers))

  shapes = jax.eval_shape(folded, jax.random.key(0))
  return model, made_up(model, shapes), frames


def made_up(model, shapes):
  """Returns random values of folded variables."""
  rng = np.random.default_rng(0)

  def leaf(path, like):
    name, shape = path[-1].key, like.shape
    if jnp.issubdtype(like.dtype, jnp.integer):  # marks of absorbed norms
      return np.ones(shape, like.dtype)
    if name == 'v_th' and path[0].key == 'threshold':
      return np.full(shape, model.lif().v_th, np.float32)
    fan_in = np.prod(shape[:-1]) if name == 'kernel' else 1
    values = {
      'kernel': rng.normal(0, (2 / fan_in) ** 0.5, shape),
      'threshold': rng.normal(0.2, 0.1, shape),
      'polarity': np.where(rng.random(shape) < 0.2, -1, 1),
      'start': 0.1,
      'tau_logit': -0.7,
      'scale': rng.uniform(0.5, 1.5, shape),
      'factor': rng.uniform(0.5, 1.5, shape),
      'v_th': rng.uniform(0.2, 0.6, shape),
    }
    value = values.get(name, rng.normal(0, 0.2, shape))
    return np.asarray(value, np.float32).reshape(shape)

  return jax.tree_util.tree_map_with_path(leaf, shapes)


def graph_of(model, variables, frames):
  """Returns the graph of a network that reads these frames."""
  return network_graph(model, variables, frame_shape=frames.shape[2:])


def run_network(model, variables, frames):
  """Returns (spikes of every neuron layer, logits) of the network itself.

  Operation by operation: compiling whole networks takes much longer.
  """
  if hasattr(model, 'unstacked'):
    model, variables = model.unstacked(variables)
  logits, layers = recorded(model, variables, jnp.asarray(frames))
  spikes = {name: np.asarray(leaf['spikes']) for name, leaf in layers.items()}
  return spikes, np.asarray(logits)


def channels_first(array):
  """Returns [B, T, C, H, W] of [B, T, H, W, C] or [B, T, C]."""
  array = np.asarray(array)
  if array.ndim == 3:
    return array[..., None, None]
  return np.moveaxis(array, -1, 2)


def assert_nir_fires(graph, frames, spikes, logits, path, *, dt=1e-3):
  """Compares the file with a network, each layer fed the network's spikes."""
  write_nir(path, graph, dt=dt)
  read, names = read_nir(path), nir_names(graph)
  own = {names[name]: channels_first(layer) for name, layer in spikes.items()}
  inputs = channels_first(frames)
  fed, outputs = run_nir(read, inputs, dt=dt, given_spikes=own)
  free, _ = run_nir(read, inputs, dt=dt)
  assert fed.keys() == own.keys()
  total = sum(layer.size for layer in own.values())
  flips = sum(int((fed[name] != own[name]).sum()) for name in own)
  freely = sum(int((free[name] != own[name]).sum()) for name in own)
  print(f'{flips} flips fed, {freely} free running, of {total}')
  assert flips < 1e-6 * total
  mean = outputs.mean(1).reshape(logits.shape)
  np.testing.assert_allclose(mean, logits, rtol=0, atol=1e-5)
  return read
