"""Conventions against what the programs that they stand for count.

NeuroBench 2.3.0 (`single_layer_MACs`) and SpikingJelly 2.0.0 (`ACCounter`,
`MACCounter`) were run on the arrays below, as PyTorch's Conv2d with a bias,
avg_pool2d(x, 2), its mean over space, and x + x, for 4 examples together.
"""

import numpy as np
import pytest

from mpbn_jax.analysis.conventions import CONVENTIONS
from mpbn_jax.analysis.inputs import Inputs, Output
from mpbn_jax.analysis.operations import count
from mpbn_jax.graph import Node

EXAMPLES = 4
# {program: {input: {node: (MACs, ACs) of 4 examples}}}
COUNTED = {
  'neurobench': {
    'spikes': {'conv': (0, 3280)},
    'real': {'conv': (9361, 0)},
  },
  'spikingjelly': {
    'spikes': {
      'conv': (0, 3635),
      'pool': (0, 864),
      'mean': (0, 256),
      'add': (0, 780),
    },
    'real': {
      'conv': (17280, 0),
      'pool': (0, 864),
      'mean': (0, 256),
      'add': (0, 1344),
    },
  },
}


def _arrays():
  """Returns (spikes, real numbers [B, H, W, C], kernel)."""
  rng = np.random.default_rng(0)
  spikes = (rng.random((EXAMPLES, 6, 7, 8)) < 0.3).astype('f4')
  real = rng.normal(0, 1, (EXAMPLES, 6, 7, 8)).astype('f4')
  real[rng.random(real.shape) < 0.2] = 0
  kernel = rng.normal(0, 1, (3, 3, 4, 10)).astype('f4')
  kernel[rng.random(kernel.shape) < 0.1] = 0
  return {'spikes': spikes, 'real': real}, kernel


def _nodes(kernel):
  of_input = {'inputs': ('input',)}
  return {
    'conv': Node(
      name='conv',
      kind='convolution',
      shape=(3, 4, 10),
      settings={'stride': 2, 'padding': 1, 'groups': 2},
      arrays={'kernel': kernel, 'bias': np.ones(10, 'f4')},
      **of_input,
    ),
    'pool': Node(
      name='pool',
      kind='average_pool',
      shape=(3, 3, 8),
      settings={'window': 2, 'stride': 2, 'padding': 0, 'ceil_mode': False},
      **of_input,
    ),
    'mean': Node(
      name='mean', kind='mean_over_space', shape=(8,), inputs=('pool',)
    ),
    'add': Node(
      name='add', kind='add', shape=(6, 7, 8), inputs=('input', 'input')
    ),
  }


@pytest.mark.parametrize('kind', ['spikes', 'real'])
@pytest.mark.parametrize('program', COUNTED)
def test_a_convention_counts_what_its_program_counts(program, kind):
  arrays, kernel = _arrays()
  x = arrays[kind]
  pooled = x[:, :, :6].reshape(EXAMPLES, 3, 2, 3, 2, 8).mean((2, 4))
  outputs = {
    name: Output(
      nonzero=(value != 0).sum(0, keepdims=True),
      binary=bool(np.isin(value, (0, 1)).all()),
      ternary=bool(np.isin(value, (-1, 0, 1)).all()),
    )
    for name, value in (('input', x), ('pool', pooled))
  }
  inputs = Inputs(examples=EXAMPLES, outputs=outputs, static=False)
  nodes = _nodes(kernel)
  for name, expected in COUNTED[program][kind].items():
    found = count(nodes[name], inputs, CONVENTIONS[program], steps=1)
    assert tuple(EXAMPLES * each for each in found) == expected, name
