"""Evaluation with other T: numbers, refusals, picture, and the command."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

import main as program
from mpbn_jax import (
  MODELS,
  NORMS,
  InputError,
  build_model,
  datasets,
  report,
)
from mpbn_jax.analysis import pictures
from mpbn_jax.analysis import report as analysis
from mpbn_jax.analysis.steps import Curve, Point, curve, default_steps
from mpbn_jax.evaluation import evaluate
from mpbn_jax.experiment import build
from mpbn_jax.models import SpikingCNN
from mpbn_jax.norm import PLACES

PER_STEP = sorted(
  n for n, e in NORMS.items() if getattr(e, 'per_time_step', '')
)


def untrained(*arguments):
  """Returns (experiment, variables) with T = 2."""
  experiment = build(runs.config(*arguments))
  x = jnp.zeros((1, *experiment.dataset.example_shape))
  return experiment, experiment.model.init(jax.random.key(0), x, train=False)


@pytest.fixture(scope='module')
def trained():
  experiment, state = report.restore(runs.config(), workdir=runs.finished())
  return experiment, state.variables


@pytest.fixture(scope='module')
def found(trained):
  experiment, variables = trained
  folded = report.fold_network(experiment, variables)
  return curve(experiment, variables, steps=(3, 2), folded=folded)


def test_the_default_steps_have_that_of_training():
  assert default_steps(2) == (1, 2, 4, 8)
  assert default_steps(6) == (1, 2, 4, 6, 8)


def test_the_accuracy_with_the_time_steps_of_training_is_that_of_evaluate(
  trained, found
):
  expected = evaluate(*trained, split='test')
  point = found.points[0]
  assert point.num_steps == found.trained == 2
  assert (point.accuracy, point.loss) == (
    pytest.approx(expected['accuracy'], abs=1e-6),
    expected['loss'],
  )
  assert point.accuracy == report.read_summary(runs.finished())['test_accuracy']


def test_another_number_of_steps_is_a_network_that_was_built_with_it(
  trained, found
):
  """Against one call on the whole split."""
  experiment, variables = trained
  model = build_model({**experiment.config.model, 'num_steps': 3})
  test = experiment.dataset.splits['test']
  images = experiment.dataset.spec.normalize(jnp.asarray(test.images))
  logits = model.apply(variables, images, train=False)
  point = found.points[1]
  assert point.num_steps == 3
  correct = (logits.argmax(-1) == test.labels).mean()
  assert point.accuracy == pytest.approx(float(correct), abs=1e-6)
  chosen = jax.nn.log_softmax(logits)[np.arange(len(test)), test.labels]
  np.testing.assert_allclose(point.loss, -chosen.mean(), rtol=1e-5)
  assert point.loss != found.points[0].loss


def test_the_folded_network_fires_the_same_spikes_with_any_number_of_steps(
  found,
):
  for point in found.points:
    assert point.spikes_differing == 0
    assert point.folded_accuracy == point.accuracy
  two, three = (point.spikes_compared for point in found.points)
  assert three * 2 == two * 3 > 0


def test_without_a_folded_network_nothing_is_compared(trained):
  (point,) = curve(*trained, steps=(2,)).points
  assert point.folded_accuracy is None
  assert point.spikes_compared is point.spikes_differing is None


def test_event_recordings_are_divided_into_other_frames():
  options = ('--config.data.name=event_digits', '--config.data.fake=64')
  experiment, variables = untrained(*options)
  point = curve(experiment, variables, steps=(3,)).points[0]
  other = build(runs.config(*options, '--config.model.num_steps=3'))
  expected = evaluate(other, variables, split='test')
  assert point.accuracy == pytest.approx(expected['accuracy'], abs=1e-6)
  assert point.loss == expected['loss']


@pytest.mark.usefixtures('registries')
def test_frames_for_one_number_of_steps_are_refused_with_another():
  rng = np.random.default_rng(0)
  frames = rng.integers(0, 9, (80, 2, 8, 8, 1)).astype(np.uint8)
  labels = np.arange(80) % 10
  datasets.from_arrays(
    'recordings',
    train=(frames, labels),
    test=(frames, labels),
    class_names=tuple('0123456789'),
    frames=True,
  )
  experiment, variables = untrained('--config.data.name=recordings')
  with pytest.raises(
    InputError, match="recordings' in 1 frames, to evaluate with T = 1, got"
  ):
    curve(experiment, variables, steps=(2, 1))


@pytest.mark.parametrize('name', PER_STEP)
def test_norms_with_parameters_per_step_are_refused_by_name(name):
  place = next(place for place in PLACES if NORMS[name].place == place)
  experiment, variables = untrained(f'--config.model.{place}_norm={name}')
  with pytest.raises(
    InputError, match=f"of training, got {place}_norm = '{name}', with"
  ):
    curve(experiment, variables)


def test_norms_with_parameters_per_step_are_evaluated_with_their_own():
  options = ('--config.model.conv_norm=tebn', '--config.data.fake=64')
  experiment, variables = untrained(*options)
  (point,) = curve(experiment, variables, steps=(2,)).points
  assert point.num_steps == 2


class OwnNorm(SpikingCNN):
  """A network that chooses a norm per step for one of its layers."""

  def features(self, x, *, train):
    x = self.conv(4, norm='tebn', name='own')(x, train=train)
    return super().features(x, train=train)


@pytest.mark.usefixtures('registries')
def test_parameters_per_step_of_a_layer_are_refused_by_name():
  MODELS['own'] = OwnNorm
  experiment, variables = untrained('--config.model.name=own')
  with pytest.raises(
    InputError, match=r'params/own/tebn/factor: \(2,\) -> \(1,\)'
  ):
    curve(experiment, variables)


@pytest.mark.parametrize('steps', [(), (0, 1), (2, 2)])
def test_numbers_of_steps_out_of_range_are_refused(trained, steps):
  with pytest.raises(InputError, match='different positive numbers'):
    curve(*trained, steps=steps)


def _curve(trained=2, folded=0.5):
  points = [
    Point(
      num_steps=t,
      accuracy=0.5,
      loss=1.0,
      firing_rate={'a': 0.1, 'b': 0.3},
      folded_accuracy=folded,
      spikes_compared=8,
      spikes_differing=1,
    )
    for t in (1, 4)
  ]
  return Curve(trained=trained, examples=10, points=tuple(points))


def test_the_mean_firing_rate_is_that_of_layers():
  assert _curve().points[0].mean_firing_rate == pytest.approx(0.2)


def test_a_curve_is_read_from_its_json():
  values = json.loads(json.dumps(_curve().to_json()))
  assert Curve.from_json(values) == _curve()
  assert values['points'][0]['mean_firing_rate'] == pytest.approx(0.2)


def test_the_picture_marks_the_time_steps_of_training():
  pytest.importorskip('matplotlib')
  figure = pictures.steps_figure({'a': _curve(2), 'b': _curve(4, folded=None)})
  for axis in figure.axes:
    dotted = [line for line in axis.lines if line.get_linestyle() == ':']
    assert [line.get_xdata()[0] for line in dotted] == [2, 4]
    assert axis.get_xlabel() == 'time steps T'
    assert list(axis.get_xticks()) == [1, 2, 4]
  crosses = [x for x in figure.axes[0].lines if x.get_marker() == 'x']
  assert [list(line.get_ydata()) for line in crosses] == [[50, 50]]


def test_the_table_marks_the_time_steps_of_training():
  lines = analysis.steps_text(_curve(4)).splitlines()
  assert lines[0] == '10 test examples, trained with T = 4'
  assert [line.split()[0] for line in lines[1:]] == ['T', '1', '4']
  assert '(trained)' in lines[3]
  assert lines[3].endswith('50.00%              1 of 8')


def test_the_command_prints_and_draws(tmp_path, capsys):
  workdir = tmp_path / 'run'
  shutil.copytree(runs.finished(), workdir)
  before = {path.name for path in workdir.iterdir()}
  arguments = ['--mode=steps', f'--workdir={workdir}', '--steps=3,2']
  assert program.main(arguments) == 0
  text = capsys.readouterr().out
  assert '2 (trained)' in text
  written = {path.name for path in workdir.iterdir()} - before
  assert written == {'steps.json', 'steps.png'}
  values = json.loads((workdir / 'steps.json').read_text())
  assert [point['num_steps'] for point in values['points']] == [2, 3]
  assert values['step'] == runs.LAST
  assert dataclasses.replace(Curve.from_json(values), points=()).trained == 2
