"""Can the experiment of every file in configs/ be trained?"""

import importlib
import pathlib

import jax
import pytest
import runs

from mpbn_jax import sharding, train

# paper.py holds many experiments: tests/test_paper_training.py.
FILES = sorted(
  path.stem
  for path in (runs.ROOT / 'configs').glob('*.py')
  if path.stem not in ('__init__', 'default', 'paper')
)


@pytest.mark.parametrize('name', FILES)
def test_every_config_can_be_trained_as_its_docstring_says(name):
  module = importlib.import_module(f'configs.{name}')
  path = pathlib.Path('configs') / f'{name}.py'
  assert f'python main.py --config={path}' in module.__doc__
  config = module.get_config()
  config.data.fake = config.data.batch_size
  mesh = sharding.make_mesh(jax.devices()[:1])
  experiment = train.build(config, mesh=mesh)
  # Raises what the first step would raise.
  train.check_trainable(experiment, train.make_train_step(experiment))
