"""The command line: every argument read, bad input told in one line."""

import pytest
import runs
from runs import the_error

import main as program
from mpbn_jax import command_line, config, config_files

KEY = '--config.'

# Arguments and what the one line on stderr must say.
BAD_INPUT = {
  'unknown key': (
    [KEY + 'model.num_step=4'],
    "unknown configuration key 'model.num_step'",
    "did you mean 'model.num_steps'",
  ),
  'unknown group': (
    [KEY + 'modle.tau=0.5'],
    "unknown configuration key 'modle.tau'",
    "did you mean 'model.tau'",
  ),
  'unknown key of two groups': (
    [KEY + 'optimiser.momentum=0.5'],
    "did you mean 'optimizer.momentum'",
  ),
  'what others call a key': (
    [KEY + 'lr=1'],
    "did you mean 'optimizer.learning_rate'",
  ),
  'what others call it, in its group': (
    [KEY + 'model.steps=2'],
    "did you mean 'model.num_steps'",
  ),
  'the optimizer': (
    [KEY + 'optimizer.name=adam'],
    "unknown optimizer.name 'adam': expected one of adamw, lamb, sgd",
  ),
  'a key of two groups': (
    [KEY + 'momentum=0.5'],
    "did you mean 'model.momentum' or 'optimizer.momentum'",
  ),
  'nothing like a key': (
    [KEY + 'xyzzy=3'],
    "unknown configuration key 'xyzzy': see --help",
  ),
  'key without its prefix': (
    ['--model.num_steps=2'],
    'did you mean --config.model.num_steps?',
  ),
  'name of a key as a flag': (
    ['--epochs=2'],
    'did you mean --config.num_epochs?',
  ),
  'a flag, nearly': (['--wrokdir=x'], "did you mean '--workdir'?"),
  'a group': ([KEY + 'model=3'], "'model' is a group of keys", KEY + 'model.'),
  'no integer': (
    [KEY + 'model.num_steps=2.5'],
    "model.num_steps must be an integer, got '2.5'",
    'write --config.model.num_steps=',
  ),
  'no number': ([KEY + 'model.tau=abc'], "must be a number, got 'abc'"),
  'none for a number': ([KEY + 'model.tau=None'], "must be a number, got 'No"),
  'no boolean': (
    [KEY + 'model.unroll=maybe'],
    "model.unroll must be true or false, got 'maybe'",
  ),
  'no value': ([KEY + 'model.tau'], 'must be a number, got no value'),
  'no number or None': (
    [KEY + 'model.surrogate_parameter=x'],
    "must be a number or None, got 'x'",
  ),
  'unknown flag': (
    ['--nosuchflag'],
    "unknown flag '--nosuchflag'",
    '--workdir',
  ),
  'positional': (['train'], "expected only --flags, got 'train'"),
  'unknown mode': (
    ['--mode=foo'],
    "unknown mode 'foo'",
    'one of analyze, evaluate, export, fold, import, landscape, prepare, '
    'reproduce, steps, train',
  ),
  'flag without value': (['--mode'], '--mode needs a value', 'train|evaluate'),
  'missing file': (
    ['--config=nosuch.py'],
    "expected a configuration file, got 'nosuch.py'",
    'digits.py',
  ),
  'unknown model': (
    [KEY + 'model.name=resnet21'],
    "unknown model 'resnet21'",
    'one of ',
    'spiking_cnn',
  ),
  'unknown surrogate': (
    [KEY + 'model.surrogate=x'],
    "unknown surrogate 'x'",
    'rect',
  ),
  'unknown reset': ([KEY + 'model.reset=x'], "unknown reset 'x'", 'hard, soft'),
  'unknown current norm': (
    [KEY + 'model.conv_norm=x'],
    "unknown conv_norm 'x'",
    'bn',
  ),
  'unknown membrane norm': (
    [KEY + 'model.membrane_norm=bn'],
    "unknown membrane_norm 'bn'",
    'mpbn_channel',
  ),
  'unknown spike norm': (
    [KEY + 'model.spike_norm=x'],
    "unknown spike_norm 'x'",
    'none',
  ),
  'unknown dataset': (
    [KEY + 'data.name=mnist'],
    "unknown dataset 'mnist'",
    'digits',
  ),
  'no step': ([KEY + 'model.num_steps=0'], 'num_steps', '>= 1, got 0'),
  'tau too large': ([KEY + 'model.tau=1'], 'tau', 'kept fraction', '1.0'),
  'tau negative': ([KEY + 'model.tau=-0.1'], 'tau', 'kept fraction', '-0.1'),
  'batch and devices': (
    [KEY + 'data.batch_size=6'],
    'data.batch_size must be divisible by the 4 devices, got 6: use 8',
  ),
  'evaluation batch and devices': (
    [KEY + 'evaluation.batch_size=6'],
    'evaluation.batch_size must be divisible by the 4 devices, got 6',
  ),
  'batch larger than the data': (
    [KEY + 'data.batch_size=4000'],
    'training examples',
    '4000',
  ),
  'classes': (
    [KEY + 'model.num_classes=7'],
    'model.num_classes must be 10',
    'got 7',
  ),
  'no epoch': ([KEY + 'num_epochs=0'], 'num_epochs must be at least 1, got 0'),
  'negative seed': ([KEY + 'seed=-1'], 'seed must be at least 0, got -1'),
  'large seed': ([KEY + 'seed=4294967296'], 'seed must be less than 2**32'),
  'rate not finite': (
    [KEY + 'optimizer.learning_rate=nan'],
    'optimizer.learning_rate must be a finite number, got nan',
  ),
  'rate zero': (
    [KEY + 'optimizer.learning_rate=0'],
    'optimizer.learning_rate must be positive, got 0.0',
  ),
  'weights to start from, no training': (
    ['--mode=evaluate', '--init_from=runs/x'],
    '--init_from is only for --mode=train, got --mode=evaluate',
  ),
  'time steps of another mode': (
    ['--steps=1,2'],
    '--steps is only for --mode=steps, got --mode=train',
    'set --config.model.num_steps',
  ),
  'time steps twice': (
    ['--mode=steps', '--steps=1,2,1'],
    '--steps must be different integers from 1 to 1000, separated by commas, '
    "got '1,2,1': write --steps=1,2,4,8",
  ),
  'no time step': (['--mode=steps', '--steps=0'], "got '0'"),
  'no number of time steps': (['--mode=steps', '--steps=1,'], "got '1,'"),
  'time steps of an untrained run': (
    ['--mode=steps'],
    'expected a trained network',
  ),
  'eps zero': (
    [KEY + 'model.eps=0'],
    'eps must be positive and finite, got 0.0',
  ),
  'momentum': (
    [KEY + 'optimizer.momentum=1'],
    'optimizer.momentum must lie in [0, 1), got 1.0',
  ),
  'smoothing': ([KEY + 'loss.label_smoothing=1'], 'must lie in [0, 1)'),
  'warm-up': (
    [KEY + 'optimizer.warmup_epochs=2'],
    'optimizer.warmup_epochs must be less than num_epochs = 2',
  ),
  'checkpoint': (
    [KEY + 'evaluation.checkpoint=first'],
    "must be 'latest' or 'best', got 'first'",
  ),
  'nothing to fold into convolutions': (
    [
      KEY + 'evaluation.fold=all',
      KEY + 'model.conv_norm=none',
    ],
    "evaluation.fold='all' needs a normalization",
  ),
  'evaluate an untrained run': (
    ['--mode=evaluate'],
    'expected a trained network',
    'run --mode=train first',
  ),
  'fold an untrained run': (['--mode=fold'], 'expected a trained network'),
}


