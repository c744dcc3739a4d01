"""The registry of normalizations, with one file per place.

A normalization is an entry of `NORMS`: pure functions init, train, evaluate and
fold, in the type for its place (`types.py`). Flax modules (`layers/`) only own
the variables; `folding.py` only walks the tree.
"""

from mpbn_jax.errors import unknown
from mpbn_jax.norm.base import (
  CONSTANTS,
  EPS,
  MOMENTUM,
  Affine,
  BatchNorm,
  along,
  check_floating,
  check_settings,
  moments,
)
from mpbn_jax.norm.conv import BN, BNTT, TAB, TDBN, TEBN
from mpbn_jax.norm.groups import check_groups, in_groups
from mpbn_jax.norm.membrane import (
  AFFINE,
  MPBN_CHANNEL,
  MPBN_ELEMENT,
  separating_threshold,
)
from mpbn_jax.norm.spike import (
  NEUNORM,
  PSP_BN,
  PSP_BN_STEP,
  PSP_LN,
  check_tau_s,
  synaptic_filter,
  synaptic_filter_from,
)
from mpbn_jax.norm.types import (
  Norm,
  NormAfterConvolution,
  NormAfterFiring,
  NormBeforeFiring,
)

NONE = 'none'  # the name for 'no normalization at this place'
PLACES = ('conv', 'membrane', 'spike')  # in the order of the computation

NORMS: dict[str, Norm] = {
  'bn': BN,
  'tdbn': TDBN,
  'bntt': BNTT,
  'tebn': TEBN,
  'tab': TAB,
  'mpbn_channel': MPBN_CHANNEL,
  'mpbn_element': MPBN_ELEMENT,
  'affine': AFFINE,
  'neunorm': NEUNORM,
  'psp_bn': PSP_BN,
  'psp_bn_step': PSP_BN_STEP,
  'psp_ln': PSP_LN,
}


def names_at(place: str) -> list[str]:
  """Returns the names that are valid at a place, including 'none'.

  Args:
    place: one of `PLACES`.

  Example:
    >>> names_at('membrane')
    ['none', 'mpbn_channel', 'mpbn_element', 'affine']
  """
  return [NONE] + [name for name, norm in NORMS.items() if norm.place == place]


def check_norm(name: str, *, place: str) -> None:
  """Raises InputError unless `name` is valid at `place`."""
  if name not in names_at(place):
    raise unknown(f'{place}_norm', name, names_at(place))


__all__ = [
  'CONSTANTS',
  'EPS',
  'MOMENTUM',
  'NONE',
  'NORMS',
  'PLACES',
  'Affine',
  'BatchNorm',
  'Norm',
  'NormAfterConvolution',
  'NormAfterFiring',
  'NormBeforeFiring',
  'along',
  'check_floating',
  'check_groups',
  'check_norm',
  'check_settings',
  'check_tau_s',
  'in_groups',
  'moments',
  'names_at',
  'separating_threshold',
  'synaptic_filter',
  'synaptic_filter_from',
]
