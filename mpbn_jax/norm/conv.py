"""Normalizations after a convolution, which fold into its kernel.

The MPBN paper compares with this family (Sec. 2.2). x_hat is x minus its mean,
divided by its standard deviation.
"""

import jax
import jax.numpy as jnp
import numpy as np

from mpbn_jax.norm import base, types


def _fold_affine(params, stats, kernel, bias):
  """Returns kernel * g and (bias - mean) * g + norm_bias, g per channel."""
  gain = params['scale'] * jax.lax.rsqrt(stats['var'] + stats['eps'])
  bias = 0.0 if bias is None else bias
  bias = (bias - stats['mean']) * gain + params['bias']
  return {'kernel': kernel * gain, 'bias': bias}


_batch_norm = base.BatchNorm()

# Plain batch normalization over all time steps together.
BN = types.NormAfterConvolution(
  init=lambda shape, *, eps, **_: base.init_affine(shape[-1:], eps=eps),
  train=_batch_norm,
  evaluate=base.evaluate,
  fold=_fold_affine,
  custom_backward=True,
)


# ---- tdBN: scale * (alpha * v_th * x_hat) + bias


def _tdbn_init(shape, *, alpha_v_th, eps, **_):
  params, stats = base.init_affine(shape[-1:], eps=eps)
  return params, {**stats, 'alpha_v_th': base.constant(alpha_v_th)}


def _with_alpha_v_th(params, stats):
  return {**params, 'scale': params['scale'] * stats['alpha_v_th']}


def _tdbn_train(params, stats, x, **options):
  params = _with_alpha_v_th(params, stats)
  return _batch_norm(params, stats, x, **options)


def _tdbn_evaluate(params, stats, x):
  return base.evaluate(_with_alpha_v_th(params, stats), stats, x)


def _tdbn_fold(params, stats, kernel, bias):
  return _fold_affine(_with_alpha_v_th(params, stats), stats, kernel, bias)


# Zheng et al. 2021 (2011.05280). alpha is 1, or 1 / sqrt(2) if a residual sum
# joins two normalized branches, so that the sum has the variance of one branch.
# Next to an identity shortcut, which has no norm here, alpha is 1. Public code
# differs there: some also keeps alpha at 1, some gives the identity its own
# norm and both branches 1 / sqrt(2).
TDBN = types.NormAfterConvolution(
  init=_tdbn_init,
  train=_tdbn_train,
  evaluate=_tdbn_evaluate,
  fold=_tdbn_fold,
  custom_backward=True,
)


# ---- BNTT: scale[t] * x_hat[t], no bias


def _bntt_init(shape, *, num_steps, eps, **_):
  params, stats = base.init_affine((num_steps, shape[-1]), eps=eps)
  return {'scale': params['scale']}, stats


def _bntt_apply(params, mean, var, x, eps):
  gain = params['scale'] * jax.lax.rsqrt(var + eps)
  centred = x.astype(jnp.float32) - base.along(mean, x)
  return (centred * base.along(gain, x)).astype(x.dtype)


def _bntt_train(params, stats, x, *, momentum):
  axes = (0, *range(2, x.ndim - 1))
  near = base.known_mean(stats)
  mean, var = base.moments(x, axes=axes, near=near)
  count = base.count_over(x, axes)
  stats = base.advance(stats, mean, var, count=count, momentum=momentum)
  return _bntt_apply(params, mean, var, x, stats['eps']), stats


def _bntt_evaluate(params, stats, x):
  mean, var, eps = (stats[name] for name in ('mean', 'var', 'eps'))
  return _bntt_apply(params, mean, var, x, eps)


def _of_each_step(gain, mean, shift, kernel, bias):
  """Returns kernel and bias of gain * (x - mean) + shift, with a leading T."""
  bias = 0.0 if bias is None else bias
  # A kernel of [k, k, in, out] or [in, out], or one of each time step already.
  inner = kernel.ndim - kernel.ndim % 2
  return {
    'kernel': kernel * jnp.expand_dims(gain, range(1, inner)),
    'bias': (bias - mean) * gain + shift,
  }


def _bntt_fold(params, stats, kernel, bias):
  """Returns a kernel and a bias per time step, [T, ..., out] and [T, out]."""
  gain = params['scale'] * jax.lax.rsqrt(stats['var'] + stats['eps'])
  return _of_each_step(gain, stats['mean'], 0.0, kernel, bias)


