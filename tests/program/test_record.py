"""What a run leaves behind, whenever its process was stopped."""

import io
import json
import os
import pty
import sys

import pytest
import runs
import tensorboardX
from tensorboardX.proto import event_pb2

from mpbn_jax import config, record, tensorboard_events
from mpbn_jax.configs import default
from mpbn_jax.errors import InputError


def stored(path):
  return config.from_json((path / 'config.json').read_text())


def open_workdir(path, config):
  with record.hold_workdir(path, config):
    pass


# ---- config.json


def test_workdir_is_made_with_its_configuration(tmp_path):
  with record.hold_workdir(tmp_path / 'a' / 'b', default.get_config()) as held:
    assert held.stored is None
  assert config.differences(default.get_config(), stored(held.path)) == []


def test_free_keys_may_differ_and_are_stored_when_the_run_goes_on(tmp_path):
  before, now = default.get_config(), default.get_config()
  open_workdir(tmp_path, before)
  now.num_epochs += 1
  now.log.every_steps += 1
  now.evaluation.checkpoint = 'best'
  open_workdir(tmp_path, now)
  assert stored(tmp_path)['num_epochs'] == before.num_epochs
  record.write_config(tmp_path, now)
  assert stored(tmp_path)['num_epochs'] == now.num_epochs
  assert stored(tmp_path)['log']['every_steps'] == now.log.every_steps


def test_run_from_before_a_key_goes_on_as_it_was(tmp_path):
  now = default.get_config()
  open_workdir(tmp_path, now)
  file = tmp_path / 'config.json'
  content = json.loads(file.read_text())
  del content['model']['autodiff'], content['model']['keep']
  file.write_text(json.dumps(content))
  # Its programs were derived by JAX: to resume with the same bits, so are ours.
  with pytest.raises(InputError, match=r'model.autodiff: True -> False\)'):
    open_workdir(tmp_path, now)
  now.model.autodiff = True
  open_workdir(tmp_path, now)
  del content['format']
  assert config.differences(now, content) == []  # as a checkpoint stores it


FREE = (
  *('log.', 'evaluation.', 'paper.', 'num_epochs'),
  *('data.dir', 'data.workers', 'data.prefetch', 'data.on_bad_image'),
)


@pytest.mark.parametrize('key', config.flatten(default.get_config()))
def test_every_other_key_that_differs_is_named(key, tmp_path):
  before = default.get_config()
  open_workdir(tmp_path, before)
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
  open_workdir(tmp_path, default.get_config())
  values = stored(tmp_path)
  values['model']['colour'] = 'red'
  text = json.dumps({'format': config.FORMAT, **values})
  (tmp_path / 'config.json').write_text(text)
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


@pytest.mark.parametrize('kind', ['empty', 'file', 'dangling'])
def test_place_that_is_no_directory_is_an_input_error(kind, tmp_path):
  path = tmp_path / 'run'
  if kind == 'file':
    path.write_text('mine')
  if kind == 'dangling':
    path.symlink_to(tmp_path / 'nowhere')
  with pytest.raises(InputError, match='expected a work directory') as error:
    open_workdir('' if kind == 'empty' else path, default.get_config())
  assert '\n' not in str(error.value)
  assert not (tmp_path / 'nowhere').exists()


def test_file_in_the_place_of_the_checkpoints_is_one_line(tmp_path, capsys):
  open_workdir(tmp_path, runs.config())
  (tmp_path / 'checkpoints').write_text('mine')
  before = runs.snapshot(tmp_path)
  assert runs.run(tmp_path) == 2
  assert 'expected to write' in runs.the_error(capsys.readouterr())
  assert runs.snapshot(tmp_path) == before


def test_work_directory_behind_a_link_is_used(tmp_path):
  (tmp_path / 'disk').mkdir()
  (tmp_path / 'run').symlink_to('disk')
  open_workdir(tmp_path / 'run', default.get_config())
  assert (tmp_path / 'disk' / 'config.json').exists()


def test_configuration_of_another_format_is_one_short_line(tmp_path):
  (tmp_path / 'config.json').write_text('{"seed": 7, "lr": 0.1}')
  message = f'{tmp_path}/config.json, .* has format 1, .* reads format 2'
  with pytest.raises(InputError, match=message):
    record.check_config_of(tmp_path, default.get_config())
  (tmp_path / 'config.json').write_text('{"format": 2, "lr": 0.1}')
  with pytest.raises(InputError, match='; and [0-9]+ more') as error:
    record.check_config_of(tmp_path, default.get_config())
  assert f'{tmp_path}/config.json belongs to a run with another' in str(
    error.value
  )
  assert len(str(error.value)) < 1000


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


