"""Model cards: what a trained network is, as Markdown with a YAML header."""

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from mpbn_jax import config as config_lib
from mpbn_jax import config_files
from mpbn_jax.errors import InputError

# {key of the summary: the setting that it repeats}
_REPEATED = {
  'model': 'model.name',
  **{
    key: f'model.{key}'
    for key in (
      *('num_steps', 'width'),
      *('conv_norm', 'membrane_norm', 'spike_norm'),
    )
  },
  'dataset': 'data.name',
  'batch_size': 'data.batch_size',
  'fake': 'data.fake',
  'seed': 'seed',
}
# Settings of a machine or a result, not of a network.
_NOT_SHOWN = (
  *('data.dir', 'data.prefetch', 'data.workers'),
  *('init_from', 'log.', 'paper.'),
)
_TAGS = ('spiking-neural-network', 'mpbn', 'jax', 'flax')
_TASK = 'image-classification'


def model_card(
  config: Mapping,
  summary: Mapping,
  *,
  name: str,
  license: str | None = None,
  usage: str = '',
) -> str:
  """Returns the model card of a run, in the format of `huggingface_hub`.

  That is Markdown after a YAML header, the README.md of a model repository. In
  the header, `model-index` has the accuracy on the test split, unfolded and
  folded. The card of a run on random examples (`data.fake`) has no results.

  Args:
    config: the run's configuration, or its config.json.
    summary: its summary.json (`report.read_summary`).
    name: name of the network, for people.
    license: identifier of the licence of the weights, such as 'apache-2.0';
      None leaves it out.
    usage: Markdown that says how to load the network; '' says how to load the
      run.

  Raises:
    InputError: the summary is that of another run, or lacks results; the name
      is empty or has several lines.

  Example:
    >>> from mpbn_jax import config_files, report
    >>> config = config_files.load(f'{workdir}/config.json')
    >>> card = model_card(
    ...   config, report.read_summary(workdir), name='digits, T = 2'
    ... )
    >>> card.splitlines()[:2]
    ['---', 'library_name: "mpbn_jax"']
  """
  if len(name.strip().splitlines()) != 1:
    raise InputError(
      f'expected a name for the network, one line, got {name!r}: pass another'
    )
  flat = config_lib.flatten(config)
  flat.pop('format', None)  # of config.json
  _check_same_run(flat, summary)
  parts = [
    _header(flat, summary, name=name, license=license),
    f'# {name}',
    _description(flat),
    '## Results',
    _results(summary),
    '## Training',
    _training(flat, summary),
    '## Use',
    usage.strip() or _USAGE,
    '## Limits',
    _limits(flat, summary),
    '## Citation',
    _CITATION,
  ]
  return '\n\n'.join(parts) + '\n'


def _check_same_run(flat, summary):
  for key in (*_REPEATED, 'test_accuracy', 'step', 'epochs', 'firing_rate'):
    if key not in summary:
      raise InputError(
        f'expected the summary of a run, got one without {key!r}: run '
        '--mode=evaluate, which writes summary.json'
      )
  for key, setting in _REPEATED.items():
    if summary[key] != flat[setting]:
      raise InputError(
        f'expected the summary of the run with this configuration, got one '
        f'with {key} = {summary[key]!r} in place of {flat[setting]!r}: pass '
        'the config.json and summary.json of the same work directory'
      )


def _header(flat, summary, *, name, license):
  """Returns the YAML; quoted as JSON, which is YAML too."""
  quoted = json.dumps
  lines = ['---', f'library_name: {quoted("mpbn_jax")}']
  if license is not None:
    lines.append(f'license: {quoted(license)}')
  lines += [f'pipeline_tag: {_TASK}', 'tags:']
  lines += [f'- {tag}' for tag in _TAGS]
  if not summary['fake']:
    lines += ['metrics:', '- accuracy', 'model-index:']
    lines += [f'- name: {quoted(name)}', '  results:', '  - task:']
    lines += [f'      type: {_TASK}', '    dataset:']
    lines += [
      f'      {key}: {quoted(flat["data.name"])}' for key in ('name', 'type')
    ]
    lines += ['      split: test', '    metrics:']
    for text, key in (
      ('Test accuracy', 'test_accuracy'),
      ('Test accuracy, folded', 'folded_test_accuracy'),
    ):
      if summary.get(key) is not None:
        lines += ['    - type: accuracy', f'      name: {quoted(text)}']
        lines.append(f'      value: {round(summary[key], 6)}')
  return '\n'.join([*lines, '---'])