# Kim and Panda 2020 (2010.01729): everything per step. Their code uses an eps
# of 1e-4; here all norms share `model.eps`, 1e-5 by default.
BNTT = types.NormAfterConvolution(
  init=_bntt_init,
  train=_bntt_train,
  evaluate=_bntt_evaluate,
  fold=_bntt_fold,
  per_time_step='scale',
)


# ---- TEBN: p[t] * (scale * x_hat + bias)


def _tebn_init(shape, *, num_steps, eps, **_):
  params, stats = base.init_affine(shape[-1:], eps=eps)
  return {**params, 'factor': jnp.ones((num_steps,), jnp.float32)}, stats


def _times_factor(factor, y):
  factor = factor.reshape((-1, *(1,) * (y.ndim - 2)))
  return (y.astype(jnp.float32) * factor).astype(y.dtype)


def _tebn_train(params, stats, x, **options):
  y, stats = _batch_norm(params, stats, x, **options)
  return _times_factor(params['factor'], y), stats


def _tebn_evaluate(params, stats, x):
  y = base.evaluate(params, stats, x)
  return _times_factor(params['factor'], y)


def _tebn_fold(params, stats, kernel, bias):
  """Returns a kernel and bias for all steps, and a factor per step."""
  folded = _fold_affine(params, stats, kernel, bias)
  return {**folded, 'factor': params['factor']}


# Duan et al., NeurIPS 2022: statistics over all steps together, and a learned
# scalar per step.
TEBN = types.NormAfterConvolution(
  init=_tebn_init,
  train=_tebn_train,
  evaluate=_tebn_evaluate,
  fold=_tebn_fold,
  custom_backward=True,
  per_time_step='factor',
)


# ---- TAB: root[t]^2 * (scale[t] * x_hat[t] + bias[t]), statistics over 1..t


def _tab_init(shape, *, num_steps, eps, **_):
  params, stats = base.init_affine((num_steps, shape[-1]), eps=eps)
  return {**params, 'root': jnp.ones((num_steps,), jnp.float32)}, stats


def _accumulated(mean, var):
  """Returns the moments over the steps 1..t from those of every step, [T, C].

  The variance is the mean variance of the steps plus the variance of their
  means, a sum without cancellation.
  """
  until = jnp.tril(jnp.ones((len(mean), len(mean)), jnp.float32))
  until /= until.sum(1, keepdims=True)
  total = until @ mean
  between = jnp.square(mean - total[:, None])  # [t, step, C]
  return total, until @ var + jnp.einsum('ts,tsc->tc', until, between)


def _tab_gain(params, var, eps):
  weight = jnp.square(params['root'])[:, None]
  return weight * params['scale'] * jax.lax.rsqrt(var + eps), weight


def _tab_apply(params, mean, var, x, eps):
  gain, weight = _tab_gain(params, var, eps)
  centred = x.astype(jnp.float32) - base.along(mean, x)
  shift = base.along(weight * params['bias'], x)
  return (centred * base.along(gain, x) + shift).astype(x.dtype)


def _tab_train(params, stats, x, *, momentum):
  axes = (0, *range(2, x.ndim - 1))
  near = base.known_mean(stats)
  mean, var = _accumulated(*base.moments(x, axes=axes, near=near))
  steps = np.arange(1, x.shape[1] + 1)[:, None]
  count = steps * base.count_over(x, axes)
  stats = base.advance(stats, mean, var, count=count, momentum=momentum)
  return _tab_apply(params, mean, var, x, stats['eps']), stats


def _tab_evaluate(params, stats, x):
  mean, var, eps = (stats[name] for name in ('mean', 'var', 'eps'))
  return _tab_apply(params, mean, var, x, eps)


def _tab_fold(params, stats, kernel, bias):
  """Returns a kernel and a bias per time step, [T, ..., out] and [T, out]."""
  gain, weight = _tab_gain(params, stats['var'], stats['eps'])
  return _of_each_step(
    gain, stats['mean'], weight * params['bias'], kernel, bias
  )


# Jiang et al., ICLR 2024 (Temporal Accumulated Batch Normalization): the
# statistics of step t are those of all currents that its potential accumulates.
# Scale and bias of every step, and the square, which keeps the weight of a step
# from being negative, are those of the authors' code.
TAB = types.NormAfterConvolution(
  init=_tab_init,
  train=_tab_train,
  evaluate=_tab_evaluate,
  fold=_tab_fold,
  per_time_step='scale',
)
