"""Metrics of layers during training: what they are, and that nothing moves."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from mpbn_jax import fold, sharding, tensorboard_events
from mpbn_jax.experiment import build
from mpbn_jax.layer_metrics import make_layer_metrics
from mpbn_jax.train_step import init_state


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """Returns the work directory of a run with metrics of layers."""
  workdir = tmp_path_factory.mktemp('layers') / 'run'
  code = runs.run(
    workdir,
    '--config.log.per_layer=true',
    '--config.log.tensorboard=true',
    '--config.log.every_steps=16',
  )
  assert code == 0
  return workdir


def _lines(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [line for line in map(json.loads, lines) if 'loss' in line]


def test_every_line_has_the_metrics_of_every_layer(run, capsys):
  lines = _lines(run)
  assert [line['step'] for line in lines] == [16, 32]
  layers = [f'lif{i}' for i in (1, 2, 3, 4)]
  kernels = ['conv1', 'conv2', 'conv3', 'conv4', 'head']
  for line in lines:
    found = {name for name in line if '/' in name}
    assert found == {
      *(f'firing_rate/{name}' for name in layers),
      *(f'threshold/{name}' for name in layers),
      *(f'gradient_norm/{name}' for name in kernels),
    }
    assert all(0 < line[f'firing_rate/{name}'] < 1 for name in layers)
    assert all(line[f'gradient_norm/{name}'] > 0 for name in kernels)
  shown = tensorboard_events.scalars_in(run / 'tensorboard')
  assert ('firing_rate/lif1', 32) in shown
  assert 'firing_rate' not in capsys.readouterr().out


def test_training_ends_with_the_same_bits(run):
  ours, theirs = runs.arrays_of(run), runs.arrays_of(runs.finished())
  assert ours.keys() == theirs.keys()
  for name, leaf in ours.items():
    # Averages since the last line of the log, which other steps begin.
    if 'metrics' not in name:
      np.testing.assert_array_equal(leaf, theirs[name], err_msg=name)


def test_the_metrics_are_those_of_a_pass_by_hand():
  experiment = build(
    runs.config('--config.data.batch_size=8', '--config.optimizer.accumulate=2')
  )
  state = init_state(experiment)
  # Thresholds of both kinds: one that no potential exceeds.
  scale = state.params['lif2']['mpbn_channel']['scale']
  state.params['lif2']['mpbn_channel']['scale'] = scale.at[0].set(0)
  batch = experiment.batches.batch(0)
  on_devices = sharding.shard_batch(batch, experiment.mesh)
  found = jax.device_get(make_layer_metrics(experiment)(state, on_devices))
  images = experiment.dataset.spec.normalize(jnp.asarray(batch['image'][::2]))

  @jax.jit
  def by_hand(params):
    def loss(params):
      logits, updates = experiment.model.apply(
        {**state.raw_variables, 'params': params},
        images,
        train=True,
        mutable=['batch_stats', 'intermediates'],
      )
      chosen = jax.nn.log_softmax(logits)[jnp.arange(4), batch['label'][::2]]
      return -chosen.mean(), updates['intermediates']

    return jax.grad(loss, has_aux=True)(params)

  gradients, kept = by_hand(state.params)
  thresholds = fold(state.variables)['threshold']
  for name in ('lif1', 'lif2'):
    spikes = np.asarray(kept[name]['spikes'][0])
    assert found[f'firing_rate/{name}'] == pytest.approx(spikes.mean())
    level = np.asarray(thresholds[name]['threshold'])
    finite = level[np.isfinite(level)]
    assert finite.size == 2 - (name == 'lif2')
    assert found[f'threshold/{name}'] == pytest.approx(finite.mean())
  for name in ('conv1', 'head'):
    norm = np.linalg.norm(np.asarray(gradients[name]['kernel']))
    assert found[f'gradient_norm/{name}'] == pytest.approx(norm, rel=1e-4)
