"""Golden networks in evaluation, and folded: the same logits and spikes."""

import functools

import common
import jax.numpy as jnp
import numpy as np
import pytest

from mpbn_jax import fold, fold_convolutions, strip
from mpbn_jax.evaluation import recorded

pytestmark = pytest.mark.slow


@functools.cache
def _golden_run(file):
  """Returns (run, variables, x, logits, layers) of the unfolded network."""
  _, model, variables, x, _ = common.golden(file)
  run = common.as_users_compile(lambda v, x: recorded(model, v, x))
  return run, variables, x, *run(variables, x)


NETWORKS = pytest.mark.parametrize('file', common.GOLDEN_NETWORKS)


@NETWORKS
def test_network_evaluates_to_the_golden_logits(file):
  *_, arrays = common.golden(file)
  _, _, _, logits, _ = _golden_run(file)
  np.testing.assert_allclose(logits, arrays['eval_logits'], rtol=0, atol=1e-4)


@NETWORKS
def test_folded_convolutions_agree_layer_by_layer(file):
  run, variables, x, logits, layers = _golden_run(file)
  other, folded_layers = run(strip(fold_convolutions(fold(variables))), x)
  for name, layer in layers.items():
    # Every golden decision is 4e-6 from its threshold: rounding flips none, so
    # each layer reads the unfolded network's spikes.
    folded = folded_layers[name]
    np.testing.assert_array_equal(layer['spikes'], folded['spikes'], name)
    error = jnp.abs(layer['currents'] - folded['currents']).max()
    assert error <= 1e-5 * jnp.abs(layer['currents']).max(), name
  change = float(jnp.abs(other - logits).max())
  print(f'{file}: logits change by {change:.2g}')
  assert change <= 1e-4


@NETWORKS
def test_folded_golden_network_fires_the_same_spikes(file):
  run, variables, x, logits, layers = _golden_run(file)
  again, folded_layers = run(strip(fold(variables)), x)
  np.testing.assert_array_equal(logits, again)
  for name in layers:
    np.testing.assert_array_equal(
      layers[name]['spikes'], folded_layers[name]['spikes']
    )