def write_metrics(path, *, start, at, tensorboard=False):
  with record.Metrics(path, step=start, tensorboard=tensorboard) as metrics:
    for step in at:
      metrics.write(step, {'loss': 0.5})


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
def test_half_written_line_is_dropped(tmp_path, tail, caplog):
  write_metrics(tmp_path, start=0, at=[1, 2])
  with (tmp_path / 'metrics.jsonl').open('ab') as file:
    file.write(tail)
  write_metrics(tmp_path, start=2, at=[3])
  assert steps(tmp_path) == [1, 2, 3]
  assert caplog.text == ''


def test_damaged_line_is_named_and_costs_no_other_line(tmp_path, caplog):
  write_metrics(tmp_path, start=0, at=[1, 2, 3])
  path = tmp_path / 'metrics.jsonl'
  path.write_text(path.read_text().replace('{"step": 2', '{"st'))
  write_metrics(tmp_path, start=3, at=[4])
  assert steps(tmp_path) == [1, 3, 4]
  assert f'{path}, line 2 is damaged: it is dropped' in caplog.text


# ---- TensorBoard


def shown(path):
  """Returns [(name, step)] of what TensorBoard shows, twice what is twice."""
  directory = path / 'tensorboard'
  found = []
  for file in tensorboard_events._files(directory):
    for data in tensorboard_events._records(file):
      event = event_pb2.Event.FromString(data)
      if event.session_log.status == event_pb2.SessionLog.START:
        found = [(name, step) for name, step in found if step < event.step]
      found += [(value.tag, event.step) for value in event.summary.value]
  assert set(found) == tensorboard_events.scalars_in(directory)
  return found


def losses(*steps):
  return [('loss', step) for step in steps]


def test_tensorboardx_reads_what_is_written(tmp_path):
  """Its own writer's bytes, but for the times."""
  write_metrics(tmp_path, start=4, at=[5], tensorboard=True)
  writer = tensorboardX.SummaryWriter(str(tmp_path / 'x'), purge_step=5)
  writer.add_scalar('loss', 0.5, 5)
  writer.close()
  events = []
  for directory in (tmp_path / 'tensorboard', tmp_path / 'x'):
    (file,) = directory.iterdir()
    events.append([])
    for data in tensorboard_events._records(file):
      event = event_pb2.Event.FromString(data)
      event.wall_time = 0
      if not event.file_version:
        events[-1].append(event)
  assert events[0] == events[1]
  assert len(events[0]) == 2


def test_what_a_killed_process_flushed_is_there(tmp_path):
  metrics = record.Metrics(tmp_path, step=0)
  metrics.write(1, {'loss': 0.5})
  metrics.flush()
  metrics.write(2, {'loss': 0.5})  # it is killed here
  assert shown(tmp_path) == losses(1)
  # The checkpoint of step 2 was written, say.
  write_metrics(tmp_path, start=2, at=[3], tensorboard=True)
  assert shown(tmp_path) == losses(1, 2, 3)
  metrics._events._file.close()


def test_what_was_logged_without_event_files_is_added(tmp_path):
  write_metrics(tmp_path, start=0, at=[1, 2])
  write_metrics(tmp_path, start=2, at=[3], tensorboard=True)
  write_metrics(tmp_path, start=3, at=[4], tensorboard=True)
  assert shown(tmp_path) == losses(1, 2, 3, 4)


def test_steps_that_come_again_are_shown_once(tmp_path):
  write_metrics(tmp_path, start=0, at=[1, 2, 3, 4], tensorboard=True)
  write_metrics(tmp_path, start=2, at=[3, 4, 5], tensorboard=True)
  assert shown(tmp_path) == losses(1, 2, 3, 4, 5)


def test_what_a_damaged_event_file_lost_is_added(tmp_path):
  write_metrics(tmp_path, start=0, at=[1, 2, 3], tensorboard=True)
  (file,) = (tmp_path / 'tensorboard').iterdir()
  content = file.read_bytes()
  file.write_bytes(content[:-5])
  write_metrics(tmp_path, start=3, at=[4], tensorboard=True)
  assert shown(tmp_path) == losses(1, 2, 3, 4)
  assert len(list((tmp_path / 'tensorboard').iterdir())) == 2


def test_clock_that_was_set_back_leaves_the_order(tmp_path, monkeypatch):
  for now, step in ((2e9, 0), (1e9, 1), (1e9, 2)):
    monkeypatch.setattr(tensorboard_events.time, 'time', lambda now=now: now)
    write_metrics(tmp_path, start=step, at=[step + 1], tensorboard=True)
  assert shown(tmp_path) == losses(1, 2, 3)
  names = sorted(p.name for p in (tmp_path / 'tensorboard').iterdir())
  stamps = [name.split('.')[3] for name in names]
  assert stamps == ['2000000000', '2000000001', '2000000002']


def test_metrics_that_were_removed_are_not_begun_anew(tmp_path):
  metrics = record.Metrics(tmp_path, step=0, tensorboard=False)
  metrics.write(1, {'loss': 0.5})
  (tmp_path / 'metrics.jsonl').unlink()
  with pytest.raises(InputError, match='expected to write .*metrics.jsonl'):
    metrics.write(2, {'loss': 0.5})


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
