"""Deep spiking networks with Membrane Potential Batch Normalization in JAX.

The public names. Nothing here imports a data set, plotting or checkpoint
library: those load when `train`, `evaluate` or `load_folded` is asked for.
"""

import importlib

from mpbn_jax.errors import InputError
from mpbn_jax.folding import (
  fold,
  fold_all,
  fold_convolutions,
  fold_spike_norms,
  strip,
)
from mpbn_jax.layers import LIF
from mpbn_jax.models import MODELS, build_model
from mpbn_jax.neuron import lif_scan, lif_step
from mpbn_jax.norm import NORMS
from mpbn_jax.surrogate import SURROGATES, emit, spike
from mpbn_jax.wiring import readers_of_spikes

__version__ = '0.1.0'

__all__ = [
  'LIF',
  'MODELS',
  'NORMS',
  'SURROGATES',
  'InputError',
  'build_model',
  'emit',
  'evaluate',
  'fold',
  'fold_all',
  'fold_convolutions',
  'fold_spike_norms',
  'lif_scan',
  'lif_step',
  'load_folded',
  'readers_of_spikes',
  'spike',
  'strip',
  'train',
]

# {function: its module}
_ON_DEMAND = {
  'evaluate': 'evaluation',
  'load_folded': 'folded',
  'train': 'training',
}


def __getattr__(name):
  if name in _ON_DEMAND:
    module = importlib.import_module(f'mpbn_jax.{_ON_DEMAND[name]}')
    return getattr(module, name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
