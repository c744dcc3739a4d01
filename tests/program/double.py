"""A configuration of digits that trains in float64: main.py --config=this.

Networks compute in float32. This file makes float64 of it in the code of the
package, so that what differs between two trainings is more than rounding. It
needs JAX_ENABLE_X64=true and `tests/program` on the path of Python. The summary
at the end is left out: it folds, and thresholds are numbers of float32.
"""

import sys
import types
from collections.abc import Callable

import jax.numpy as jnp

from mpbn_jax import report, training  # noqa: F401 - widened before main.py trains
from mpbn_jax.configs import digits
from mpbn_jax.models import network


def widen(set_attribute: Callable) -> None:
  """Makes float64 of float32 in the modules of the package.

  Args:
    set_attribute: as the builtin `setattr`.
  """
  wide = types.SimpleNamespace(**{**vars(jnp), 'float32': jnp.float64})
  for name, module in list(sys.modules.items()):
    if name.startswith('mpbn_jax.') and getattr(module, 'jnp', None) is jnp:
      set_attribute(module, 'jnp', wide)
  set_attribute(network, 'DTYPES', ('float64',))


def get_config():
  """Returns the configuration, and changes the package."""
  widen(setattr)
  report.summarize = lambda *args, **options: None
  config = digits.get_config()
  config.model.dtype = 'float64'
  return config
