"""Flax modules that own the variables of a spiking network.

Activations are batch-major, [B, T, H, W, C]: (B, T) merges for free and stays
sharded along B. The mathematics is in `neuron.py`, `norm/` and `ops/`.
"""

from mpbn_jax.layers.attributes import Factory
from mpbn_jax.layers.conv_norm import ConvNorm, DenseNorm
from mpbn_jax.layers.lif import LIF
from mpbn_jax.layers.readout import Identity, Readout
from mpbn_jax.layers.shapes import average_pool, mean_over_space, over_time
from mpbn_jax.layers.spike_norm import SpikeNorm
from mpbn_jax.layers.spikes import Spikes

__all__ = [
  'LIF',
  'ConvNorm',
  'DenseNorm',
  'Factory',
  'Identity',
  'Readout',
  'SpikeNorm',
  'Spikes',
  'average_pool',
  'mean_over_space',
  'over_time',
]
