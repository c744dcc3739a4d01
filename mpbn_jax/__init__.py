"""Deep spiking networks with Membrane Potential Batch Normalization in JAX.

Public names are imported on first use: importing the package alone loads no
JAX, no data set, no plotting and no checkpoint library.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from mpbn_jax.errors import InputError
  from mpbn_jax.evaluation import evaluate
  from mpbn_jax.folded import load_folded
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
  from mpbn_jax.runs import load_run
  from mpbn_jax.surrogate import SURROGATES, emit, spike
  from mpbn_jax.training import train
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
  'load_run',
  'readers_of_spikes',
  'spike',
  'strip',
  'train',
]

# {public name: the module that defines it}
_MODULES = {
  'InputError': 'errors',
  'LIF': 'layers',
  'MODELS': 'models',
  'NORMS': 'norm',
  'SURROGATES': 'surrogate',
  'build_model': 'models',
  'emit': 'surrogate',
  'evaluate': 'evaluation',
  'fold': 'folding',
  'fold_all': 'folding',
  'fold_convolutions': 'folding',
  'fold_spike_norms': 'folding',
  'lif_scan': 'neuron',
  'lif_step': 'neuron',
  'load_folded': 'folded',
  'load_run': 'runs',
  'readers_of_spikes': 'wiring',
  'spike': 'surrogate',
  'strip': 'folding',
  'train': 'training',
}


def __getattr__(name: str) -> Any:
  if name in _MODULES:
    module = importlib.import_module(f'mpbn_jax.{_MODULES[name]}')
    globals()[name] = getattr(module, name)
    return globals()[name]
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
