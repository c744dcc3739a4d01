"""Spiking ResNet20 in PyTorch, with SpikingJelly's neurons or eager ones.

It needs the packages of `benchmarks/requirements.txt`.
"""

import numpy as np
import torch
from torch import nn


class MergedSteps(nn.Sequential):
  """Modules of images, applied to every step: [T, B, C, H, W]."""

  def forward(self, x):
    y = super().forward(x.flatten(0, 1))
    return y.unflatten(0, x.shape[:2])


class Rectangle(torch.autograd.Function):
  """The Heaviside step with the paper's surrogate gradient (Eq. 12)."""

  @staticmethod
  def forward(context, x):
    context.save_for_backward(x)
    return (x > 0).to(x.dtype)

  @staticmethod
  def backward(context, gradient):
    (x,) = context.saved_tensors
    return gradient * (x.abs() <= 0.5)


class EagerLIF(nn.Module):
  """LIF neurons with MPBN, one operation of PyTorch after the other."""

  def __init__(self, channels):
    super().__init__()
    self.norm = nn.BatchNorm2d(channels)

  def forward(self, currents):
    u_res, spikes = 0.0, []
    for current in currents:
      u = 0.25 * u_res + current
      fired = Rectangle.apply(self.norm(u) - 0.5)
      u_res = u * (1 - fired)
      spikes.append(fired)
    return torch.stack(spikes)


def jelly_lif(channels):
  """Returns the same neurons of SpikingJelly, in multi-step mode."""
  from spikingjelly.activation_based import neuron, surrogate

  return neuron.MPBNLIFNode(
    tau=4 / 3,  # keeps 1 - 1 / tau = 0.25
    v_threshold=0.5,
    surrogate_function=surrogate.Sigmoid(),
    step_mode='m',
    out_channels=channels,
  )


LIFS = {'spikingjelly': jelly_lif, 'pytorch': EagerLIF}


def _conv(inputs, outputs, size=3):
  return MergedSteps(
    nn.Conv2d(inputs, outputs, size, 1, size // 2, bias=False),
    nn.BatchNorm2d(outputs),
  )


class Block(nn.Module):
  """Two convolutions and a shortcut; with stride 2 where channels change."""

  def __init__(self, inputs, outputs, lif):
    super().__init__()
    halves = inputs != outputs
    self.conv1 = _conv(inputs, outputs)
    if halves:
      self.conv1[0].stride = (2, 2)
    self.lif1, self.lif2 = lif(outputs), lif(outputs)
    self.conv2 = _conv(outputs, outputs)
    self.shortcut = nn.Identity()
    if halves:
      pool = MergedSteps(nn.AvgPool2d(2))
      self.shortcut = nn.Sequential(pool, _conv(inputs, outputs, 1))

  def forward(self, x):
    y = self.conv2(self.lif1(self.conv1(x)))
    return self.lif2(y + self.shortcut(x))


class ResNet20(nn.Module):
  """The network of the paper; see `mpbn_jax.models.resnet`."""

  def __init__(self, lif, *, width):
    super().__init__()
    layers, channels = [], 3
    for _ in range(3):
      layers += [_conv(channels, width), lif(width)]
      channels = width
    layers.append(MergedSteps(nn.AvgPool2d(2)))
    for stage in range(4):
      for _ in range(2):
        layers.append(Block(channels, width * 2**stage, lif))
        channels = width * 2**stage
    self.body = nn.Sequential(*layers)
    self.head = nn.Linear(channels, 10)

  def forward(self, x):
    return self.head(self.body(x).mean((3, 4))).mean(0)


def functions(
  name: str,
  images: np.ndarray,
  labels: np.ndarray,
  *,
  num_steps: int,
  width: int,
) -> dict:
  """Returns {'train', 'forward': function} of a peer in `LIFS`."""
  network = ResNet20(LIFS[name], width=width)
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  network = network.to(device)
  x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(device)
  x = x[None].repeat(num_steps, 1, 1, 1, 1)
  y = torch.from_numpy(labels.astype(np.int64)).to(device)
  optimizer = torch.optim.SGD(network.parameters(), 0.01)

  def reset():
    if name == 'spikingjelly':
      from spikingjelly.activation_based import functional

      functional.reset_net(network)

  def wait():
    if device == 'cuda':
      torch.cuda.synchronize()

  def train():
    network.train()
    reset()
    optimizer.zero_grad()
    nn.functional.cross_entropy(network(x), y).backward()
    optimizer.step()
    wait()

  def forward():
    network.eval()
    reset()
    with torch.no_grad():
      network(x)
    wait()

  return {'train': train, 'forward': forward}
