"""Streamed statistics of a network, against one call on the whole split."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from mpbn_jax import InputError, fold, strip
from mpbn_jax.analysis.activity import activity
from mpbn_jax.analysis.neurons import neurons_of, thresholds_of
from mpbn_jax.evaluation import compare, recorded
from mpbn_jax.experiment import build

# 48 examples in batches of 20: the last one is padded.
SMALL = (
  '--config.data.fake=48',
  '--config.data.batch_size=8',
  '--config.evaluation.batch_size=20',
)
NETWORKS = {
  'images': (),
  'blocks': (
    '--config.model.name=preact_resnet',
    '--config.model.depth=10',
    '--config.model.conv_norm=none',
    '--config.model.spike_norm=psp_bn',
  ),
}


@functools.cache
def _network(name):
  """Returns (experiment, variables with norms as if trained)."""
  import common

  experiment = build(runs.config(*SMALL, *NETWORKS[name]))
  x = jnp.zeros((2, *experiment.dataset.example_shape))
  return experiment, common.random_variables(experiment.model, x)


@functools.cache
def _found(name):
  return activity(*_network(name), examples=5)


@functools.cache
def _at_once(name):
  """Returns (labels, logits, {layer: recorded}) of the whole split."""
  experiment, variables = _network(name)
  test = experiment.dataset.splits['test']
  images, labels = test.read(np.arange(len(test)))
  run = jax.jit(functools.partial(recorded, experiment.model, potentials=True))
  logits, layers = run(variables, experiment.dataset.spec.normalize(images))
  flat = {}
  for layer, kept in layers.items():
    kept = {k: np.asarray(v) for k, v in kept.items()}
    blocks = kept['stacked'].ndim and kept['stacked'].shape[0] > 0
    for i in range(kept['spikes'].shape[0] if blocks else 1):
      label = f'{layer}[{i}]' if blocks else layer
      flat[label] = {k: v[i] if blocks else v for k, v in kept.items()}
  return labels, np.asarray(logits), flat


@pytest.mark.parametrize('name', NETWORKS)
def test_spikes_are_counted_exactly(name):
  labels, _, layers = _at_once(name)
  found = _found(name)
  assert found.examples == len(labels) == 48
  assert found.layers.keys() == layers.keys()
  for layer, ours in found.layers.items():
    spikes = layers[layer]['spikes']  # [B, T, ..., C]
    np.testing.assert_array_equal(ours.fired, spikes.sum(0))
    assert ours.fired.dtype == np.int32
    np.testing.assert_array_equal(
      ours.firing_rate, spikes.mean((0, *range(2, spikes.ndim)), dtype='f8')
    )
    assert ours.silent == (spikes.sum((0, 1)) == 0).sum()
    assert ours.always_firing == (spikes.all((0, 1))).sum()


@pytest.mark.parametrize('name', NETWORKS)
def test_potentials_are_counted_exactly(name):
  _, _, layers = _at_once(name)
  for layer, ours in _found(name).layers.items():
    for kind, found in (('before', ours.before), ('after', ours.after)):
      u = layers[layer][kind]
      for t in range(u.shape[1]):
        edges = [-np.inf, *found.bins.edges, np.inf]
        # Its last bin is closed, but no potential is infinite.
        expected, _ = np.histogram(u[:, t], edges)
        counted = [found.below[t], *found.counts[t], found.above[t]]
        np.testing.assert_array_equal(counted, expected)
      assert not found.nan.any()
      assert found.counts.sum() > 0.95 * u.size


@pytest.mark.parametrize('name', NETWORKS)
def test_predictions_are_those_of_the_logits(name):
  labels, logits, _ = _at_once(name)
  found = _found(name)
  expected = np.zeros((10, 10), int)
  for label, prediction in zip(labels, logits.argmax(1), strict=True):
    expected[label, prediction] += 1
  np.testing.assert_array_equal(found.confusion, expected)
  assert found.accuracy == (labels == logits.argmax(1)).mean()
  probability = np.asarray(jax.nn.softmax(logits)).max(1)
  wrong = np.flatnonzero(labels != logits.argmax(1))
  order = sorted(wrong, key=lambda i: -probability[i])[:5]
  assert len(order) == 5
  assert {each.index for each in found.wrong} == set(order)
  experiment, _ = _network(name)
  for each in found.wrong:
    assert each.label == labels[each.index] != each.prediction
    assert each.prediction == logits[each.index].argmax()
    assert each.probability == pytest.approx(probability[each.index], rel=1e-5)
    image, _ = experiment.dataset.splits['test'].read(np.array([each.index]))
    np.testing.assert_array_equal(each.image, image[0])


def test_rates_are_those_of_the_comparison():
  experiment, variables = _network('blocks')
  expected = compare(experiment, variables, variables, split='test')
  ours = {
    name: layer.firing_rate.mean()
    for name, layer in _found('blocks').layers.items()
  }
  assert ours == pytest.approx(expected.firing_rate)


def test_a_folded_network_has_the_same_spikes_and_no_potentials_after():
  experiment, variables = _network('images')
  folded = activity(experiment, strip(fold(variables)))
  for name, layer in _found('images').layers.items():
    np.testing.assert_array_equal(folded.layers[name].fired, layer.fired)
    assert folded.layers[name].after is None


def test_logits_that_are_not_finite_are_refused():
  experiment, variables = _network('images')
  bias = variables['params']['head']['bias'].at[0].set(jnp.nan)
  head = {**variables['params']['head'], 'bias': bias}
  broken = {**variables, 'params': {**variables['params'], 'head': head}}
  with pytest.raises(FloatingPointError, match='infinity for 20 of 20'):
    activity(experiment, broken)


def test_batches_that_could_overflow_are_refused(monkeypatch):
  monkeypatch.setattr('mpbn_jax.analysis.activity._LARGEST', 20 * 64 * 2 - 1)
  with pytest.raises(InputError, match=r"in 'lif1': set a smaller --config.ev"):
    activity(*_network('images'))


@pytest.mark.parametrize('name', NETWORKS)
def test_traces_are_of_neurons_that_fire_by_their_thresholds(name):
  experiment, variables = _network(name)
  test = experiment.dataset.splits['test']
  x = experiment.dataset.spec.normalize(test.read(np.array([0]))[0])
  _, _, layers = _at_once(name)
  for variables_ in (variables, strip(fold(variables))):
    found = neurons_of(experiment.model, variables_, x, neurons=3)
    assert list(found) == list(_found(name).layers)
    for layer, (traces, thresholds) in found.items():
      assert traces.potential.shape == traces.spikes.shape == (3, 2)
      for n, index in enumerate(traces.index):
        place = (0, slice(None), *index)
        np.testing.assert_array_equal(
          traces.spikes[n], layers[layer]['spikes'][place] > 0
        )
        kind = 'before' if 'threshold' in str(variables_.keys()) else 'after'
        np.testing.assert_allclose(
          traces.potential[n], layers[layer][kind][place], atol=1e-5
        )
      sign, level = traces.polarity[:, None], traces.threshold[:, None]
      np.testing.assert_array_equal(
        sign * traces.potential > sign * level, traces.spikes
      )
      assert thresholds.size in (1, layers[layer]['spikes'].shape[-1])


def test_special_thresholds_are_counted_apart():
  inf = np.inf
  threshold = np.array([0.5, -1.0, inf, -inf, inf, -inf])
  polarity = np.array([1, -1, 1, 1, -1, -1])
  found = thresholds_of(threshold, polarity)
  assert found.counts.sum() == 2
  assert (found.edges[0], found.edges[-1]) == (-1.0, 0.5)
  assert (found.never_fire, found.always_fire) == (2, 2)
  assert found.negative_polarity == 3
  assert found.size == 6
  constant = thresholds_of(threshold[2:], polarity[2:])
  assert constant.edges.size == constant.counts.size == 0
