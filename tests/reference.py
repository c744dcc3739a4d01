"""Slow, obvious NumPy: the neuron and the layers that tests compare with.

Written from the specification (method.md), not from the library, so that an
error in one is not repeated in the other. Channels are last everywhere:
sequences [T, B, H, W, C], kernels [kh, kw, in, out], linear [in, out]; `...`
stands for any number of axes, none included. All arithmetic is in float64,
so a float32 implementation may decide otherwise where |n - v_th| is within
its rounding. Every function returns new arrays and changes no argument.
"""

import numpy as np


def _float64(*arrays):
  return [np.asarray(array, np.float64) for array in arrays]


# --- The neuron -------------------------------------------------------------


def _reset(potential, spikes, *, v_th, reset):
  """What is left of the potential once the neuron has fired."""
  if reset == 'hard':
    return potential * (1 - spikes)
  if reset == 'soft':
    return potential - v_th * spikes
  raise ValueError(f'unknown reset {reset!r}, expected "hard" or "soft"')


def lif(currents, *, tau, v_th, reset='hard'):
  """Spikes [T, B, ..., C] of the plain neuron for currents of that shape."""
  currents, v_th = _float64(currents, v_th)
  residue = np.zeros(currents.shape[1:])
  spikes = []
  for current in currents:
    potential = tau * residue + current
    fired = (potential > v_th).astype(np.float64)
    residue = _reset(potential, fired, v_th=v_th, reset=reset)
    spikes.append(fired)
  return np.stack(spikes)


def _statistics_axes(potential, element):
  """Axes of one step's potential [B, ..., C] that a mean is taken over."""
  return (0,) if element else tuple(range(potential.ndim - 1))


def _unbiased(var, count):
  if count < 2:
    raise ValueError(
      f'the unbiased variance of {count} sample is undefined, '
      'give every statistics group at least 2'
    )
  return var * count / (count - 1)


# Two signatures are kept from the formatter: a line per argument hides them.
def lif_mpbn(
  currents, *, scale, bias, mean, var, tau, v_th, eps=1e-5, momentum=0.1,
  train, element=False, affine=False, reset='hard', normalized_carry=False,
):  # fmt: skip
  """Spikes and running statistics of the neuron with MPBN.

      u[t] = tau * u_res[t-1] + c[t],  n[t] = MPBN(u[t]),  s[t] = n[t] > v_th
      u_res[t] = u[t] * (1 - s[t])    (soft: u[t] - v_th * s[t])

  Args:
    currents: [T, B, ..., C].
    scale, bias, mean, var: [C], or [..., C] where `element`; shared by all
      steps. mean and var are the running statistics.
    train: normalize with the statistics of the step and advance the running
      ones once per step; otherwise use the running ones at every step.
    element: statistics over B alone instead of over all axes but the last.
    affine: n = scale * u + bias, without statistics.
    normalized_carry: reset and carry n instead of u. This is the tempting
      WRONG network, here so that tests can show that it differs.

  Returns:
    (spikes [T, B, ..., C], mean, var), the statistics in the shape of `mean`.
  """
  currents, scale, bias, v_th = _float64(currents, scale, bias, v_th)
  mean, var = np.array(mean, np.float64), np.array(var, np.float64)
  residue = np.zeros(currents.shape[1:])
  spikes = []
  for current in currents:
    potential = tau * residue + current
    if affine:
      step_mean, step_var = 0.0, 1 - eps
    elif train:
      axes = _statistics_axes(potential, element)
      count = int(np.prod([potential.shape[axis] for axis in axes]))
      step_mean, step_var = potential.mean(axes), potential.var(axes)
      mean = (1 - momentum) * mean + momentum * step_mean
      var = (1 - momentum) * var + momentum * _unbiased(step_var, count)
    else:
      step_mean, step_var = mean, var
    centred = potential - step_mean
    normalized = scale * centred / np.sqrt(step_var + eps) + bias
    fired = (normalized > v_th).astype(np.float64)
    carried = normalized if normalized_carry else potential
    residue = _reset(carried, fired, v_th=v_th, reset=reset)
    spikes.append(fired)
  return np.stack(spikes), mean, var


# --- Folding ----------------------------------------------------------------


