"""Gradients, spikes and compile time of networks of 106 layers.

    python benchmarks/depth.py --figure=docs/depth.png

plots the gradient norm of every convolution's kernel and the firing rate of
every neuron layer of `preact_resnet`, for PSP-BN, BN and no normalization, at
initialization and, with --epochs, after training on `digits`; and prints how
long the training step of 106 layers takes to compile, as a ratio to 22 layers.
Needs matplotlib.
"""

import argparse
import pathlib
import sys
import time

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from mpbn_jax import losses, sharding
from mpbn_jax.configs import digits_106
from mpbn_jax.experiment import build
from mpbn_jax.train_step import init_state, make_train_step

# (conv_norm, membrane_norm, spike_norm)
CASES = {
  'PSP-BN and MPBN': ('none', 'mpbn_channel', 'psp_bn'),
  'PSP-BN': ('none', 'none', 'psp_bn'),
  'BN': ('bn', 'none', 'none'),
  'no normalization': ('none', 'none', 'none'),
}


def experiment(norms, *, depth, epochs=1):
  """Returns the experiment of configs/digits_106.py with these norms."""
  config = digits_106.get_config()
  config.model.depth = depth
  for place, norm in zip(('conv', 'membrane', 'spike'), norms, strict=True):
    config.model[f'{place}_norm'] = norm
  config.evaluation.fold = 'thresholds'  # there may be none to fold
  config.num_epochs = max(epochs, 2)
  config.optimizer.warmup_epochs = min(config.optimizer.warmup_epochs, 1.0)
  return build(config)


def in_order(layers):
  """Returns [(name, array)] from the input to the output.

  Args:
    layers: {(stage or layer, ..., leaf): array}; of scanned blocks the arrays
      have a first axis.
  """
  of_blocks = []
  for path, array in layers.items():
    name = '/'.join(path)
    if path[0].endswith('_blocks'):
      for block, one in enumerate(array):
        of_blocks.append(((path[0][:6], 1 + block, path[1]), name, one))
    else:
      place = 'zzz' if path[0].startswith('last') else path[0][:6]
      place = '' if path[0].startswith('stem') else place
      of_blocks.append(((place, 0, path[-1]), name, array))
  return [(name, one) for _, name, one in sorted(of_blocks, key=lambda x: x[0])]


def measure(run, state):
  """Returns (gradient norm of each kernel, firing rate of each layer)."""
  batch = sharding.shard_batch(run.batches.batch(0), run.mesh)
  images = run.dataset.spec.normalize(batch['image'])

  @jax.jit
  def gradients(params):
    def loss(params):
      logits, updates = run.model.apply(
        {**state.raw_variables, 'params': params},
        images,
        train=True,
        mutable=['batch_stats', 'intermediates'],
      )
      rates = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
          leaf.mean(range(leaf.ndim - 5, leaf.ndim))
          if path[-2].key == 'spikes'
          else None
        ),
        updates['intermediates'],
      )
      return losses.cross_entropy(logits, batch['label']).mean(), rates

    return jax.grad(loss, has_aux=True)(params)

  gradient, rates = gradients(state.params)

  kernels = {
    tuple(key.key for key in path[:-1]): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
    if path[-1].key == 'kernel' and path[0].key != 'head'
  }
  norms = [float(np.linalg.norm(g)) for _, g in in_order(kernels)]
  rates = {
    tuple(key.key for key in path[:-2]): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(rates)
  }
  return norms, [float(rate) for _, rate in in_order(rates)]


def trained(run, epochs):
  """Returns the state after so many epochs."""
  state, step = init_state(run), make_train_step(run)
  for i in range(epochs * run.batches.steps_per_epoch):
    batch = sharding.shard_batch(run.batches.batch(i), run.mesh)
    state, _ = step(state, batch)
  return state


def plot(figure, *, depth, epochs):
  """Writes the figure; prints the range of each curve."""
  import matplotlib

  matplotlib.use('agg')
  from matplotlib import pyplot as plt

  moments = ['at initialization'] + [f'after {epochs} epochs'] * bool(epochs)
  canvas, axes = plt.subplots(
    len(moments), 2, figsize=(10, 3.2 * len(moments)), squeeze=False
  )
  for label, norms in CASES.items():
    run = experiment(norms, depth=depth, epochs=epochs)
    states = [init_state(run)] + [trained(run, epochs)] * bool(epochs)
    for row, moment, state in zip(axes, moments, states, strict=True):
      sizes, rates = measure(run, state)
      row[0].semilogy(range(1, len(sizes) + 1), sizes, label=label, lw=1)
      row[1].plot(range(1, len(rates) + 1), rates, label=label, lw=1)
      print(
        f'{label:<18} {moment:<20} gradient norms {min(sizes):.2g} to '
        f'{max(sizes):.2g}, firing rates {min(rates):.1%} to {max(rates):.1%}'
      )
      row[0].set(title=f'gradient norm of a kernel, {moment}')
      row[1].set(title=f'firing rate, {moment}', ylim=(0, 1))
  for row in axes:
    row[0].set_xlabel('convolution')
    row[1].set_xlabel('neuron layer')
  axes[0, 1].legend(ncol=2)  # rates leave room above
  canvas.tight_layout()
  canvas.savefig(figure, dpi=110)


def compile_seconds(depth):
  """Returns how long the training step takes to compile, without a cache."""
  run = experiment(CASES['PSP-BN'], depth=depth)
  state = init_state(run)
  batch = sharding.shard_batch(run.batches.batch(0), run.mesh)
  jax.clear_caches()
  step = make_train_step(run)
  start = time.perf_counter()
  step.lower(state, batch).compile()
  return time.perf_counter() - start


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--figure', help='where the picture goes')
  parser.add_argument('--depth', type=int, default=106)
  parser.add_argument('--epochs', type=int, default=0)
  parser.add_argument('--rounds', type=int, default=3)
  args = parser.parse_args()
  if args.figure:
    plot(args.figure, depth=args.depth, epochs=args.epochs)
  jax.config.update('jax_enable_compilation_cache', False)
  for _ in range(args.rounds):
    shallow, deep = compile_seconds(22), compile_seconds(args.depth)
    print(
      f'compile: 22 layers {shallow:.1f} s, {args.depth} layers {deep:.1f} s, '
      f'ratio {deep / shallow:.2f}'
    )


if __name__ == '__main__':
  main()
