"""What --help prints: every mode, flag, key and known name."""

import re
import subprocess
import sys

import pytest
import runs

import main as program
from mpbn_jax import (
  MODELS,
  SURROGATES,
  command_line,
  config,
  config_files,
  norm,
)
from mpbn_jax.datasets import DATASETS
from mpbn_jax.neuron import RESETS


def test_help_has_modes_flags_and_examples(capsys):
  assert program.main(['--help']) == 0
  text = capsys.readouterr().out
  for mode in command_line.MODES:
    assert mode in text
  for flag in ('--mode=', '--config=', '--workdir=', '--checkpoint='):
    assert flag in text
  assert text.count('python main.py') >= 4
  assert max(len(line) for line in text.splitlines()) <= 80


def test_help_into_a_closed_pipe_is_silent():
  command = f'"{sys.executable}" main.py --help | head -1'
  done = subprocess.run(
    command, shell=True, cwd=runs.ROOT, capture_output=True, text=True
  )
  assert done.stdout == 'Trains, evaluates and folds spiking networks.\n'
  assert done.stderr == ''


def _help_of_keys(text):
  """Returns {key: its text}, of what stands between its line and the next."""
  texts, key = {}, None
  for line in text[text.index('Keys, with') :].splitlines()[1:]:
    if line.startswith('  --config.'):
      key = line.removeprefix('  --config.').partition('=')[0]
      texts[key] = ''
    elif not line.startswith(' ' * 6):  # a heading of several keys
      key = None
    elif key is not None:
      texts[key] += f' {line.strip()}'
  return {key: text.strip() for key, text in texts.items()}


def test_help_has_every_key_on_a_line_of_its_own_with_its_own_text(capsys):
  program.main(['--help'])
  text = capsys.readouterr().out
  texts = _help_of_keys(text)
  flat = config.flatten(config_files.load(config_files.DEFAULT))
  assert texts.keys() == flat.keys()
  for key, value in flat.items():
    assert f'\n  --config.{key}={value}\n' in text
    assert len(texts[key]) > 3, key
  # The text behind a key is all of its text.
  source = (runs.ROOT / 'configs' / 'default.py').read_text()
  behind = dict(
    re.findall(r'^ +([a-z_.]+) = .*  # (.*)$', source, re.MULTILINE)
  )
  assert len(behind) > 20
  for key, comment in behind.items():
    assert texts[key.removeprefix('config.')] == comment


def test_help_has_the_heading_of_the_augmentations_once(capsys):
  program.main(['--help'])
  text = capsys.readouterr().out
  heading = '\n\n  Augmentation of training images, in this order.\n'
  assert text.count(heading) == 1
  key = '  --config.data.resized_crop='
  assert text[text.index(heading) + len(heading) :].startswith(key)


@pytest.mark.parametrize(
  ('key', 'known'),
  {
    'model.name': MODELS,
    'model.surrogate': SURROGATES,
    'model.reset': RESETS,
    'model.conv_norm': norm.names_at('conv'),
    'model.membrane_norm': norm.names_at('membrane'),
    'model.spike_norm': norm.names_at('spike'),
    'data.name': DATASETS,
    'evaluation.checkpoint': ('latest', 'best'),
  }.items(),
)
def test_help_lists_every_known_name(key, known, capsys):
  program.main(['--help'])
  text = capsys.readouterr().out
  after = text[text.index(f'\n  --config.{key}=') :]
  comment = ' '.join(after.split('--config.')[1].split()[1:])
  missing = [n for n in known if not re.search(rf'\b{n}\b', comment)]
  assert not missing, (
    f'--help shows the comment of {key} in configs/default.py: add '
    f'{", ".join(missing)} to it'
  )


def test_help_shows_the_values_of_the_given_file(capsys):
  program.main(['--help', '--config=configs/default.py'])
  assert '--config.model.name=resnet20\n' in capsys.readouterr().out