def lif_folded(currents, *, threshold, polarity, tau, v_th, reset):
  """Spikes [T, B, ..., C] of the folded neuron; it has no normalization left.

  threshold and polarity are [C] or [..., C]; polarity is +1 (fire above the
  threshold) or -1 (fire below it). v_th is what a soft reset subtracts.
  """
  currents, v_th = _float64(currents, v_th)
  threshold, polarity = _float64(threshold, polarity)
  residue = np.zeros(currents.shape[1:])
  spikes = []
  for current in currents:
    potential = tau * residue + current
    fired = np.where(polarity > 0, potential > threshold, potential < threshold)
    fired = fired.astype(np.float64)
    residue = _reset(potential, fired, v_th=v_th, reset=reset)
    spikes.append(fired)
  return np.stack(spikes)


def fold_closed_form(scale, bias, mean, var, *, v_th, eps):
  """(threshold, polarity) in float64, both in the shape of `scale`.

      theta = (v_th - bias) * sqrt(var + eps) / scale + mean

  polarity is the sign of the scale. Where the scale is 0 the neuron is
  constant: polarity +1, threshold -inf if bias > v_th, else +inf.
  """
  scale, bias, mean, var, v_th = np.broadcast_arrays(
    *_float64(scale, bias, mean, var, v_th)
  )
  threshold, polarity = np.empty(scale.shape), np.empty(scale.shape)
  for i in np.ndindex(scale.shape):
    if scale[i] == 0:
      threshold[i] = -np.inf if bias[i] > v_th[i] else np.inf
      polarity[i] = 1
    else:
      deviation = np.sqrt(var[i] + eps)
      threshold[i] = (v_th[i] - bias[i]) * deviation / scale[i] + mean[i]
      polarity[i] = 1 if scale[i] > 0 else -1
  return threshold, polarity


# --- Surrogate derivatives, as functions of x = n - v_th --------------------


def _rect(x, width=1.0):
  return np.where(np.abs(x) <= width / 2, 1 / width, 0.0)


def _tanh(x, k=3.0):
  inside = np.clip(x, -0.5, 0.5)  # Far outside, cosh would overflow.
  value = k / np.cosh(k * inside) ** 2 / (2 * np.tanh(k / 2))
  return np.where(np.abs(x) <= 0.5, value, 0.0)


def _triangle(x, width=1.0):
  # Peak 1 whatever the width (Bellec et al. 2018), so its area is the width.
  return np.maximum(0.0, 1 - np.abs(x) / width)


def _sigmoid(x, slope=4.0):
  logistic = (1 + np.tanh(slope * x / 2)) / 2  # exp(-slope x) may overflow.
  return slope * logistic * (1 - logistic)


def _atan(x, slope=2.0):
  return slope / 2 / (1 + (np.pi / 2 * slope * x) ** 2)


def _piecewise_quadratic(x, slope=1.0):
  return slope * np.maximum(0.0, 1 - slope * np.abs(x))


SURROGATE_DERIVATIVES = {
  'rect': _rect,
  'tanh': _tanh,
  'triangle': _triangle,
  'sigmoid': _sigmoid,
  'atan': _atan,
  'piecewise_quadratic': _piecewise_quadratic,
}


# --- The backward pass of the neuron with MPBN, in training -----------------


def lif_mpbn_gradients(
  currents, cotangent, *, scale, bias, tau, v_th, derivative, eps,
  detach_reset=False, element=False, affine=False, reset='hard',
):  # fmt: skip
  """Gradients of sum(spikes * cotangent), spikes of `lif_mpbn` in training.

  Back through time, through the batch statistics and, unless `detach_reset`,
  through the spike in the reset.

  Args:
    currents, cotangent: [T, B, ..., C].
    scale, bias: [C], or [..., C] where `element`.
    derivative: surrogate derivative of the spike, a function of n - v_th.
    element, affine: as in `lif_mpbn`.

  Returns:
    (grad currents [T, B, ..., C], grad scale, grad bias).
  """
  currents, cotangent = _float64(currents, cotangent)
  scale, bias, v_th = _float64(scale, bias, v_th)
  axes = _statistics_axes(currents[0], element)

  residue = np.zeros(currents.shape[1:])
  tape = []
  for current in currents:
    potential = tau * residue + current
    mean, deviation = 0.0, 1.0
    if not affine:
      mean = potential.mean(axes)
      deviation = np.sqrt(potential.var(axes) + eps)
    standard = (potential - mean) / deviation
    normalized = scale * standard + bias
    fired = (normalized > v_th).astype(np.float64)
    residue = _reset(potential, fired, v_th=v_th, reset=reset)
    tape.append((potential, deviation, standard, normalized, fired))

  grad_currents = np.zeros_like(currents)
  grad_scale, grad_bias = np.zeros_like(scale), np.zeros_like(bias)
  grad_residue = np.zeros(currents.shape[1:])
  for t in reversed(range(len(currents))):
    potential, deviation, standard, normalized, fired = tape[t]
    # The reset: u_res = u * (1 - s), or u - v_th * s.
    if reset == 'hard':
      grad_potential = grad_residue * (1 - fired)
      grad_fired_by_reset = -grad_residue * potential
    else:
      grad_potential = grad_residue
      grad_fired_by_reset = -grad_residue * v_th
    # The spike.
    grad_fired = cotangent[t]
    if not detach_reset:
      grad_fired = grad_fired + grad_fired_by_reset
    grad_normalized = grad_fired * derivative(normalized - v_th)
    # The normalization: n = scale * standard + bias, then the statistics.
    grad_scale = grad_scale + (grad_normalized * standard).sum(axes)
    grad_bias = grad_bias + grad_normalized.sum(axes)
    grad_standard = grad_normalized * scale
    grad_centred = grad_standard
    if not affine:
      grad_centred = grad_standard - grad_standard.mean(axes)
      grad_centred -= standard * (grad_standard * standard).mean(axes)
    grad_potential = grad_potential + grad_centred / deviation
    # The charge: u[t] = tau * u_res[t-1] + c[t].
    grad_currents[t] = grad_potential
    grad_residue = tau * grad_potential
  return grad_currents, grad_scale, grad_bias


