"""ResNet20 in slow, obvious NumPy, made of the functions of reference.py."""

import numpy as np
from reference import (
  average_pool,
  average_pool_of_shortcut,
  batch_norm,
  convolution,
  lif_mpbn,
)


def resnet20(state, x, *, num_steps, train, tau=0.25, v_th=0.5):
  """ResNet20 on the reference implementation's own names and layouts.

  Args:
    state: name -> array: the golden file's `state/...` entries without that
      prefix, so 'model.conv1.0.pool.weight' and so on, in PyTorch's layout
      (kernels OIHW, linear [out, in]).
    x: images [B, C, H, W], shown at every step, as in the golden file, or
      frames [B, T, C, H, W], one a step.

  Returns:
    (logits [B, K], new_state, spikes): `state` with the running statistics
    advanced in training, and per LIF layer, by its name without '.bn' (such
    as 'model.conv1.2' or 'model.layer1.0.relu1'), spikes [T, B, H, W, C].
  """
  new_state = dict(state)
  spikes = {}

  def conv(x, name, *, stride, padding):
    kernel = np.transpose(state[name + '.pool.weight'], (2, 3, 1, 0))
    return convolution(x, kernel, stride=stride, padding=padding)

  def variables(name):
    return {
      'scale': state[name + '.bn.weight'],
      'bias': state[name + '.bn.bias'],
      'mean': state[name + '.bn.running_mean'],
      'var': state[name + '.bn.running_var'],
    }

  def save_statistics(name, mean, var):
    new_state[name + '.bn.running_mean'] = mean
    new_state[name + '.bn.running_var'] = var

  def bn(x, name):
    y, mean, var = batch_norm(
      x, **variables(name), train=train, momentum=0.1, eps=1e-5
    )
    save_statistics(name, mean, var)
    return y

  def neuron(x, name):
    spikes[name], mean, var = lif_mpbn(
      x, **variables(name), tau=tau, v_th=v_th, train=train
    )
    save_statistics(name, mean, var)
    return spikes[name]

  def block(x, name, *, stride):
    y = conv(x, name + '.conv1', stride=stride, padding=1)
    y = neuron(bn(y, name + '.bn1'), name + '.relu1')
    y = conv(y, name + '.conv2', stride=1, padding=1)
    y = bn(y, name + '.bn2')
    if stride != 1:
      # downsample.0 is the pooling, it has no parameters.
      x = average_pool_of_shortcut(x, window=stride)
      x = conv(x, name + '.downsample.1', stride=1, padding=0)
      x = bn(x, name + '.downsample.2')
    return neuron(y + x, name + '.output_act')

  x = np.moveaxis(x, -3, -1)
  x = np.stack([x] * num_steps) if x.ndim == 4 else np.moveaxis(x, 1, 0)
  for i in (0, 3, 6):
    x = conv(x, f'model.conv1.{i}', stride=1, padding=1)
    x = bn(x, f'model.conv1.{i + 1}')
    x = neuron(x, f'model.conv1.{i + 2}')
  x = average_pool(x, window=2)
  for stage in (1, 2, 3, 4):
    x = block(x, f'model.layer{stage}.0', stride=1 if stage == 1 else 2)
    x = block(x, f'model.layer{stage}.1', stride=1)
  x = x.mean((2, 3))  # [T, B, C]
  kernel = np.asarray(state['model.fc.conv.weight'], np.float64).T
  bias = np.asarray(state['model.fc.conv.bias'], np.float64)
  logits = x @ kernel + bias  # [T, B, K]
  return logits.mean(0), new_state, spikes
