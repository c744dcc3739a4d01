"""Every experiment of the paper as a configuration."""

import itertools

import jax
import jax.numpy as jnp
import pytest
from golden import write_paper

from mpbn_jax import InputError, command_line
from mpbn_jax.config import check_config
from mpbn_jax.configs import paper
from mpbn_jax.datasets import get_spec
from mpbn_jax.models import build_model

BY_ROW = pytest.mark.parametrize(
  'row', paper.ROWS, ids=[row.names[0] for row in paper.ROWS]
)
# Of the paper's implementation; (model, dataset, norm).
PARAMETERS = {
  ('resnet20', 'cifar10', 'mpbn'): 11_256_010,
  ('resnet20', 'cifar100', 'mpbn'): 11_302_180,
  ('resnet20', 'cifar10', 'baseline'): 11_247_946,
  ('resnet20', 'cifar100', 'baseline'): 11_294_116,
  ('resnet20', 'cifar10', 'element'): 11_886_922,
  ('resnet20', 'cifar100', 'element'): 11_933_092,
  ('resnet20', 'cifar10_dvs', 'mpbn'): 11_255_434,
  ('resnet19', 'cifar10', 'mpbn'): 12_578_186,
  ('resnet19', 'cifar100', 'mpbn'): 12_624_356,
  ('resnet19', 'cifar10_dvs', 'mpbn'): 12_577_034,
  ('vgg16', 'cifar10', 'mpbn'): 14_736_714,
  ('vgg16', 'cifar100', 'mpbn'): 14_782_884,
  ('resnet18', 'imagenet', 'mpbn'): 11_697_320,
  ('resnet34', 'imagenet', 'mpbn'): 21_812_904,
}
# What the tables print for this method: table -> number of values.
PRINTED = {1: 12, 2: 7, 3: 5, 4: 2, 5: 2, 6: 4}


def test_every_printed_value_is_named_once():
  names = [name for row in paper.ROWS for name in row.names]
  assert len(names) == len(set(names))
  tables = [int(name[len('table')]) for name in names]
  assert {table: tables.count(table) for table in sorted(set(tables))} == (
    PRINTED
  )


@BY_ROW
def test_every_name_of_a_row_gives_its_configuration(row):
  for name, preset in itertools.product(row.names, paper.PRESETS):
    config = paper.get_config(f'{name}@{preset}')
    assert config == paper.get_config(f'{row.names[0]}@{preset}')
  assert paper.get_config(row.names[0]) == (
    paper.get_config(f'{row.names[0]}@text')
  )


@BY_ROW
def test_row_cites_its_tables_and_value(row):
  config = paper.get_config(row.names[0])
  assert config.paper.accuracy == row.accuracy
  for name in row.names:
    assert f'Table {name[len("table")]}' in config.paper.places
    assert f'/{row.dataset}/' in name
    assert name.endswith(f'/t{row.num_steps}')


@BY_ROW
@pytest.mark.parametrize('preset', paper.PRESETS)
def test_row_is_its_golden_text(row, preset):
  file = write_paper.file_of(row, preset)
  assert file.exists(), 'run tests/golden/write_paper.py, read the difference'
  assert file.read_text() == write_paper.text_of(row, preset)


def test_no_golden_text_is_left_over():
  expected = {
    write_paper.file_of(row, preset)
    for row in paper.ROWS
    for preset in paper.PRESETS
  }
  assert set(write_paper.DIRECTORY.iterdir()) == expected


def test_no_two_rows_are_the_same_experiment():
  def experiment(row, preset):
    lines = write_paper.text_of(row, preset).splitlines()
    return '\n'.join(x for x in lines if not x.startswith('paper.'))

  # On ImageNet and CIFAR10-DVS the presets differ in the surrogate.
  texts = [
    experiment(row, preset) for row in paper.ROWS for preset in paper.PRESETS
  ]
  assert len(texts) == len(set(texts))


@BY_ROW
def test_row_builds_with_the_papers_number_of_parameters(row):
  config = paper.get_config(row.names[0])
  check_config(config)
  model = build_model(config.model)
  shape = get_spec(config.data.name).image_shape
  variables = jax.eval_shape(
    lambda: model.init(jax.random.key(0), jnp.zeros((1, *shape)), train=False)
  )
  count = sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
  assert count == PARAMETERS[row.model, row.dataset, row.norm]


def test_every_counted_network_is_a_row():
  rows = {(row.model, row.dataset, row.norm) for row in paper.ROWS}
  assert rows == set(PARAMETERS)


def test_row_is_reached_from_the_command_line():
  mode, config, workdir = command_line.parse(
    ['--config=configs/paper.py:table2/cifar10/resnet19/t2']
  )[:3]
  assert mode == 'train'
  assert config.model.name == 'resnet19'
  assert str(workdir) == 'runs/paper_table2/cifar10/resnet19/t2'


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('table2/cifar10/resnet19/t3', "did you mean 'table2/cifar10/resnet19/t"),
    ('', 'unknown row of the paper'),
    ('table2/cifar10/resnet19/t2@cod', "unknown preset 'cod'.*code, text"),
  ],
)
def test_unknown_row_lists_the_known_ones(name, message):
  with pytest.raises(InputError, match=message):
    paper.get_config(name)
