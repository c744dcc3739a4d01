"""Slow, obvious NumPy: every registered normalization.

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
  return y, {**stats, 'mean': mean, 'var': var}


def mpbn_element(params, stats, u, *, train):
  # Statistics over B alone: every element is a channel of a map of 1x1.
  flat = {k: np.ravel(v) for k, v in {**params, **stats}.items()}
  y, new = bn(flat, flat, u.reshape(len(u), -1), train=train)
  new = {k: new[k].reshape(u.shape[1:]) for k in ('mean', 'var')}
  return y.reshape(u.shape), {**stats, **new}


def tdbn(params, stats, x, *, train):
  params = {**params, 'scale': params['scale'] * stats['alpha_v_th']}
  return bn(params, stats, x, train=train)


def bntt(params, stats, x, *, train):
  steps, news = [], []
  for t in range(x.shape[1]):
    y, new = bn(
      {'scale': params['scale'][t], 'bias': np.zeros(x.shape[-1])},
      {k: stats[k][t] for k in ('mean', 'var')},
      x[:, t],
      train=train,
    )
    steps.append(y)
    news.append(new)
  new = {k: np.stack([n[k] for n in news]) for k in news[0]}
  return np.stack(steps, 1), {**stats, **new}


def tebn(params, stats, x, *, train):
  y, new = bn(params, stats, x, train=train)
  steps = [params['factor'][t] * y[:, t] for t in range(x.shape[1])]
  return np.stack(steps, 1), new


def tab(params, stats, x, *, train):
  steps, news = [], []
  for t in range(x.shape[1]):
    y, new = bn(
      {'scale': params['scale'][t], 'bias': params['bias'][t]},
      {k: stats[k][t] for k in ('mean', 'var')},
      x[:, : t + 1],
      train=train,
    )
    steps.append(params['root'][t] ** 2 * y[:, t])
    news.append(new)
  new = {k: np.stack([n[k] for n in news]) for k in news[0]}
  return np.stack(steps, 1), {**stats, **new}


def affine(params, stats, u, *, train):
  y = np.empty(u.shape)
  for c in range(u.shape[-1]):
    y[..., c] = np.float64(u[..., c]) * params['scale'][c] + params['bias'][c]
  return y, stats


def psp_bn(params, stats, a, *, train):
  y, moments = np.empty(a.shape), []
  for c in range(a.shape[-1]):
    moment = (
      np.mean(np.float64(a[..., c]) ** 2) if train else stats['moment'][c]
    )
    y[..., c] = params['scale'][c] * a[..., c] / np.sqrt(moment + EPS)
    moments.append(moment)
  moment = (1 - MOMENTUM) * stats['moment'] + MOMENTUM * np.array(moments)
  return y, {**stats, 'moment': moment}


def psp_bn_step(params, stats, a, *, train):
  steps, news = [], []
  for t in range(a.shape[1]):
    y, new = psp_bn(
      params, {'moment': stats['moment'][t]}, a[:, t], train=train
    )
    steps.append(y)
    news.append(new['moment'])
  return np.stack(steps, 1), {**stats, 'moment': np.stack(news)}


def psp_ln(params, stats, a, *, train):
  y = np.empty(a.shape)
  for b in range(a.shape[0]):
    for t in range(a.shape[1]):
      moment = np.mean(np.float64(a[b, t]) ** 2)
      y[b, t] = params['scale'] * a[b, t] / np.sqrt(moment + EPS)
  return y, stats


def neunorm(params, stats, s, *, train, k0=0.9):
  channels = s.shape[-1]
  y, activity = np.empty(s.shape), np.zeros((*s[:, 0].shape[:-1], 1))
  for t in range(s.shape[1]):
    total = np.float64(s[:, t]).sum(-1, keepdims=True)
    activity = k0 * activity + (1 - k0) / channels**2 * total
    y[:, t] = s[:, t] - params['weight'] * activity
  return y, {}


REFERENCES = {
  'bn': bn,
  'tdbn': tdbn,
  'bntt': bntt,
  'tebn': tebn,
  'tab': tab,
  'mpbn_channel': bn,
  'mpbn_element': mpbn_element,
  'affine': affine,
  'neunorm': neunorm,
  'psp_bn': psp_bn,
  'psp_bn_step': psp_bn_step,
  'psp_ln': psp_ln,
}
