"""Is what a run leaves behind whole, whenever the process was stopped?"""

import io
import json
import os
import pty
import sys

import pytest
import runs

from configs import default
from mpbn_jax import config, record
from mpbn_jax.errors import InputError


def stored(path):
  return json.loads((path / 'config.json').read_text())


# ---- config.json


def test_workdir_is_made_with_its_configuration(tmp_path):
  path = record.open_workdir(tmp_path / 'a' / 'b', default.get_config())
  assert config.differences(default.get_config(), stored(path)) == []


def test_free_keys_may_differ_and_are_stored_when_the_run_goes_on(tmp_path):
  before, now = default.get_config(), default.get_config()
  record.open_workdir(tmp_path, before)
  now.num_epochs += 1
  now.log.every_steps += 1
  now.evaluation.checkpoint = 'best'
  record.open_workdir(tmp_path, now)
  assert stored(tmp_path)['num_epochs'] == before.num_epochs
  record.write_config(tmp_path, now)
  assert stored(tmp_path)['num_epochs'] == now.num_epochs
  assert stored(tmp_path)['log']['every_steps'] == now.log.every_steps


FREE = (
  *('log.', 'evaluation.', 'paper.', 'num_epochs'),
  *('data.dir', 'data.workers', 'data.prefetch', 'data.on_bad_image'),
)


@pytest.mark.parametrize('key', config.flatten(default.get_config()))
def test_every_other_key_that_differs_is_named(key, tmp_path):
  before = default.get_config()
  record.open_workdir(tmp_path, before)
  now = config.flatten(before)
  now[key] = 7 if now[key] != 7 else 8
  with_change = {}
  for name, value in now.items():
    *groups, last = name.split('.')
    node = with_change
    for group in groups:
      node = node.setdefault(group, {})
    node[last] = value
  if key.startswith(FREE):
    record.check_config_of(tmp_path, with_change)
    return
  with pytest.raises(InputError, match=f'{key}: .* -> 7') as error:
    record.check_config_of(tmp_path, with_change)
  assert str(error.value).count(' -> ') == 1


def test_key_that_only_one_side_has_is_named(tmp_path):
  record.open_workdir(tmp_path, default.get_config())
  values = stored(tmp_path)
  values['model']['colour'] = 'red'
  (tmp_path / 'config.json').write_text(json.dumps(values))
  with pytest.raises(InputError, match="model.colour: 'red' -> None"):
    record.check_config_of(tmp_path, default.get_config())


@pytest.mark.parametrize('text', [b'{"seed": 0', b'[]', b'', b'\xff'])
@pytest.mark.parametrize('mode', runs.MODES)
def test_damaged_configuration_is_one_line(mode, text, tmp_path, capsys):
  (tmp_path / 'config.json').write_bytes(text)
  (tmp_path / 'checkpoints').mkdir()
  before = runs.snapshot(tmp_path)
  assert runs.run(tmp_path, f'--mode={mode}') == 2
  _, err = capsys.readouterr()
  assert err.startswith('error: expected the configuration of a run in ')
  assert err.count('\n') == 1
  assert runs.snapshot(tmp_path) == before


def test_file_in_the_place_of_the_checkpoints_is_an_input_error(tmp_path):
  (tmp_path / 'checkpoints').write_text('mine')
  with pytest.raises(InputError, match='work directory that can be written'):
    record.open_workdir(tmp_path, default.get_config())
  assert (tmp_path / 'checkpoints').read_text() == 'mine'


@pytest.mark.parametrize('mode', runs.MODES)
def test_checkpoints_without_configuration_are_refused(mode, tmp_path, capsys):
  (tmp_path / 'checkpoints').mkdir()
  assert runs.run(tmp_path, f'--mode={mode}') == 2
  _, err = capsys.readouterr()
  assert 'expected config.json beside the checkpoints' in err
  assert err.count('\n') == 1
  assert runs.snapshot(tmp_path) == {}


# ---- metrics.jsonl


def steps(path):
  lines = (path / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line)['step'] for line in lines]


