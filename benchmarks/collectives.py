"""Collectives of a compiled training step: how many, and how large.

Read from the text that XLA compiles for virtual devices of a CPU. Compilers for
other platforms may combine them differently.
"""

import math
import re
from typing import NamedTuple
from unittest import mock

import jax
import networks

from mpbn_jax import sharding

_NAMES = (
  *('all-reduce', 'all-gather', 'all-to-all'),
  *('collective-permute', 'reduce-scatter'),
)
_COLLECTIVE = re.compile(
  rf'= (\(.*?\)|\S+) ({"|".join(_NAMES)})(?:-start)?\(', re.MULTILINE
)
_ARRAY = re.compile(r'\b[a-z]+(\d+)\[([\d,]*)\]')


class Collective(NamedTuple):
  """A collective of a compiled program.

  Attributes:
    kind: its name in XLA.
    size: size of its result in bytes.
  """

  kind: str
  size: int


def collectives(text: str) -> list[Collective]:
  """Returns the collectives in the text of a compiled program, in its order.

  One in a loop counts once.

  Example:
    >>> collectives('%a = (f32[3]{0}, f32[2,2]{1,0}) all-reduce(%b, %c)')
    [Collective(kind='all-reduce', size=28)]
  """
  return [
    Collective(kind, sum(_size(*array) for array in _ARRAY.findall(result)))
    for result, kind in _COLLECTIVE.findall(text)
  ]


def _size(bits, shape):
  values = math.prod(int(side) for side in shape.split(',') if side)
  return int(bits) // 8 * values


def compiled_step(network, images, labels, *, devices: int):
  """Returns a training step (SGD), compiled for devices that share the batch.

  The program is that of accelerators: convolutions are left to XLA, and batch
  statistics are taken in one pass.

  Args:
    network: the network.
    images: [B, ...], arrays or their shapes.
    labels: [B], likewise.
    devices: how many of the CPU's.
  """
  mesh = sharding.make_mesh(jax.devices('cpu')[:devices])
  batch, whole = sharding.along_batch(mesh), sharding.replicated(mesh)
  variables = jax.eval_shape(
    lambda x: network.init(jax.random.key(0), x, train=False), images
  )
  step = jax.jit(
    networks.step_of(network),
    in_shardings=(whole, batch, batch),
    out_shardings=whole,
    donate_argnums=0,
  )
  with mock.patch.object(jax, 'default_backend', return_value='tpu'):
    return step.lower(variables, images, labels).compile()
