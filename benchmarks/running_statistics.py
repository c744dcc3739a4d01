"""What do running statistics cost, compared with those of batches?

    python benchmarks/running_statistics.py runs/events/*_report_*

For each work directory, the accuracy on whole batches of the test split in
three ways: with the statistics of each batch, as in training; with the running
ones, as in evaluation; and with statistics that are means over three epochs of
training batches, in place of running means, which forget older batches. If the
last do not reach the first, better running means would not help: the network
needs the statistics of the batch itself.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from mpbn_jax import config_files, experiment, load_run
from mpbn_jax.norm import CONSTANTS, NORMS, names_at

EPOCHS = 3


def recomputed(run, built, momentum):
  """Returns the variables with means of batch statistics over `EPOCHS`."""
  variables = run.variables

  @jax.jit
  def moved(images):
    _, updates = run.model.apply(
      variables, images, train=True, mutable=['batch_stats']
    )
    return updates['batch_stats']

  count = EPOCHS * built.batches.steps_per_epoch
  total = None
  for step in range(count):
    images = jnp.asarray(built.batches.batch(step)['image'])
    stats = moved(built.dataset.spec.normalize(images))
    total = stats if total is None else jax.tree.map(jnp.add, total, stats)
  before = traverse_util.flatten_dict(variables['batch_stats'])
  after = traverse_util.flatten_dict(total)
  for path, old in before.items():
    if path[-1] in CONSTANTS:
      after[path] = old
      continue
    if path[-2] not in ('bn', 'tdbn', *names_at('membrane')):
      raise SystemExit(
        f'expected statistics of bn, tdbn or MPBN, got {"/".join(path)}: it is '
        'not known here how often a batch moves them'
      )
    # From the same old value, each batch moves a statistic once, or T times
    # before firing: moved = kept * old + (1 - kept) * that of the batch.
    membrane = NORMS[path[-2]].place == 'membrane'
    kept = (1 - momentum) ** (run.model.num_steps if membrane else 1)
    after[path] = (after[path] / count - kept * old) / (1 - kept)
  return {**variables, 'batch_stats': traverse_util.unflatten_dict(after)}


def accuracy(run, variables, built, *, train):
  """Returns the accuracy on the whole batches of the shuffled test split."""

  @jax.jit
  def predict(variables, images):
    logits, _ = run.model.apply(
      variables, images, train=train, mutable=['batch_stats']
    )
    return logits.argmax(-1)

  split, size = built.dataset.splits['test'], built.config.data.batch_size
  order = np.random.default_rng(0).permutation(len(split))
  correct = []
  for start in range(0, len(order) - size + 1, size):
    chosen = order[start : start + size]
    images = built.dataset.spec.normalize(jnp.asarray(split.images[chosen]))
    correct.append(predict(variables, images) == split.labels[chosen])
  return float(np.mean(correct))


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('workdirs', nargs='+', type=pathlib.Path)
  print('batch, running, recomputed statistics, %')
  for workdir in parser.parse_args().workdirs:
    config = config_files.load(workdir / 'config.json')
    run, built = load_run(workdir), experiment.build(config)
    found = (
      accuracy(run, run.variables, built, train=True),
      accuracy(run, run.variables, built, train=False),
      accuracy(
        run,
        recomputed(run, built, config.model.momentum),
        built,
        train=False,
      ),
    )
    print(workdir.name, *(f'{100 * value:.1f}' for value in found), flush=True)


if __name__ == '__main__':
  main()
