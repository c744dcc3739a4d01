"""Tables and lines that fit a terminal, and what they may not leave out."""

import numpy as np
import pytest
import runs

from mpbn_jax import command_line, report, tables
from mpbn_jax.configs import paper

KEY = '--config.'
FAKE = (KEY + 'data.fake=32', KEY + 'data.batch_size=16')

SUMMARY = {
  'step': 156_400,
  'epochs': 400.0,
  'batch_size': 128,
  'fake': 0,
  'train_size': 50_000,
  'test_size': 10_000,
  'test_accuracy': 0.9428,
  'paper_accuracy': 94.28,
  'folded_test_accuracy': 0.9428,
  'spikes_compared': 123_456_789_012,
  'spikes_differing': 0,
  'max_logit_difference': 0.0,
  'firing_rate': {'stage2_block1_lif2': 0.3, 'stage1_block2_lif1': 0.123},
  'unreadable_images': 3,
  'thresholds': {
    'stage2_block1_lif2': {
      'min': -0.12345,
      'max': 340.0,
      'negative_polarity': 12,
      'constant': 3,
    },
    'stage1_block2_lif1': {
      'min': None,
      'max': None,
      'negative_polarity': 0,
      'constant': 1024,
    },
  },
  'not_folded': None,
  'fold': 'all',
  'seconds': 12.345,
  'seed': 1,
  'model': 'resnet20',
  'num_steps': 4,
  'width': 64,
  'conv_norm': 'bn',
  'membrane_norm': 'mpbn_channel',
  'spike_norm': 'psp_bn',
  'dataset': 'cifar10',
  'device': '8 x NVIDIA H100 80GB HBM3',
}


def test_summary_fits_80_columns_and_leaves_nothing_out():
  text = tables.summary(SUMMARY, width=80)
  assert max(len(line) for line in text.splitlines()) <= 80
  told = ' '.join(text.split())
  for part in (
    'network, data resnet20, cifar10 settings',
    'T = 4, width 64, norms bn, mpbn_channel, psp_bn',
    '156,400 steps, epochs: 400',
    '50,000 in batches of 128',
    'test examples 10,000',
    'the paper prints 94.28%',
    'thresholds and kernels folded 94.28%',
    '0 of 123,456,789,012',
    'images not decoded 3',
    'stage2_block1_lif2 30.0% -0.1235 to 340 12 3',
    'stage1_block2_lif1 12.3% 1,024',
    '1, 8 x NVIDIA H100 80GB HBM3',
    '12.3',
  ):
    assert part in told


def test_reason_that_is_long_goes_on_in_the_next_line():
  reason = 'membrane_norm is none; ' + 'word ' * 30 + 'end'
  text = tables.summary(SUMMARY | {'not_folded': reason}, width=80)
  assert max(len(line) for line in text.splitlines()) <= 80
  assert reason in ' '.join(text.split())
  wide = tables.summary(SUMMARY | {'not_folded': reason}, width=300)
  assert f'no thresholds: {reason}\n' in wide


def test_layers_are_listed_in_their_order_and_blocks_in_one_row():
  rates = {f'late[{i}]': i / 10 for i in (1, 2)} | {'early': 0.5}
  values = SUMMARY | {'firing_rate': rates, 'thresholds': None}
  lines = tables.summary(values, width=80).splitlines()
  at = next(i for i, line in enumerate(lines) if line.startswith('layer'))
  assert [line.split() for line in lines[at : at + 3]] == [
    ['layer', 'firing', 'rate'],
    ['late', '2', 'x', '10.0%', 'to', '20.0%'],
    ['early', '50.0%'],
  ]


def test_long_names_of_layers_leave_nothing_out():
  name = 'stage3_blocks/' * 5 + 'lif'
  values = SUMMARY | {
    'firing_rate': {name: 0.25},
    'thresholds': {name: SUMMARY['thresholds']['stage2_block1_lif2']},
  }
  text = tables.summary(values, width=80)
  assert max(len(line) for line in text.splitlines()) <= 80
  assert f'{name} 25.0% -0.1235 to 340 12 3' in ' '.join(text.split())


@pytest.mark.parametrize(('columns', 'width'), [('120', 120), ('40', 80)])
def test_tables_are_as_wide_as_the_terminal_but_never_below_80(
  columns, width, monkeypatch
):
  monkeypatch.setenv('COLUMNS', columns)
  assert tables.columns() == width


