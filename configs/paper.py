"""All experiments that the MPBN paper reports for its method, one per row.

    python main.py --config=configs/paper.py:table2/cifar10/resnet19/t2
    python main.py --config=configs/paper.py:table2/cifar10/resnet19/t2@code
    python main.py --mode=reproduce --config=configs/paper.py:table2/cifar10

A row that appears in several tables has several names. `@text` (the default)
follows the paper's text: the rect surrogate of Eq. 12; crop, flip and cutout on
CIFAR. `@code` follows its reference implementation: the tanh surrogate, and
also AutoAugment's policy. docs/conformance.md lists the differences.
"""

import dataclasses
import importlib

from mpbn_jax.errors import unknown
from mpbn_jax.studies import Study

PRESETS = ('text', 'code')
_NORMS = {
  'baseline': 'none',
  'mpbn': 'mpbn_channel',
  'channel': 'mpbn_channel',
  'element': 'mpbn_element',
}
_WIDTHS = {
  'resnet18': 64,
  'resnet19': 128,
  'resnet20': 64,
  'resnet34': 64,
  'vgg16': 64,
}


@dataclasses.dataclass(frozen=True)
class Row:
  """One experiment.

  Attributes:
    dataset: name of the file in configs/ that trains it.
    model: architecture.
    num_steps: number of time steps T.
    norm: 'baseline', 'mpbn' (channel-wise) or 'element'.
    accuracy: printed test accuracy in percent.
    deviation: deviation over three runs, if printed.
    names: 'table<n>/...' for every table with this row, its main table first.
    also: figures and sections that show or discuss it.
  """

  dataset: str
  model: str
  num_steps: int
  norm: str
  accuracy: float
  deviation: float | None
  names: tuple[str, ...]
  also: tuple[str, ...] = ()

  @property
  def places(self) -> str:
    """'Table 1, Table 2, Sec. 4.4', in this order."""
    tables = [f'Table {name[len("table")]}' for name in self.names]
    return ', '.join([*tables, *self.also])


def _cifar(dataset, norm, num_steps, accuracy, deviation=None, also=()):
  """Returns a ResNet20 row of Table 1, with its names in other tables."""
  names = [f'table1/{dataset}/resnet20/{norm}/t{num_steps}']
  if norm == 'mpbn':
    # Table 3 omits T = 1, and Table 6 only has T = 4.
    table = {'cifar10': 'table2', 'cifar100': 'table3'}[dataset]
    if deviation is not None:
      names.append(f'{table}/{dataset}/resnet20/t{num_steps}')
    if num_steps == 4:
      names.append(f'table6/{dataset}/resnet20/channel/t4')
  return Row(
    dataset,
    'resnet20',
    num_steps,
    norm,
    accuracy,
    deviation,
    tuple(names),
    also,
  )


def _best(table, dataset, model, num_steps, accuracy, deviation, also=()):
  """Returns a row of Tables 2 to 5 with channel-wise MPBN."""
  name = f'table{table}/{dataset}/{model}/t{num_steps}'
  return Row(
    dataset, model, num_steps, 'mpbn', accuracy, deviation, (name,), also
  )


def _element(dataset, accuracy):
  """Returns a row that only Table 6 has."""
  name = f'table6/{dataset}/resnet20/element/t4'
  return Row(
    dataset, 'resnet20', 4, 'element', accuracy, None, (name,), ('Sec. 5.2',)
  )


