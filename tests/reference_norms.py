"""What does every registered normalization compute? Slow, obvious NumPy.

Each is (params, stats, x, *, train) -> (y, stats) with eps 1e-5 and momentum
0.1. x is [B, T, H, W, C] of a current, or [B, H, W, C], the potential of one
step, of a membrane norm. Float64, loops over channels or steps.
"""

import numpy as np
import reference

EPS, MOMENTUM = 1e-5, 0.1


def bn(params, stats, x, *, train):
  y, mean, var = reference.batch_norm(
    x,
    params['scale'],
    params['bias'],
    stats['mean'],
    stats['var'],
    train=train,
    momentum=MOMENTUM,
    eps=EPS,
  )
  return y, {'mean': mean, 'var': var}


def mpbn_element(params, stats, u, *, train):
  # Statistics over B alone: every element is a channel of a map of 1x1.
  flat = {k: np.ravel(v) for k, v in {**params, **stats}.items()}
  y, new = bn(flat, flat, u.reshape(len(u), -1), train=train)
  new = {k: v.reshape(u.shape[1:]) for k, v in new.items()}
  return y.reshape(u.shape), new


def tdbn(params, stats, x, *, train):
  params = {**params, 'scale': params['scale'] * stats['gain']}
  y, new = bn(params, stats, x, train=train)
  return y, {**new, 'gain': stats['gain']}


def bntt(params, stats, x, *, train):
  steps, news = [], []
  for t in range(x.shape[1]):
    y, new = bn(
      {'scale': params['scale'][t], 'bias': np.zeros(x.shape[-1])},
      {k: v[t] for k, v in stats.items()},
      x[:, t],
      train=train,
    )
    steps.append(y)
    news.append(new)
  new = {k: np.stack([n[k] for n in news]) for k in news[0]}
  return np.stack(steps, 1), new


def tebn(params, stats, x, *, train):
  y, new = bn(params, stats, x, train=train)
  steps = [params['factor'][t] * y[:, t] for t in range(x.shape[1])]
  return np.stack(steps, 1), new


REFERENCES = {
  'bn': bn,
  'tdbn': tdbn,
  'bntt': bntt,
  'tebn': tebn,
  'mpbn_channel': bn,
  'mpbn_element': mpbn_element,
}