@pytest.mark.parametrize('name', BAD_INPUT)
def test_bad_input_is_one_line_and_exit_code_2(name, tmp_path, capsys):
  arguments, *fragments = BAD_INPUT[name]
  workdir = tmp_path / 'run'
  assert runs.run(workdir, *arguments) == 2
  message = the_error(capsys.readouterr())
  for fragment in fragments:
    assert fragment in message
  assert not workdir.exists()


@pytest.mark.parametrize(
  ('text', 'fragments'),
  {
    'raise ValueError("bad\\nvalue")\n': ['ValueError', 'line 1', 'bad value'],
    'def get_config(:\n': ['SyntaxError', 'line 1'],
    'x = 1\n': ['expected a function get_config()', 'got none'],
    'def get_config():\n  return 3\n': ['returns a ConfigDict', '3'],
    'import ml_collections\n'
    'def get_config():\n'
    '  return ml_collections.ConfigDict({"seed": 1})\n': [
      'every key of configs/default.py',
      'data.batch_size',
    ],
    'from mpbn_jax.configs import default\n'
    'def get_config():\n'
    '  config = default.get_config()\n'
    '  with config.unlocked():\n'
    '    config.model.colour = 1\n'
    '  return config\n': ["unknown setting of 'resnet20' 'colour'"],
    'from mpbn_jax.configs import default\n'
    'def get_config():\n'
    '  config = default.get_config()\n'
    '  config.model.num_steps = "x"\n'
    '  return config\n': ['TypeError', 'num_steps', 'line 4'],
  }.items(),
)
def test_unusable_config_file_is_one_line(text, fragments, tmp_path, capsys):
  file = tmp_path / 'mine.py'
  file.write_text(text)
  assert program.main([f'--config={file}', f'--workdir={tmp_path}/run']) == 2
  message = the_error(capsys.readouterr())
  for fragment in [*fragments, str(file) if 'colour' not in text else '']:
    assert fragment in message
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('below', ['', '/run'])
def test_unwritable_workdir_is_one_line(below, tmp_path, capsys):
  file = tmp_path / 'file'
  file.write_text('mine')
  assert runs.run(f'{file}{below}') == 2
  message = the_error(capsys.readouterr())
  assert 'expected a work directory that can be written' in message
  assert 'choose another --workdir' in message
  assert file.read_text() == 'mine'


