"""Plain jnp: every registered norm in training mode, for autodiff.

Each is (params, stats, x [B, T, H, W, C] or, of a membrane norm, [B, H, W, C])
-> y, with eps 1e-5.
"""

import jax.numpy as jnp
import numpy as np


def _plain_bn(params, x, axes):
  mean = jnp.mean(x, axes, keepdims=True)
  deviation = jnp.sqrt(jnp.var(x, axes, keepdims=True) + 1e-5)
  return (x - mean) / deviation * params['scale'] + params.get('bias', 0)


def _plain_psp(params, a, axes):
  root = jnp.sqrt(jnp.mean(a**2, axes, keepdims=True) + 1e-5)
  return params['scale'] * a / root


def _activity(s):
  """The closed form: every step's mean over C, fading by 0.9 a step."""
  lags = np.subtract.outer(np.arange(s.shape[1]), np.arange(s.shape[1]))
  fading = np.where(lags >= 0, 0.9 ** np.maximum(lags, 0), 0.0)
  mean = s.mean(-1, keepdims=True)
  return 0.1 / s.shape[-1] * jnp.einsum('tk,bkhwc->bthwc', fading, mean)


PLAIN = {
  'bn': lambda p, s, x: _plain_bn(p, x, (0, 1, 2, 3)),
  'tdbn': lambda p, s, x: _plain_bn(
    {**p, 'scale': p['scale'] * s['alpha_v_th']}, x, (0, 1, 2, 3)
  ),
  'bntt': lambda p, s, x: jnp.stack(
    [
      _plain_bn({'scale': p['scale'][t]}, x[:, t], (0, 1, 2))
      for t in range(x.shape[1])
    ],
    1,
  ),
  'tebn': lambda p, s, x: jnp.einsum(
    't,bt...->bt...', p['factor'], _plain_bn(p, x, (0, 1, 2, 3))
  ),
  'tab': lambda p, s, x: jnp.stack(
    [
      p['root'][t] ** 2
      * _plain_bn(
        {'scale': p['scale'][t], 'bias': p['bias'][t]},
        x[:, : t + 1],
        (0, 1, 2, 3),
      )[:, t]
      for t in range(x.shape[1])
    ],
    1,
  ),
  'mpbn_channel': lambda p, s, x: _plain_bn(p, x, (0, 1, 2)),
  'mpbn_element': lambda p, s, x: _plain_bn(p, x, (0,)),
  'affine': lambda p, s, x: x * p['scale'] + p['bias'],
  'neunorm': lambda p, s, x: x - p['weight'] * _activity(x),
  'psp_bn': lambda p, s, x: _plain_psp(p, x, (0, 1, 2, 3)),
  'psp_bn_step': lambda p, s, x: _plain_psp(p, x, (0, 2, 3)),
  'psp_ln': lambda p, s, x: _plain_psp(p, x, (2, 3, 4)),
}
