"""The result of a run: test accuracy, the fold and its verification."""

import datetime
import json
import pathlib
import time
from collections.abc import Mapping

import jax
import ml_collections
import numpy as np
from flax import traverse_util

from mpbn_jax import norm, record, tables
from mpbn_jax.checkpoint import Checkpoints
from mpbn_jax.errors import InputError
from mpbn_jax.evaluation import compare
from mpbn_jax.experiment import Experiment, build, for_epochs
from mpbn_jax.folded import folded_path, load_folded, save_folded
from mpbn_jax.folding import fold, fold_all, strip
from mpbn_jax.train_step import TrainState, abstract_state
from mpbn_jax.wiring import readers_of_spikes

SUMMARY = 'summary.json'


def restore(
  config: ml_collections.ConfigDict, *, workdir: pathlib.Path
) -> tuple[Experiment, TrainState]:
  """Returns (experiment, state) of a checkpoint in `workdir`.

  `evaluation.checkpoint` selects the checkpoint. The directory is not changed.
  The experiment has the run's number of epochs, whatever `config` says.

  Raises:
    InputError: there is no run, it has another configuration, or the checkpoint
      cannot be read.
  """
  experiment = build(config)
  stored = record.check_config_of(workdir, config)
  directory = workdir / record.CHECKPOINTS
  like = abstract_state(experiment)
  data = experiment.dataset.checksum
  checkpoints = Checkpoints(directory, config=config, data=data, read_only=True)
  if config.evaluation.checkpoint == 'latest':
    restored = checkpoints.restore_latest(like)
  else:
    restored = checkpoints.restore_best(like)
    if restored is None and checkpoints.steps():
      raise _no_best(experiment, directory)
  if restored is None:
    raise InputError(
      f'expected a trained network, got no checkpoint in {directory}: run '
      '--mode=train first, or pass its --workdir'
    )
  step, state = restored
  of_run: Mapping = checkpoints.config_of(step) or stored or config
  return for_epochs(experiment, of_run['num_epochs']), state


def _no_best(experiment, directory):
  mend = 'set --config.evaluation.checkpoint=latest'
  if 'validation' not in experiment.dataset.splits:
    mend += (
      f', or train with --config.data.validation_size, since '
      f'{experiment.config.data.name!r} has no validation split of its own'
    )
  return InputError(
    'expected a checkpoint that was measured on validation, got none in '
    f'{directory}: {mend}'
  )


def fold_network(experiment: Experiment, variables: Mapping) -> dict:
  """Returns the variables folded and stripped, as the configuration says.

  Folds into thresholds and, with `evaluation.fold` 'all', also into kernels.
  """
  config = experiment.config
  if config.evaluation.fold == 'thresholds':
    if why_not := why_not_folded(config):
      raise InputError(f'nothing to fold into thresholds: {why_not}')
    return strip(fold(variables))
  x = jax.ShapeDtypeStruct((1, *experiment.dataset.example_shape), np.float32)
  readers = readers_of_spikes(experiment.model, variables, x)
  return strip(fold_all(variables, readers=readers))


def write_folded(
  experiment: Experiment, state: TrainState, *, workdir: pathlib.Path
) -> dict:
  """Writes the folded variables beside the checkpoint and reads them back."""
  config, step = experiment.config, int(state.step)
  kernels = config.evaluation.fold == 'all'
  path = folded_path(workdir, step=step, kernels=kernels)
  save_folded(
    path,
    fold_network(experiment, state.variables),
    model=config.model,
    step=step,
    kernels=kernels,
  )
  print(f'folded variables: {path}')
  _, variables = load_folded(path, model=experiment.model)
  return variables


def summary_file(mode: str, config: ml_collections.ConfigDict) -> str:
  """Returns the name of the summary, which differs for the best checkpoint."""
  of_best = mode != 'train' and config.evaluation.checkpoint == 'best'
  return 'summary_best.json' if of_best else SUMMARY