def write_metrics(path, *, start, at):
  metrics = record.Metrics(path, step=start, tensorboard=False)
  for step in at:
    metrics.write(step, {'loss': 0.5})
  metrics.close()


def test_metrics_are_one_json_object_a_line(tmp_path):
  write_metrics(tmp_path, start=0, at=[1, 2])
  text = (tmp_path / 'metrics.jsonl').read_text()
  assert text == '{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.5}\n'


def test_lines_after_the_checkpoint_are_dropped(tmp_path):
  write_metrics(tmp_path, start=0, at=[1, 2, 3, 4])
  write_metrics(tmp_path, start=2, at=[3, 4, 5])
  assert steps(tmp_path) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
  'tail', [b'{"step": 3, "lo', b'{', b'\xff', b'\n', b'[]\n', b'null\n']
)
def test_half_written_line_is_dropped(tmp_path, tail):
  write_metrics(tmp_path, start=0, at=[1, 2])
  with (tmp_path / 'metrics.jsonl').open('ab') as file:
    file.write(tail)
  write_metrics(tmp_path, start=2, at=[3])
  assert steps(tmp_path) == [1, 2, 3]


def test_damaged_line_costs_no_other_line(tmp_path):
  write_metrics(tmp_path, start=0, at=[1, 2, 3])
  path = tmp_path / 'metrics.jsonl'
  path.write_text(path.read_text().replace('{"step": 2', '{"st'))
  write_metrics(tmp_path, start=3, at=[4])
  assert steps(tmp_path) == [1, 3, 4]


def test_event_files_are_written(tmp_path):
  metrics = record.Metrics(tmp_path, step=0, tensorboard=True)
  metrics.write(1, {'loss': 0.5})
  metrics.close()
  (file,) = (tmp_path / 'tensorboard').iterdir()
  assert b'loss' in file.read_bytes()


# ---- whole or not at all


def test_failing_to_write_json_leaves_the_old_one(tmp_path, monkeypatch):
  path = tmp_path / 'summary.json'
  record.write_json(path, {'a': 1})

  def full(descriptor):
    del descriptor
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', full)
  with pytest.raises(InputError, match='No space left on device'):
    record.write_json(path, {'a': 2})
  assert json.loads(path.read_text()) == {'a': 1}


# ---- progress


def test_without_a_terminal_lines_are_plain(capsys):
  progress = record.Progress(total=4, done=2)
  progress.advance()
  progress.say(3, 'loss 1')
  progress.close()
  out, err = capsys.readouterr()
  assert err == ''
  assert out.startswith('step 3/4  loss 1  left ')
  assert out.endswith(' s\n')


def _until_closed(master):
  # The kernel hands over what was written piece by piece.
  shown = b''
  while True:
    try:
      shown += os.read(master, 10000)
    except OSError:  # Linux's end of file of a terminal
      return shown.decode()


def test_on_a_terminal_a_bar_shows_the_time_left(monkeypatch, capsys):
  master, slave = pty.openpty()
  with os.fdopen(slave, 'w') as terminal:
    monkeypatch.setattr(
      os, 'get_terminal_size', lambda *_: os.terminal_size((80, 24))
    )
    monkeypatch.setattr(sys, 'stderr', terminal)
    progress = record.Progress(total=4, done=2)
    progress.advance()
    progress.say(3, 'loss 1')
    progress.close()
  shown = _until_closed(master)
  os.close(master)
  assert '3/4' in shown
  assert 'left ' in shown
  assert capsys.readouterr().out == 'step 3  loss 1\n'


def test_terminal_without_columns_gets_plain_lines(monkeypatch, capsys):
  terminal = io.StringIO()
  terminal.isatty = lambda: True
  terminal.fileno = lambda: 2
  monkeypatch.setattr(
    os, 'get_terminal_size', lambda *_: os.terminal_size((0, 0))
  )
  monkeypatch.setattr(sys, 'stderr', terminal)
  progress = record.Progress(total=2, done=0)
  progress.say(1, 'loss 1')
  progress.close()
  assert capsys.readouterr().out.startswith('step 1/2  loss 1')
  assert terminal.getvalue() == ''
