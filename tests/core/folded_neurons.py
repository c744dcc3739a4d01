"""Neurons that are folded, and potentials near their thresholds."""

import functools

import common
import jax.numpy as jnp
import numpy as np

from mpbn_jax import LIF, NORMS

FOLDABLE = [
  name
  for name, norm in NORMS.items()
  if norm.place == 'membrane' and norm.fold is not None
]
LARGEST = np.finfo(np.float32).max
TINY = np.finfo(np.float32).tiny


def neuron_layer(
  name, *, seed=0, adversarial=False, shape=(4, 4, 64), **settings
):
  """Returns (layer, variables) of one neuron layer over maps of a shape."""
  layer = LIF(norm=name, **settings)
  variables = common.init(layer, jnp.zeros((2, 1, *shape)))
  return layer, common.random_norms(
    variables, seed=seed, adversarial=adversarial
  )


def assert_folded_decides_alike(variables, folded, norm, *, v_th=0.5):
  """Checks every potential of every neuron by monotonicity."""
  leaf = folded['threshold']
  theta, polarity = (np.asarray(leaf[k]) for k in ('threshold', 'polarity'))
  infinity = np.float32(np.inf)
  neighbour = np.errstate(over='ignore', under='ignore')(np.nextafter)
  probes = {
    'at': theta,
    'above': neighbour(theta, infinity),
    'below': neighbour(theta, -infinity),
    **{str(u): np.full_like(theta, u) for u in (np.nan, 0, TINY, -TINY)},
    **{str(u): np.full_like(theta, u) for u in (LARGEST, -LARGEST)},
    **{str(u): np.full_like(theta, u) for u in (np.inf, -np.inf)},
  }
  # T = 1: the potential is the current. [probes, T, shape of the layer]
  u = jnp.asarray(np.stack(list(probes.values())))
  expected = polarity * u > polarity * theta
  layer = LIF(norm=norm, v_th=v_th)
  currents = u[:, None] if theta.ndim > 1 else u[:, None, None, None]
  spikes = run(layer, variables, currents)
  fired = np.asarray(spikes).reshape(u.shape) > 0
  for name, got, want in zip(probes, fired, expected, strict=True):
    np.testing.assert_array_equal(got, want, err_msg=name)
  return theta, polarity


def near(theta, shape, rng, *, ulps=64):
  """Returns numbers within `ulps` units in the last place of theta."""
  theta = np.where(np.isfinite(theta), theta, 0.5).astype(np.float32)
  key = theta.view(np.int32)
  key = np.where(key < 0, key ^ 0x7FFFFFFF, key)
  key = key + rng.integers(-ulps, ulps + 1, shape + theta.shape)
  return np.where(key < 0, key ^ 0x7FFFFFFF, key).astype(np.int32).view('f4')


def currents_near_threshold(folded, *, batch, steps, rng, tau=0.25):
  """Returns currents that put every u[t] within 64 ulp of its threshold."""
  leaf = folded['threshold']
  theta, polarity = (np.asarray(leaf[k]) for k in ('threshold', 'polarity'))
  u_res = np.zeros((batch, *theta.shape), np.float32)
  currents = []
  for _ in range(steps):
    current = near(theta, (batch,), rng) - np.float32(tau) * u_res
    u = np.float32(tau) * u_res + current
    u_res = np.where(polarity * u > polarity * theta, np.float32(0), u)
    currents.append(current)
  return jnp.asarray(np.stack(currents, 1))


@functools.partial(common.as_users_compile, static_argnums=0)
def run(layer, variables, currents):
  return layer.apply(variables, currents, train=False)
