"""Spiking ResNets in PyTorch, with SpikingJelly's neurons or eager ones.

It needs the packages of `benchmarks/requirements.txt`. As a script, it runs
training steps or forward passes for the benchmark that started it.
"""

import time

import measure
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


LIFS = {
  'spikingjelly': jelly_lif,
  'pytorch': EagerLIF,
  'compiled pytorch': EagerLIF,  # by torch.compile
}


def _conv(inputs, outputs, size=3, stride=1):
  return MergedSteps(
    nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False),
    nn.BatchNorm2d(outputs),
  )


class Block(nn.Module):
  """Two convolutions and a shortcut; with stride 2 where channels change."""

  def __init__(self, inputs, outputs, lif, *, pools):
    super().__init__()
    stride = 1 if inputs == outputs else 2
    self.conv1 = _conv(inputs, outputs, stride=stride)
    self.lif1, self.lif2 = lif(outputs), lif(outputs)
    self.conv2 = _conv(outputs, outputs)
    self.shortcut = nn.Identity()
    if stride == 2 and pools:
      pool = MergedSteps(nn.AvgPool2d(2))
      self.shortcut = nn.Sequential(pool, _conv(inputs, outputs, 1))
    elif stride == 2:
      self.shortcut = _conv(inputs, outputs, 1, stride)

  def forward(self, x):
    y = self.conv2(self.lif1(self.conv1(x)))
    return self.lif2(y + self.shortcut(x))


class ResNet(nn.Module):
  """The networks of the paper; see `mpbn_jax.models.resnet`."""

  def __init__(self, lif, *, width, stages, stem, pools):
    super().__init__()
    layers, channels = [], 3
    for _ in range(stem):
      layers += [_conv(channels, width), lif(width)]
      channels = width
    if stem > 1:
      layers.append(MergedSteps(nn.AvgPool2d(2)))
    for stage, count in enumerate(stages):
      for _ in range(count):
        layers.append(Block(channels, width * 2**stage, lif, pools=pools))
        channels = width * 2**stage
    self.body = nn.Sequential(*layers)
    self.head = nn.Linear(channels, 10)

  def forward(self, x):
    return self.head(self.body(x).mean((3, 4))).mean(0)


NETWORKS = {
  'resnet20': dict(stages=(2, 2, 2, 2), stem=3, pools=True),
  'resnet19': dict(stages=(3, 3, 2), stem=1, pools=False),
}


def functions(
  name: str,
  images: np.ndarray,
  labels: np.ndarray,
  *,
  network: str,
  precision: str,
  num_steps: int,
  width: int,
) -> dict:
  """Returns {'train', 'forward': function} of a peer in `LIFS`.

  On a GPU, cuDNN tries its algorithms, and the channels are last in memory if
  a training step is faster so. bfloat16 is PyTorch's automatic mixed precision.
  """
  options = dict(network=network, precision=precision, num_steps=num_steps)
  if not torch.cuda.is_available():
    return _functions(name, images, labels, width=width, **options)
  torch.backends.cudnn.benchmark = True
  torch.backends.cudnn.allow_tf32 = precision == 'tf32'
  torch.backends.cuda.matmul.allow_tf32 = precision == 'tf32'
  best = None
  for last in (False, True):
    found = _functions(
      name, images, labels, width=width, channels_last=last, **options
    )
    seconds = _seconds(found['train'])
    print(f'{name}, channels {"last" if last else "first"}: {1e3 * seconds} ms')
    if best is None or seconds < best[0]:
      best = seconds, found
  torch.cuda.reset_peak_memory_stats()
  return best[1]


def _seconds(function):
  for _ in range(3):
    function()()
  start = time.perf_counter()
  for _ in range(3):
    wait = function()
  wait()
  return (time.perf_counter() - start) / 3


def _functions(
  name,
  images,
  labels,
  *,
  network,
  precision,
  num_steps,
  width,
  channels_last=False,
):
  model = ResNet(LIFS[name], width=width, **NETWORKS[network])
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  model = model.to(device)
  x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(device)
  x = x[None].repeat(num_steps, 1, 1, 1, 1)
  if channels_last:
    model = model.to(memory_format=torch.channels_last)
    x = x.transpose(2, 4).contiguous().transpose(2, 4)
  y = torch.from_numpy(labels.astype(np.int64)).to(device)
  optimizer = torch.optim.SGD(model.parameters(), 0.01)
  call = torch.compile(model) if name.startswith('compiled') else model
  mixed = torch.autocast(
    device, torch.bfloat16, enabled=precision == 'bfloat16'
  )

  def reset():
    if name == 'spikingjelly':
      from spikingjelly.activation_based import functional

      functional.reset_net(model)

  def wait():
    if device == 'cuda':
      torch.cuda.synchronize()

  def train():
    model.train()
    reset()
    optimizer.zero_grad()
    with mixed:
      loss = nn.functional.cross_entropy(call(x), y)
    loss.backward()
    optimizer.step()
    return wait

  def forward():
    model.eval()
    reset()
    with torch.no_grad(), mixed:
      call(x)
    return wait

  return {'train': train, 'forward': forward}


def device_peak() -> float | None:
  """Returns the largest memory of the GPU in use so far, in MiB."""
  if not torch.cuda.is_available():
    return None
  return torch.cuda.max_memory_allocated() / 2**20


def elsewhere(name: str, what: str, options):
  """Returns the 'train' or 'forward' function of a peer in its own process."""
  return measure.elsewhere(
    __file__, f'--only={name}', f'--what={what}', *measure.flags(options)
  )


def main():
  parser = measure.parser(__doc__, rounds=0)
  parser.add_argument('--what', choices=('train', 'forward'))
  options = parser.parse_args()
  found = functions(
    options.only, *measure.data(options.batch), **measure.shape(options)
  )
  measure.serve(found[options.what])


if __name__ == '__main__':
  main()