# Fig. 3 does not say which data set its loss landscapes use.
ROWS: tuple[Row, ...] = (
  _cifar('cifar10', 'baseline', 1, 90.40, also=('Sec. 4.4',)),
  _cifar('cifar10', 'mpbn', 1, 92.22, 0.11, also=('Sec. 4.4',)),
  _cifar('cifar10', 'baseline', 2, 92.80, also=('Fig. 2', 'Fig. 3')),
  _cifar('cifar10', 'mpbn', 2, 93.54, 0.09, also=('Fig. 2', 'Fig. 3')),
  _cifar('cifar10', 'baseline', 4, 93.85),
  _cifar('cifar10', 'mpbn', 4, 94.28, 0.07),
  _cifar('cifar100', 'baseline', 1, 67.94),
  _cifar('cifar100', 'mpbn', 1, 68.36),
  _cifar('cifar100', 'baseline', 2, 70.18, also=('Fig. 2',)),
  _cifar('cifar100', 'mpbn', 2, 70.79, 0.08, also=('Fig. 2',)),
  _cifar('cifar100', 'baseline', 4, 71.77),
  _cifar('cifar100', 'mpbn', 4, 72.30, 0.08),
  _best(2, 'cifar10', 'resnet19', 1, 96.06, 0.10, also=('Sec. 5.1',)),
  _best(2, 'cifar10', 'resnet19', 2, 96.47, 0.08, also=('Sec. 1',)),
  _best(2, 'cifar10', 'vgg16', 2, 93.96, 0.09),
  _best(2, 'cifar10', 'vgg16', 4, 94.44, 0.08),
  _best(3, 'cifar100', 'vgg16', 4, 74.74, 0.11),
  _best(3, 'cifar100', 'resnet19', 1, 78.71, 0.10, also=('Sec. 5.1',)),
  _best(3, 'cifar100', 'resnet19', 2, 79.51, 0.07, also=('Sec. 1',)),
  _best(4, 'imagenet', 'resnet18', 4, 63.14, 0.08),
  _best(4, 'imagenet', 'resnet34', 4, 64.71, 0.09),
  _best(5, 'cifar10_dvs', 'resnet19', 10, 74.40, 0.20),
  _best(5, 'cifar10_dvs', 'resnet20', 10, 78.70, 0.10),
  _element('cifar10', 94.42),
  _element('cifar100', 72.49),
)


def get_config(name: str = ''):
  """Returns the configuration of a row, 'table<n>/...[@text|@code]'."""
  by_name = {name: row for row in ROWS for name in row.names}
  row_name, _, preset = name.partition('@')
  if row_name not in by_name:
    raise unknown('row of the paper', row_name, by_name)
  if preset not in ('', *PRESETS):
    raise unknown('preset', preset, PRESETS)
  row = by_name[row_name]
  config = importlib.import_module(f'configs.{row.dataset}').get_config()

  config.model.name = row.model
  config.model.width = _WIDTHS[row.model]
  config.model.num_steps = row.num_steps
  config.model.membrane_norm = _NORMS[row.norm]
  if preset == 'code':
    config.model.surrogate = 'tanh'
    config.data.auto_augment = row.dataset in ('cifar10', 'cifar100')

  config.paper.accuracy = row.accuracy
  if row.deviation is not None:
    config.paper.deviation = row.deviation
  config.paper.places = row.places
  return config


def get_study(name: str = ''):
  """Returns the study of all rows whose names start with 'table<n>[/...]'.

  Rows with MPBN are compared with their baseline if the study has it, and the
  three seeds are as many as the paper's.
  """
  start, _, preset = name.partition('@')
  rows = {
    row_name: row
    for row in ROWS
    for row_name in row.names
    if start and f'{row_name}/'.startswith(f'{start}/')
  }
  if not rows:
    tables = {
      row_name.partition('/')[0] for row in ROWS for row_name in row.names
    }
    raise unknown('table of the paper', start, sorted(tables))
  at = f'@{preset}' if preset else ''
  compared_with = {}
  for row_name, row in rows.items():
    baseline = row_name.replace(f'/{row.norm}/', '/baseline/')
    if row.norm != 'baseline' and baseline != row_name and baseline in rows:
      compared_with[row_name] = baseline
  return Study(
    name=name.replace('/', '_').replace('@', '_'),
    question=f'How much of {name} of the paper is reproduced?',
    arms={row_name: get_config(f'{row_name}{at}') for row_name in rows},
    compared_with=compared_with,
    seeds=(0, 1, 2),
    notes='Accuracies on the test split in percent, mean ± standard deviation.',
  )