def test_parameters_are_names_shapes_and_sizes():
  params = {
    'conv10': {'kernel': np.zeros((3, 3, 128, 256))},
    'conv9': {'bn': {'scale': np.zeros(128)}},
    'lif': {'tau_logit': np.zeros(())},
  }
  lines = tables.parameters(params, width=80).splitlines()
  assert [line.split('  ')[0] for line in lines] == [
    'parameter',
    'conv9/bn/scale',
    'conv10/kernel',
    'lif/tau_logit',
    'all',
  ]
  assert ' '.join(lines[2].split()) == (
    'conv10/kernel 3 x 3 x 128 x 256 294,912'
  )
  assert lines[-1].split() == ['all', '295,041']
  assert max(map(len, lines)) <= 80


def test_line_of_the_log_fits_80_columns():
  values = {
    'loss': 2.302585,
    'accuracy': 0.123456,
    'learning_rate': 0.000123456,
    'steps_per_second': 1234.5,
    'data_wait': 1.0,
  }
  text = tables.metrics(values)
  assert text == ('loss 2.303  acc 12.35%  rate 0.00012  1.23e+03/s  wait 100%')
  assert len(f'step 1000000  {text}') <= 80
  measured = {'validation_loss': 0.5, 'validation_accuracy': 0.25}
  assert tables.metrics(measured) == 'validation: loss 0.5  acc 25.00%'
  assert tables.metrics({'other': 1.23456}) == 'other 1.235'


def test_thresholds_that_nothing_exceeds_are_constant():
  largest = np.finfo(np.float32).max
  threshold = np.float32([np.inf, -np.inf, largest, -largest, 0.25, -1.5])
  assert tables.span(threshold, np.float32([1, 1, 1, 1, -1, 1])) == {
    'min': -1.5,
    'max': 0.25,
    'negative_polarity': 1,
    'constant': 4,
  }


# ---- what the summary says of the data and of the paper


def test_fake_data_are_told_and_not_compared_with_the_paper(tmp_path, capsys):
  paper_says = (KEY + 'paper.accuracy=92.22', KEY + 'num_epochs=1')
  assert runs.run(tmp_path / 'run', *FAKE, *paper_says) == 0
  out = capsys.readouterr().out
  assert 'spiking_cnn, digits (FAKE: 32 random images)' in out
  assert 'the paper' not in out
  summary = report.read_summary(tmp_path / 'run')
  assert summary['fake'] == 32
  assert summary['paper_accuracy'] is None


def test_summary_records_the_settings_and_sizes(tmp_path, capsys):
  arguments = (
    KEY + 'data.train_size=100',
    KEY + 'data.batch_size=40',
    KEY + 'num_epochs=1',
    KEY + 'paper.accuracy=92.22',
  )
  assert runs.run(tmp_path / 'run', *arguments) == 0
  assert 'the paper prints                  92.22%' in capsys.readouterr().out
  summary = report.read_summary(tmp_path / 'run')
  expected = {
    'fake': 0,
    'train_size': 100,
    'test_size': 359,
    'num_steps': 2,
    'width': 2,
    'conv_norm': 'bn',
    'membrane_norm': 'mpbn_channel',
    'spike_norm': 'none',
    'batch_size': 40,
    'num_epochs': 1,
    'epochs': 1.0,
  }
  assert summary | expected == summary


ROW = '--config=configs/paper.py:table1/cifar10/resnet20/mpbn/t2'


@pytest.mark.parametrize(
  'argument',
  ['model.num_steps=4', 'data.train_size=1000', 'optimizer.weight_decay=0'],
)
def test_the_papers_accuracy_is_not_shown_beside_another_experiment(
  argument, caplog
):
  _, config, *_ = command_line.parse([ROW, KEY + argument])
  assert config.paper.accuracy is None
  assert config.paper.deviation is None
  key = argument.split('=')[0]
  assert (
    f"paper's 93.54% was measured with other settings ({key})" in caplog.text
  )


def test_the_papers_accuracy_stays_beside_its_own_experiment(caplog):
  same = paper.get_config('table1/cifar10/resnet20/mpbn/t2')
  for argument in (
    'seed=3',
    'data.dir=x',
    'evaluation.batch_size=10',
    f'model.tau={same.model.tau}',
  ):
    _, config, *_ = command_line.parse([ROW, KEY + argument])
    assert config.paper.accuracy == 93.54
  assert caplog.text == ''
