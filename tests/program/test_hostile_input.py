"""Python code in values of the command line, which is never executed."""

import pytest
import runs
from runs import the_error

from mpbn_jax import InputError, command_line, config, config_files

OPTION = 'model.stages'  # a key of a user's network
OWN_CONFIG = """
from mpbn_jax.configs import digits

def get_config():
  config = digits.get_config()
  with config.unlocked():
    config.model.stages = (1, 2)
  return config
"""


@pytest.fixture
def trap(tmp_path):
  """Returns (code that leaves a file, that file)."""
  file = tmp_path / 'executed'
  return f'__import__("os").system("touch {file}")', file


@pytest.mark.parametrize(
  'key',
  [
    *('model.num_steps', 'model.depth'),  # integers
    *('model.tau', 'paper.accuracy'),  # numbers
    *('data.flip', 'model.remat'),  # true or false
    *('model.name', 'data.name', 'optimizer.schedule', 'init_from'),  # text
    OPTION,  # a tuple
  ],
)
def test_code_in_a_value_is_refused_in_one_line(key, trap, tmp_path, capsys):
  code, executed = trap
  arguments = [f'--config.{key}={code}']
  if key == OPTION:
    (tmp_path / 'own.py').write_text(OWN_CONFIG)
    arguments.append(f'--config={tmp_path / "own.py"}')
  assert runs.run(tmp_path / 'run', *arguments) == 2
  assert '__import__' in the_error(capsys.readouterr())
  assert not executed.exists()
  assert not (tmp_path / 'run').exists()


def test_code_in_any_key_is_refused_or_stays_text(trap):
  code, executed = trap
  for key, before in config.flatten(
    config_files.load('configs/digits.py')
  ).items():
    argument = f'--config.{key}={code}'
    if isinstance(before, str):
      parsed = command_line.parse([argument])
      assert config.flatten(parsed.config)[key] == code
    else:
      with pytest.raises(InputError, match=f'{key} must be '):
        command_line.parse([argument])
  assert not executed.exists()


@pytest.mark.parametrize('mode', ['train', 'reproduce'])
@pytest.mark.parametrize(
  'source', ['{}', 'configs/digits.py:{}', 'configs/paper.py:{}']
)
def test_code_in_place_of_a_configuration_is_refused(
  mode, source, trap, tmp_path, capsys
):
  code, executed = trap
  arguments = [f'--mode={mode}', f'--config={source.format(code)}']
  assert runs.run(tmp_path / 'run', *arguments) == 2
  line = the_error(capsys.readouterr())
  assert '__import__' in line or 'get_study() in configs/digits.py' in line
  assert 'fix that file' not in line
  assert not executed.exists()


@pytest.mark.parametrize('value', ['(' * 999, '-' * 99999 + '1', '1e', '\0'])
def test_value_that_python_cannot_read_is_refused_in_one_line(value, tmp_path):
  (tmp_path / 'own.py').write_text(OWN_CONFIG)
  with pytest.raises(InputError, match='must be a tuple') as error:
    command_line.parse(
      [f'--config={tmp_path / "own.py"}', f'--config.{OPTION}={value}']
    )
  assert '\n' not in str(error.value)
  assert len(str(error.value)) < 300