def _description(flat):
  norms = [
    f'`{flat[f"model.{place}_norm"]}` {where}'
    for place, where in (
      ('conv', 'after each convolution'),
      ('membrane', 'on the membrane potential'),
      ('spike', 'on the spikes'),
    )
    if flat[f'model.{place}_norm'] != 'none'
  ]
  normed = f'Norms: {", ".join(norms)}.' if norms else 'It has no norms.'
  kept, v_th = (
    f'{flat[f"model.{key}"]}{" at first" * flat[f"model.learn_{key}"]}'
    for key in ('tau', 'v_th')
  )
  return (
    f'A spiking neural network, `{flat["model.name"]}` of width '
    f'{flat["model.width"]}, that classifies {flat["model.num_classes"]} '
    f'classes of `{flat["data.name"]}` in T = {flat["model.num_steps"]} time '
    f'steps. Leaky integrate-and-fire neurons: kept fraction {kept}, threshold '
    f'{v_th}, {flat["model.reset"]} reset. {normed}'
  )


def _results(summary):
  if summary['fake']:
    return (
      f'None: it was trained and tested on {summary["fake"]} random examples '
      '(`data.fake`).'
    )
  rows = [
    ('test accuracy', f'{summary["test_accuracy"]:.2%}'),
    ('test examples', f'{summary["test_size"]:,}'),
  ]
  if summary.get('folded_test_accuracy') is not None:
    rows += [
      ('test accuracy, folded', f'{summary["folded_test_accuracy"]:.2%}'),
      (
        'spikes that differ after folding',
        f'{summary["spikes_differing"]:,} of {summary["spikes_compared"]:,}',
      ),
    ]
  rows += [
    (f'firing rate, {layer}', f'{rate:.1%}')
    for layer, rate in summary['firing_rate'].items()
  ]
  return _table(rows)


def _training(flat, summary):
  rows = [
    ('examples', f'{summary["train_size"]:,} of `{flat["data.name"]}`'),
    ('batch size', flat['data.batch_size']),
    ('epochs', f'{summary["epochs"]:g} of {summary["num_epochs"]}'),
    ('steps', f'{summary["step"]:,}'),
    (
      'optimizer',
      f'{flat["optimizer.name"]}, learning rate '
      f'{flat["optimizer.learning_rate"]:g}',
    ),
    ('seed', flat['seed']),
    ('device', summary['device']),
    ('jax', summary['jax']),
    ('date', summary['date']),
  ]
  command = ' \\\n  '.join(
    ['mpbn_jax --config=configs/default.py', *_overrides(flat)]
  )
  start = ''
  if flat['init_from']:
    start = '\n\nIt started from the weights of another run (`--init_from`).'
  return (
    f'{_table(rows)}\n\nThe command, with every setting that differs from the '
    f'defaults:\n\n```sh\n{command}\n```{start}'
  )


def _overrides(flat) -> Iterator[str]:
  """Yields --config.key=value for the settings that differ from defaults."""
  defaults = config_lib.flatten(config_files.load(config_files.KEYS))
  for key, value in flat.items():
    if not key.startswith(_NOT_SHOWN) and value != defaults.get(key):
      yield shlex.quote(f'--config.{key}={value}')


def _limits(flat, summary):
  lines = [
    f'The accuracy is that of the test split of `{flat["data.name"]}`; nothing '
    'is known about other images. It is the result of one seed, '
    f'{flat["seed"]}.'
  ]
  if summary.get('unreadable_images'):
    lines.append(
      f'{summary["unreadable_images"]} images could not be decoded; those of '
      'the test split count as wrong.'
    )
  lines.append(
    'The paper reports nothing about this network: it was trained with an '
    'independent implementation.'
  )
  return ' '.join(lines)


def _table(rows: list[tuple[str, Any]]) -> str:
  return '\n'.join(
    ['| | |', '| --- | --- |', *(f'| {name} | {text} |' for name, text in rows)]
  )


_USAGE = """```python
import mpbn_jax

run = mpbn_jax.load_run('runs/digits')  # the work directory
logits = run.model.apply(run.variables, run.spec.normalize(images), train=False)
```"""

_CITATION = """```bibtex
@inproceedings{guo2023mpbn,
  title     = {Membrane Potential Batch Normalization for Spiking Neural
               Networks},
  author    = {Guo, Yufei and Zhang, Yuhan and Chen, Yuanpei and Peng, Weihang
               and Liu, Xiaode and Zhang, Liwen and Huang, Xuhui and Ma, Zhe},
  booktitle = {IEEE/CVF International Conference on Computer Vision (ICCV)},
  year      = {2023}
}
```"""