# --- Layers -----------------------------------------------------------------


def _patches(x, *, window, stride, padding):
  """[..., H', W', kh, kw, C] for zero-padded x [..., H, W, C]."""
  sides = [(0, 0)] * (x.ndim - 3) + [(padding, padding)] * 2 + [(0, 0)]
  x = np.pad(x, sides)
  rows = range(0, x.shape[-3] - window[0] + 1, stride)
  columns = range(0, x.shape[-2] - window[1] + 1, stride)
  y = np.zeros((*x.shape[:-3], len(rows), len(columns), *window, x.shape[-1]))
  for i, row in enumerate(rows):
    for j, column in enumerate(columns):
      y[..., i, j, :, :, :] = x[
        ..., row : row + window[0], column : column + window[1], :
      ]
  return y


def convolution(x, kernel, *, stride, padding):
  """[..., H', W', out] for x [..., H, W, in] and kernel [kh, kw, in, out].

  A cross-correlation, as everywhere in deep learning; no bias. `stride` and
  `padding` are integers, the padding is on every side.
  """
  x, kernel = _float64(x, kernel)
  window = kernel.shape[:2]
  patches = _patches(x, window=window, stride=stride, padding=padding)
  return np.tensordot(patches, kernel, axes=3)


def average_pool(x, *, window, stride=None, padding=0):
  """[..., H', W', C] for x [..., H, W, C]; padded zeros count in the mean.

  stride: the window where it is None, so that windows do not overlap.
  Windows that would stick out of the far edges are dropped.
  """
  (x,) = _float64(x)
  stride = window if stride is None else stride
  window = (window, window)
  patches = _patches(x, window=window, stride=stride, padding=padding)
  return patches.mean((-3, -2))


def average_pool_of_shortcut(x, *, window):
  """[..., ceil(H / window), ceil(W / window), C] for x [..., H, W, C].

  Windows side by side; one that sticks out of the map averages what lies in it.
  """
  (x,) = _float64(x)
  height, width = (-(-side // window) for side in x.shape[-3:-1])
  y = np.zeros((*x.shape[:-3], height, width, x.shape[-1]))
  for i in range(height):
    for j in range(width):
      rows = slice(i * window, (i + 1) * window)
      columns = slice(j * window, (j + 1) * window)
      y[..., i, j, :] = x[..., rows, columns, :].mean((-3, -2))
  return y


def batch_norm(x, scale, bias, mean, var, *, train, momentum, eps):
  """(y, mean, var) for x [..., C]: one BN over all axes but the last.

  In training y takes the biased batch variance, the running variance the
  unbiased one; given [T, B, H, W, C], all steps are normalized together.
  """
  x, scale, bias = _float64(x, scale, bias)
  mean, var = np.array(mean, np.float64), np.array(var, np.float64)
  used_mean, used_var = mean, var
  if train:
    axes = tuple(range(x.ndim - 1))
    count = x.size // x.shape[-1]
    used_mean, used_var = x.mean(axes), x.var(axes)
    mean = (1 - momentum) * mean + momentum * used_mean
    var = (1 - momentum) * var + momentum * _unbiased(used_var, count)
  y = scale * (x - used_mean) / np.sqrt(used_var + eps) + bias
  return y, mean, var
