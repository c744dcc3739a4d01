"""What is the result of a run? Test accuracy, the fold and its proof."""

import datetime
import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from mpbn_jax import checkpoint, norm, record
from mpbn_jax.errors import InputError
from mpbn_jax.evaluate import Comparison, compare, evaluate
from mpbn_jax.folding import fold, fold_convolutions, strip
from mpbn_jax.train import build, init_state

SUMMARY = 'summary.json'


def restore(config: Mapping, *, workdir: pathlib.Path):
  """Returns (experiment, state) of a checkpoint in `workdir`.

  Which one says `evaluation.checkpoint`. Nothing in the directory changes.

  Raises:
    InputError: no run there, another configuration, no readable checkpoint.
  """
  experiment = build(config)
  record.check_config_of(workdir, config)
  directory = workdir / 'checkpoints'
  if not directory.is_dir():
    raise InputError(
      f'expected a trained network in {workdir}, got no checkpoints there: '
      'run --mode=train first, or give its --workdir'
    )
  with checkpoint.Checkpoints(directory, read_only=True) as checkpoints:
    like = init_state(experiment)
    if config.evaluation.checkpoint == 'best':
      step = checkpoints.best_step()
      return experiment, checkpoints.restore(like, step=step)
    restored = checkpoints.restore_latest(like)
  if restored is None:
    raise InputError(
      f'expected a trained network in {workdir}, got no checkpoint in '
      f'{directory}: run --mode=train first, or give its --workdir'
    )
  return experiment, restored[1]


def fold_network(config: Mapping, variables: Mapping) -> dict:
  """Returns the variables folded and stripped, as the configuration asks."""
  folded = fold(variables, v_th=config.model.v_th, eps=config.model.eps)
  if config.evaluation.fold_convolutions:
    folded = fold_convolutions(folded, eps=config.model.eps)
  return strip(folded)


def write_folded(experiment: Any, state: Any, *, workdir: pathlib.Path) -> dict:
  """Returns the folded variables, written beside the checkpoint, read back."""
  folded = fold_network(experiment.config, state.variables)
  path = workdir / 'folded' / str(int(state.step))
  checkpoint.save_variables(path, folded)
  print(f'folded variables: {path}')
  return checkpoint.load_variables(path)


def summarize(
  experiment: Any,
  state: Any,
  *,
  workdir: pathlib.Path,
  start: float,
  folded: Mapping | None = None,
) -> dict:
  """Returns the summary; prints it as a table and writes summary.json.

  Evaluates the test set, folds, and compares every spike of the folded
  network with the unfolded one's.

  Args:
    experiment: as from `train.build`.
    state: trained.
    workdir: where summary.json goes.
    start: `time.monotonic()` when the command started.
    folded: what to compare with; folded here where None.
  """
  config = experiment.config
  summary = {'step': int(state.step)}
  if config.model.membrane_norm == norm.NONE:
    scores = evaluate(experiment, state.variables, split='test')
    summary |= {'test_accuracy': scores['accuracy']}
    summary |= {'folded_test_accuracy': None}
  else:
    if folded is None:
      folded = fold_network(config, state.variables)
    result = compare(experiment, state.variables, folded, split='test')
    summary |= _of_comparison(result) | {
      'thresholds': _thresholds(folded['threshold']),
      'fold_convolutions': config.evaluation.fold_convolutions,
    }
  device = jax.devices()[0]
  summary |= {
    'seconds': time.monotonic() - start,
    'seed': config.seed,
    'model': config.model.name,
    'dataset': config.data.name,
    'device': f'{len(jax.devices())} x {device.device_kind}',
    'jax': jax.__version__,
    'date': datetime.datetime.now(datetime.UTC).isoformat('T', 'seconds'),
  }
  record.write_json(workdir / SUMMARY, summary)
  print(table(summary))
  print(f'written: {workdir / SUMMARY}')
  return summary


def _of_comparison(result: Comparison):
  return {
    'test_accuracy': result.accuracy,
    'folded_test_accuracy': result.other_accuracy,
    'spikes_compared': result.spikes_compared,
    'spikes_differing': result.spikes_differing,
    'max_logit_difference': result.max_logit_difference,
    'firing_rate': result.firing_rate,
  }


def _thresholds(tree, path=()) -> dict:
  """Returns {layer: range of its thresholds, how many turn round}."""
  if 'threshold' not in tree:
    found = {}
    for key, child in tree.items():
      found |= _thresholds(child, (*path, key))
    return found
  threshold, polarity = np.asarray(tree['threshold']), tree['polarity']
  finite = threshold[np.isfinite(threshold)]
  return {
    '/'.join(path): {
      'min': float(finite.min()) if finite.size else None,
      'max': float(finite.max()) if finite.size else None,
      'negative_polarity': int((np.asarray(polarity) < 0).sum()),
      'constant': int(threshold.size - finite.size),
    }
  }


def table(summary: Mapping) -> str:
  """Returns the summary as lines for a terminal."""
  rows = [
    ('network, data', f'{summary["model"]}, {summary["dataset"]}'),
    ('trained steps', f'{summary["step"]:,}'),
    ('test accuracy', f'{summary["test_accuracy"]:.2%}'),
  ]
  if summary['folded_test_accuracy'] is None:
    rows.append(('folded', 'nothing to fold (membrane_norm is none)'))
  else:
    also = ' and convolutions' if summary['fold_convolutions'] else ''
    differ = f'{summary["spikes_differing"]:,}'
    rows += [
      (
        f'test accuracy, thresholds{also} folded',
        f'{summary["folded_test_accuracy"]:.2%}',
      ),
      (
        'spikes that differ',
        f'{differ} of {summary["spikes_compared"]:,}',
      ),
      (
        'largest difference of a logit',
        f'{summary["max_logit_difference"]:.3g}',
      ),
    ]
    for layer, rate in sorted(summary['firing_rate'].items()):
      span = summary['thresholds'].get(layer)
      rows.append((f'{layer}: firing rate, thresholds', _layer(rate, span)))
  rows += [
    ('seed, device', f'{summary["seed"]}, {summary["device"]}'),
    ('seconds', f'{summary["seconds"]:.1f}'),
  ]
  width = max(len(name) for name, _ in rows)
  line = '-' * (width + 2 + max(len(value) for _, value in rows))
  body = [f'{name:<{width}}  {value}' for name, value in rows]
  return '\n'.join([line, *body, line])


def _layer(rate, span):
  if span is None or span['min'] is None:
    return f'{rate:.1%}'
  text = f'{rate:.1%}, {span["min"]:.3f} to {span["max"]:.3f}'
  if span['negative_polarity']:
    text += f', {span["negative_polarity"]} turned round'
  if span['constant']:
    text += f', {span["constant"]} constant'
  return text


def read_summary(workdir: pathlib.Path | str) -> dict:
  """Returns the summary of a finished run."""
  return json.loads((pathlib.Path(workdir) / SUMMARY).read_text())