def summarize(
  experiment: Experiment,
  state: TrainState,
  *,
  workdir: pathlib.Path,
  start: float,
  folded: Mapping | None = None,
  file: str = SUMMARY,
) -> dict:
  """Returns the summary, prints it as a table and writes it as JSON.

  Evaluates the test set, folds the network, and compares every spike of the
  folded network with the unfolded one. If nothing folds, the results of the
  comparison are None.

  Args:
    experiment: from `experiment.build`.
    state: the trained state.
    workdir: where to write the file.
    start: `time.monotonic()` when the command started.
    folded: folded variables to compare with; None folds them here.
    file: name of the file.
  """
  config, splits = experiment.config, experiment.dataset.splits
  why_not = why_not_folded(config)
  if folded is None:
    variables = state.variables
    folded = variables if why_not else fold_network(experiment, variables)
  result = compare(experiment, state.variables, folded, split='test')
  device = jax.devices()[0]
  step = int(state.step)
  summary = {
    'step': step,
    'epochs': step / experiment.batches.steps_per_epoch,
    'num_epochs': config.num_epochs,
    'batch_size': config.data.batch_size,
    'fake': config.data.fake,
    'train_size': len(splits['train']),
    'test_size': len(splits['test']),
    'test_accuracy': result.accuracy,
    # The paper's accuracy does not apply to random images.
    'paper_accuracy': None if config.data.fake else config.paper.accuracy,
    'folded_test_accuracy': None if why_not else result.other_accuracy,
    'spikes_compared': None if why_not else result.spikes_compared,
    'spikes_differing': None if why_not else result.spikes_differing,
    'max_logit_difference': None if why_not else result.max_logit_difference,
    'firing_rate': result.firing_rate,
    'unreadable_images': len(experiment.dataset.unreadable),
    'thresholds': None if why_not else _thresholds(folded.get('threshold', {})),
    'not_folded': why_not,
    'fold': None if why_not else config.evaluation.fold,
    'seconds': time.monotonic() - start,
    'seed': config.seed,
    'model': config.model.name,
    'num_steps': config.model.num_steps,
    'width': config.model.width,
    'conv_norm': config.model.conv_norm,
    'membrane_norm': config.model.membrane_norm,
    'spike_norm': config.model.spike_norm,
    'dataset': config.data.name,
    'device': f'{len(jax.devices())} x {device.device_kind}',
    'jax': jax.__version__,
    'date': datetime.datetime.now(datetime.UTC).isoformat('T', 'seconds'),
  }
  record.write_json(workdir / file, summary)
  print(tables.summary(summary))
  print(f'written: {workdir / file}')
  return summary


def why_not_folded(config: ml_collections.ConfigDict) -> str | None:
  """Returns why `fold_network` has nothing to fold, or None if it has."""
  if config.evaluation.fold == 'all':  # checked by `check_config`
    return None
  name = config.model.membrane_norm
  if name == norm.NONE:
    others = {config.model.conv_norm, config.model.spike_norm} - {norm.NONE}
    folds = others and all(norm.NORMS[other].fold for other in others)
    mend = '; --config.evaluation.fold=all folds the other norms'
    return 'membrane_norm is none' + mend * bool(folds)
  return None if norm.NORMS[name].fold else norm.NORMS[name].why_not


def _thresholds(tree):
  """Returns {layer: range of its thresholds and number of special ones}."""
  leaves = traverse_util.flatten_dict(tree)
  return {
    '/'.join(path): tables.span(
      np.asarray(threshold), np.asarray(leaves[*path, 'polarity'])
    )
    for (*path, name), threshold in leaves.items()
    if name == 'threshold'
  }


def read_summary(workdir: pathlib.Path | str, *, file: str = SUMMARY) -> dict:
  """Returns the summary of a finished run; `file` is from `summary_file`."""
  return json.loads((pathlib.Path(workdir) / file).read_text())
