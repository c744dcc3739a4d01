"""Model cards: the header, the numbers, the command, and what is refused."""

import json
import re
import shlex

import pytest
import runs
import yaml

from mpbn_jax import command_line, config_files, report
from mpbn_jax import config as config_lib
from mpbn_jax.errors import InputError
from mpbn_jax.model_card import model_card


@pytest.fixture(scope='module')
def run():
  """(config, summary) of a finished run."""
  workdir = runs.finished()
  config = config_files.load(workdir / 'config.json')
  return config, report.read_summary(workdir)


def _header(card):
  _, header, body = card.split('---\n', 2)
  return yaml.safe_load(header), body


def test_header_has_the_results_as_metadata(run):
  config, summary = run
  name = 'a "quoted": name'
  header, body = _header(model_card(config, summary, name=name, license='mit'))
  assert (header['license'], header['library_name']) == ('mit', 'mpbn_jax')
  (model,) = header['model-index']
  (result,) = model['results']
  assert model['name'] == name
  assert result['dataset'] == {
    'name': 'digits',
    'type': 'digits',
    'split': 'test',
  }
  values = [metric['value'] for metric in result['metrics']]
  keys = ('test_accuracy', 'folded_test_accuracy')
  assert values == [pytest.approx(summary[key], abs=1e-6) for key in keys]
  assert f'# {name}' in body


def test_body_has_the_numbers_of_the_summary(run):
  config, summary = run
  _, body = _header(model_card(config, summary, name='digits'))
  assert f'| test accuracy | {summary["test_accuracy"]:.2%} |' in body
  spikes = f'0 of {summary["spikes_compared"]:,}'
  assert f'| spikes that differ after folding | {spikes} |' in body
  for layer, rate in summary['firing_rate'].items():
    assert f'| firing rate, {layer} | {rate:.1%} |' in body


def test_command_of_the_card_describes_the_run(run):
  config, summary = run
  card = model_card(config, summary, name='digits')
  command = re.search(r'```sh\nmpbn_jax (.*?)\n```', card, re.DOTALL)[1]
  command = command.replace('\\\n', '')
  parsed = command_line.parse(shlex.split(command)).config
  ours, theirs = map(config_lib.flatten, (parsed, config))
  different = {key for key in ours if ours[key] != theirs[key]}
  assert all(key.startswith('log.') for key in different)
  assert '/' not in command.replace('configs/default.py', '')


def test_config_json_gives_the_same_card(run):
  config, summary = run
  stored = json.loads((runs.finished() / 'config.json').read_text())
  card = model_card(stored, summary, name='digits')
  assert card == model_card(config, summary, name='digits')


def test_random_examples_give_no_results(run):
  config, summary = run
  config = config.copy_and_resolve_references()
  config.data.fake = 64
  card = model_card(config, {**summary, 'fake': 64}, name='fake')
  header, body = _header(card)
  assert 'model-index' not in header
  assert 'None: it was trained and tested on 64 random examples' in body
  assert '%' not in body


def test_network_that_does_not_fold_has_one_accuracy(run):
  config, summary = run
  summary = {**summary, 'folded_test_accuracy': None, 'not_folded': 'no norm'}
  header, body = _header(model_card(config, summary, name='digits'))
  (result,) = header['model-index'][0]['results']
  assert len(result['metrics']) == 1
  assert 'folding' not in body.partition('## Training')[0]


@pytest.mark.parametrize(
  ('changes', 'name', 'message'),
  [
    ({'seed': 7}, 'x', 'this configuration, got one with seed = 7 in place of'),
    ({'width': 64}, 'x', 'with width = 64 in place of 2'),
    ({'step': ...}, 'x', "got one without 'step': run --mode=evaluate"),
    ({}, ' ', "expected a name for the network, one line, got ' '"),
    ({}, 'a\nb', 'expected a name for the network, one line'),
  ],
)
def test_wrong_summary_or_name_is_refused(run, changes, name, message):
  config, summary = run
  summary = {**summary, **changes}
  summary = {k: v for k, v in summary.items() if v is not ...}
  with pytest.raises(InputError, match=re.escape(message)):
    model_card(config, summary, name=name)
