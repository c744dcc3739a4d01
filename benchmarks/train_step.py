"""Time of a step of spiking ResNet20, next to its floor and to a peer.

    python benchmarks/train_step.py --batch=16 --steps=4 --width=64
    python benchmarks/train_step.py --peer

The floor is one square matmul of the FLOPs of the network's forward pass
(three times that for training), in the same run. The peer is SpikingJelly's
`MPBNLIFNode` in multi-step mode, in the same run too: rounds take turns. It
needs torch and spikingjelly, which this project does not install. Only the
ratios mean something; times depend on the machine.
"""

import argparse
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np

from mpbn_jax import build_model, fold, strip

SIDE = 32


def ours(images, labels, *, num_steps, width):
  """Returns {what: function} of this library, compiled."""
  model = build_model(
    {
      'name': 'resnet20',
      'width': width,
      'num_steps': num_steps,
    }
  )
  x, y = jnp.asarray(images), jnp.asarray(labels)

  @jax.jit
  def init():
    return model.init(jax.random.key(0), x[:2], train=False)

  @jax.jit
  def train(variables, x, y):
    def loss_of(params):
      logits, updates = model.apply(
        {**variables, 'params': params}, x, train=True, mutable=['batch_stats']
      )
      log = jax.nn.log_softmax(logits)
      return -jnp.take_along_axis(log, y[:, None], 1).mean(), updates

    gradients, updates = jax.grad(loss_of, has_aux=True)(variables['params'])
    params = jax.tree.map(
      lambda p, g: p - 0.01 * g, variables['params'], gradients
    )
    return {'params': params, **updates}

  @jax.jit
  def forward(variables, x):
    return model.apply(variables, x, train=False)

  variables = init()
  folded = strip(fold(variables))
  flops = forward.lower(variables, x).compile().cost_analysis()['flops']
  return {
    'train': lambda: jax.block_until_ready(train(variables, x, y)),
    'forward': lambda: jax.block_until_ready(forward(variables, x)),
    'folded': lambda: jax.block_until_ready(forward(folded, x)),
  }, flops


def floor(flops):
  """Returns a function that computes one square matmul of so many FLOPs."""
  side = round((flops / 2) ** (1 / 3))
  a = jnp.ones((side, side))
  product = jax.jit(jnp.matmul)
  return lambda: jax.block_until_ready(product(a, a))


def peer(images, labels, *, num_steps, width):
  """Returns {what: function} of SpikingJelly, the same network."""
  import torch
  from spikingjelly.activation_based import functional, layer, neuron, surrogate
  from torch import nn

  def conv(inputs, outputs, size=3, stride=1):
    return layer.SeqToANNContainer(
      nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False),
      nn.BatchNorm2d(outputs),
    )

  def lif(channels):
    return neuron.MPBNLIFNode(
      tau=4 / 3,  # keeps 1 - 1 / tau = 0.25
      v_threshold=0.5,
      surrogate_function=surrogate.Sigmoid(),
      step_mode='m',
      out_channels=channels,
    )

  class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
      super().__init__()
      self.conv1, self.lif1 = conv(inputs, outputs, 3, stride), lif(outputs)
      self.conv2, self.lif2 = conv(outputs, outputs), lif(outputs)
      self.shortcut = nn.Identity()
      if stride != 1:
        pool = layer.SeqToANNContainer(nn.AvgPool2d(stride))
        self.shortcut = nn.Sequential(pool, conv(inputs, outputs, 1))

    def forward(self, x):
      y = self.conv2(self.lif1(self.conv1(x)))
      return self.lif2(y + self.shortcut(x))

  stem = []
  for i in range(3):
    stem += [conv(width if i else 3, width), lif(width)]
  blocks, channels = [], width
  for stage in range(4):
    for block in range(2):
      outputs = width * 2**stage
      stride = 2 if stage and not block else 1
      blocks.append(Block(channels, outputs, stride))
      channels = outputs
  pool = layer.SeqToANNContainer(nn.AvgPool2d(2))
  body = nn.Sequential(*stem, pool, *blocks)
  head = nn.Linear(channels, 10)
  network = nn.ModuleList([body, head])
  x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
  x = x[None].repeat(num_steps, 1, 1, 1, 1)
  y = torch.from_numpy(labels.astype(np.int64))
  optimizer = torch.optim.SGD(network.parameters(), 0.01)

  def logits():
    functional.reset_net(network)
    return head(body(x).mean((3, 4))).mean(0)

  def train():
    network.train()
    optimizer.zero_grad()
    nn.functional.cross_entropy(logits(), y).backward()
    optimizer.step()

  def forward():
    network.eval()
    with torch.no_grad():
      logits()

  return {'train': train, 'forward': forward}, torch.__version__


def medians(functions, *, rounds):
  """Returns {name: median seconds}, the functions taking turns."""
  for function in functions.values():
    function()
  times = {name: [] for name in functions}
  for _ in range(rounds):
    for name, function in functions.items():
      start = time.perf_counter()
      function()
      times[name].append(time.perf_counter() - start)
  return {name: statistics.median(values) for name, values in times.items()}


def main():
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--batch', type=int, default=16)
  parser.add_argument('--steps', type=int, default=4)
  parser.add_argument('--width', type=int, default=64)
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--peer', action='store_true')
  options = parser.parse_args()
  rng = np.random.default_rng(0)
  images = rng.normal(size=(options.batch, SIDE, SIDE, 3)).astype(np.float32)
  labels = rng.integers(0, 10, options.batch)
  shape = dict(num_steps=options.steps, width=options.width)

  own, flops = ours(images, labels, **shape)
  functions = {f'ours {name}': function for name, function in own.items()}
  functions |= {
    'floor train': floor(3 * flops),
    'floor forward': floor(flops),
  }
  versions = f'jax {jax.__version__}'
  if options.peer:
    others, version = peer(images, labels, **shape)
    functions |= {f'peer {name}': f for name, f in others.items()}
    versions += f', torch {version}, SpikingJelly MPBNLIFNode'
  seconds = medians(functions, rounds=options.rounds)
  device = jax.devices()[0]
  print(f'ResNet20, {SIDE}x{SIDE}, B {options.batch}, {shape}, float32')
  print(f'{device.platform} {device.device_kind}, {versions}')
  print(f'median of {options.rounds} rounds that take turns')
  for what in ('train', 'forward', 'folded'):
    base = seconds[f'ours {what}']
    kind = 'train' if what == 'train' else 'forward'
    line = f'{what:<8} {1e3 * base:8.1f} ms'
    line += f'  {base / seconds[f"floor {kind}"]:5.2f} x floor'
    if options.peer:
      line += f'  {base / seconds[f"peer {kind}"]:5.2f} x peer'
    print(line)


if __name__ == '__main__':
  main()