@pytest.mark.parametrize(
  ('arguments', 'fragments'),
  [
    ([KEY + 'model.num_step=4'], ["did you mean 'model.num_steps'"]),
    (
      [KEY + 'model.membrane_norm=mpbn_element', KEY + 'data.batch_size=1'],
      ['running variance needs at least 2 values', 'larger batch'],
    ),
  ],
)
def test_bad_input_in_a_process_of_its_own(arguments, fragments, tmp_path):
  process = runs.start(tmp_path / 'run', *arguments)
  message = the_error(process.communicate())
  assert process.returncode == 2
  for fragment in fragments:
    assert fragment in message
  assert not (tmp_path / 'run').exists()


# ---- parsing


def test_parse_returns_mode_config_and_workdir():
  mode, config, workdir, checkpoint, *_ = command_line.parse(
    ['--mode', 'fold', '--workdir=x/y', KEY + 'model.num_steps', '7']
  )
  assert checkpoint is None
  assert (mode, str(workdir), config.model.num_steps) == ('fold', 'x/y', 7)


def test_parse_alone_is_training_the_digits():
  mode, config, workdir, *_ = command_line.parse([])
  assert (mode, config.data.name, str(workdir)) == (
    'train',
    'digits',
    'runs/digits',
  )


def test_parse_twice_is_independent():
  command_line.parse([KEY + 'seed=3', '--mode=fold'])
  mode, config, *_ = command_line.parse([])
  assert (mode, config.seed) == ('train', 0)


def test_last_value_of_a_key_counts():
  _, config, *_ = command_line.parse([KEY + 'seed=3', KEY + 'seed=4'])
  assert config.seed == 4


@pytest.mark.parametrize(
  ('argument', 'value'),
  {
    KEY + 'model.unroll': True,
    '--noconfig.model.unroll': False,
    KEY + 'model.unroll=False': False,
    KEY + 'model.unroll=1': True,
  }.items(),
)
def test_booleans_may_be_written_as_flags(argument, value):
  _, config, *_ = command_line.parse([argument, '--mode=train'])
  assert config.model.unroll is value


def test_optional_key_takes_a_number_and_none():
  key = KEY + 'model.surrogate_parameter'
  _, config, *_ = command_line.parse([f'{key}=2'])
  assert config.model.surrogate_parameter == 2.0
  _, config, *_ = command_line.parse([f'{key}=2', f'{key}=None'])
  assert config.model.surrogate_parameter is None


def test_config_file_may_have_named_rows(tmp_path):
  file = tmp_path / 'rows.py'
  file.write_text(
    'from mpbn_jax.configs import default\n'
    'def get_config(name):\n'
    '  config = default.get_config()\n'
    '  config.model.num_steps = {"a": 1, "b": 2}[name]\n'
    '  return config\n'
  )
  _, config, workdir, *_ = command_line.parse([f'--config={file}:b'])
  assert (config.model.num_steps, str(workdir)) == (2, 'runs/rows_b')


@pytest.mark.parametrize(
  ('key', 'meant'),
  {
    'steps': 'model.num_steps',
    'T': 'model.num_steps',
    'num_step': 'model.num_steps',
    'log.steps': 'log.every_steps',
    'model.lr': 'optimizer.learning_rate',
    'optimizer.lr': 'optimizer.learning_rate',
    'wd': 'optimizer.weight_decay',
    'bs': 'data.batch_size',
    'data.batch': 'data.batch_size',
    'train.epochs': 'num_epochs',
    'model.eps_': 'model.eps',
    'modle.steps': 'model.num_steps',
    'data.num_workers': 'data.workers',
    'optimiser.momentum': 'optimizer.momentum',  # not the models'
  }.items(),
)
def test_key_that_is_meant_is_found(key, meant):
  known = config.flatten(config_files.load(config_files.DEFAULT))
  assert config.nearest_keys(key, known) == [meant]
