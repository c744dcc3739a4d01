"""Layers with small inputs, and with norms as if they were trained."""

import common

from mpbn_jax import LIF, NORMS
from mpbn_jax.layers import ConvNorm, SpikeNorm, Spikes

MEMBRANE = ['none'] + [k for k, n in NORMS.items() if n.place == 'membrane']
LAYERS = {'conv': ConvNorm, 'membrane': LIF, 'spike': SpikeNorm}


def lif_layer(norm, **settings):
  """Returns (layer, variables, currents) of a neuron layer of 6 channels."""
  layer = LIF(norm=norm, **settings)
  currents = common.images(4, 5, 6)[:, None].repeat(3, 1)
  currents = currents + common.images(12, 5, 6, seed=1).reshape(currents.shape)
  variables = common.init(layer, currents)
  if norm != 'none':
    variables = common.random_norms(variables)
  return layer, variables, currents


def array_of(y):
  return y.array if isinstance(y, Spikes) else y


def norm_layer(name, **settings):
  """Returns (layer, variables, x) of a norm with settings of its own."""
  kind = LAYERS[NORMS[name].place]
  if kind is ConvNorm:
    settings = {'features': 3, **settings}
  layer = kind(norm=name, **settings)
  x = common.images(4, 3, 3).reshape((2, 2, 3, 3, 3))
  return layer, common.init(layer, x), x
