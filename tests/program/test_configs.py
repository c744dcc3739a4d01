"""Every file in configs/, and bad values."""

import importlib
import pathlib
import runpy

import jax
import pytest
import runs
from mpbn_jax.configs.default import get_config

from mpbn_jax import InputError, sharding, training
from mpbn_jax.config import check_config

# paper.py holds many experiments: tests/program/test_paper_training.py.
FOLDER = runs.ROOT / 'configs'
FILES = sorted(
  str(path.relative_to(FOLDER).with_suffix(''))
  for pattern in ('*.py', 'recipes/*.py')
  for path in FOLDER.glob(pattern)
  if path.stem not in ('__init__', 'default', 'paper')
)


@pytest.mark.parametrize('name', FILES)
def test_every_config_can_be_trained_as_its_docstring_says(name):
  dotted = name.replace('/', '.')
  module = importlib.import_module(f'mpbn_jax.configs.{dotted}')
  path = pathlib.Path('configs') / f'{name}.py'
  assert f'python main.py --config={path}' in module.__doc__
  config = module.get_config()
  config.data.fake = config.data.batch_size
  config.data.train_size = 0  # not more than there are
  config.model.unroll = False  # traced in half the time
  mesh = sharding.make_mesh(jax.devices()[:1])
  experiment = training.build(config, mesh=mesh)
  # Raises what the first step would raise.
  training.check_trainable(
    experiment,
    init=training.make_init(experiment),
    step=training.make_train_step(experiment),
  )


@pytest.mark.parametrize(
  ('key', 'value'),
  {
    'optimizer.learning_rate': float('inf'),
    'optimizer.weight_decay': -1.0,
    'data.prefetch': 0,
    'seed': 2**32,
    'loss.label_smoothing': 1.0,
    'loss.regularizer': -0.1,
    'optimizer.b2': 1.0,
    'optimizer.ema': 1.0,
    'loss.distillation': 1.0,
    'loss.distillation_temperature': 0.0,
    'optimizer.warmup_epochs': 1e9,
    'evaluation.checkpoint': 'first',
  }.items(),
)
def test_refused_value_is_named_with_what_to_set(key, value):
  config = get_config()
  config.update_from_flattened_dict({key: value})
  with pytest.raises(InputError) as caught:
    check_config(config)
  message = str(caught.value)
  assert message.startswith(f'{key} must ')
  assert f'got {value!r}' in message
  assert f': set --config.{key}' in message


def test_distillation_of_one_step_is_refused():
  config = get_config()
  config.loss.distillation = 0.5
  check_config(config)
  config.model.num_steps = 1
  with pytest.raises(InputError, match='^loss.distillation must be 0 with'):
    check_config(config)


def test_benchmark_of_depth_builds_its_networks():
  benchmark = runpy.run_path(str(runs.ROOT / 'benchmarks' / 'depth.py'))
  for norm, places in benchmark['NORMS'].items():
    model = benchmark['experiment'](norm, 'plain', depth=10).config.model
    assert places == (model.conv_norm, model.membrane_norm, model.spike_norm)
