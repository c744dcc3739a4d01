"""Gradients, spikes and compile time of networks of 106 layers.

    python benchmarks/depth.py --figure=docs/depth.png --epochs=20

plots the gradient norm of every convolution's kernel and the firing rate of
every neuron layer for the arms of configs/studies/depth.py, at initialization
and, with --epochs, after training on `digits` with the learning rates that
docs/results/depth.json says they chose; and prints how long the training step
of 106 layers takes to compile, as a ratio to 22 layers. Needs matplotlib.
"""

import argparse
import pathlib
import sys
import time

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from mpbn_jax.configs.studies.depth import BRANCHES, DEPTHS, NORMS, arm

from mpbn_jax import losses, sharding
from mpbn_jax.experiment import build
from mpbn_jax.studies.results import read
from mpbn_jax.train_step import init_state, make_train_step

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Okabe and Ito's colours, which colour-blind people can tell apart.
COLOURS = ('#000000', '#E69F00', '#56B4E9', '#009E73', '#D55E00')
STYLES = ('-', '--', '-.', ':', (0, (5, 1)))


def experiment(norm, branches, *, depth, epochs=1, settings=()):
  """Returns the experiment of an arm of the study, with other settings."""
  config = arm(norm, branches, depth)
  config.num_epochs = max(epochs, 2)
  config.update_from_flattened_dict(dict(settings))
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
  rows = [(branches, moment) for branches in BRANCHES for moment in moments]
  canvas, axes = plt.subplots(
    len(rows), 2, figsize=(10, 2.7 * len(rows)), squeeze=False
  )
  axis_of = dict(zip(rows, axes, strict=True))
  for (branches, moment), row in axis_of.items():
    where = f'{branches} branches, {moment}'
    row[0].set(title=where, ylabel='gradient norm of the kernel')
    row[1].set(title=where, ylabel='firing rate', ylim=(-0.02, 1.02))
    row[0].set_xlabel('convolution')
    row[1].set_xlabel('neuron layer')
  chosen = read(ROOT / 'docs' / 'results' / 'depth.json')['chosen']
  for branches in BRANCHES:
    for norm, colour, style in zip(NORMS, COLOURS, STYLES, strict=True):
      run = experiment(
        norm,
        branches,
        depth=depth,
        epochs=epochs,
        settings=chosen[f'{norm}, {branches}, {depth} layers'],
      )
      states = [init_state(run)] + [trained(run, epochs)] * bool(epochs)
      look = {'color': colour, 'ls': style, 'lw': 1.2, 'label': norm}
      for moment, state in zip(moments, states, strict=True):
        sizes, rates = measure(run, state)
        left, right = axis_of[branches, moment]
        # A norm of 0 has no place on a logarithmic axis.
        shown = np.where(np.array(sizes) > 0, sizes, np.nan)
        left.semilogy(range(1, len(sizes) + 1), shown, **look)
        right.plot(range(1, len(rates) + 1), rates, **look)
        print(
          f'{norm:<7} {branches:<7} {moment:<18} gradient norms '
          f'{min(sizes):.2g} to {max(sizes):.2g}, firing rates '
          f'{min(rates):.1%} to {max(rates):.1%}',
          flush=True,
        )
  axes[0, 1].legend(ncol=3)
  canvas.tight_layout()
  canvas.savefig(figure, dpi=90)


def compile_seconds(depth):
  """Returns how long the training step takes to compile, without a cache."""
  run = experiment('psp_bn', 'damped', depth=depth)
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
  parser.add_argument('--depth', type=int, default=106, choices=DEPTHS)
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
