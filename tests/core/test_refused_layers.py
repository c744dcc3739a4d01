"""Inputs, settings and folded variables that no layer takes."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from small_layers import norm_layer

from mpbn_jax import LIF, NORMS, InputError, fold, fold_convolutions, strip
from mpbn_jax.layers import ConvNorm, DenseNorm, SpikeNorm
from mpbn_jax.norm import NormAfterConvolution
from mpbn_jax.tree import leaves_of

_KINDS = [('bn', ConvNorm), ('mpbn_channel', LIF), ('psp_bn', SpikeNorm)]


@pytest.mark.parametrize('dtype', ['int32', 'uint8', 'bool', 'complex64'])
@pytest.mark.parametrize(('name', 'kind'), _KINDS)
def test_input_that_is_not_floating_is_refused(name, kind, dtype):
  layer, variables, x = norm_layer(name)
  with pytest.raises(TypeError, match=f'floating dtype, got {dtype}: call ast'):
    layer.apply(variables, jnp.ones(x.shape, dtype), train=False)


@pytest.mark.parametrize('shape', [(3,), (2, 3), (2, 0, 3, 3, 3)])
@pytest.mark.parametrize(('name', 'kind'), _KINDS)
def test_input_without_a_batch_steps_and_channels_is_refused(name, kind, shape):
  layer, variables, _ = norm_layer(name)
  with pytest.raises(InputError, match=r'\[B, T, ..., C\] with T >= 1, got sh'):
    layer.apply(variables, jnp.ones(shape), train=False)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'eps': 0.0}, 'eps must be positive and finite, got 0.0'),
    ({'eps': -1e-5}, 'eps must be positive'),
    ({'eps': float('nan')}, 'eps must be a finite number'),
    ({'momentum': 5.0}, r'momentum .* \(0, 1\], got 5.0'),
  ],
)
@pytest.mark.parametrize(('name', 'kind'), _KINDS)
def test_settings_without_a_meaning_are_refused(name, kind, settings, message):
  with pytest.raises(InputError, match=message):
    norm_layer(name, **settings)


@pytest.mark.parametrize('norm', ['mpbm', 'bn', 'psp_bn', 'mpbn_channel'])
@pytest.mark.parametrize('kind', [ConvNorm, LIF, SpikeNorm])
def test_norm_of_another_place_is_refused_by_a_layer(kind, norm):
  if (norm, kind) in _KINDS:
    return
  features = {'features': 3} if kind is ConvNorm else {}
  with pytest.raises(InputError, match=f"unknown [a-z]+_norm '{norm}'"):
    kind(norm=norm, **features).init(
      jax.random.key(0), jnp.zeros((2, 2, 3, 3, 3)), train=False
    )


def test_v_th_that_is_no_number_is_refused():
  with pytest.raises(InputError, match='v_th must be a finite number, got nan'):
    LIF(v_th=float('nan')).apply({}, jnp.zeros((2, 2, 3)), train=False)


def test_moment_of_an_empty_batch_is_refused():
  layer, variables, x = norm_layer('psp_bn')
  with pytest.raises(InputError, match='at least one potential'):
    layer.apply(variables, x[:0], train=True, mutable=['batch_stats'])


@pytest.mark.parametrize('part', ['threshold', 'polarity', 'gain', 'v_th'])
def test_folded_neurons_without_a_part_of_them_are_refused(part):
  layer, variables, x = norm_layer('mpbn_channel')
  leaves = dict(strip(fold(variables))['threshold'])
  if part != 'v_th':
    bad = {**leaves, part: jnp.ones((1,))}
    with pytest.raises(InputError, match=rf'{part} of shape \(3,\), got \(1,'):
      layer.apply({'threshold': bad}, x, train=False)
  if part == 'threshold':  # without it, nothing says that it is folded
    return
  del leaves[part]
  with pytest.raises(InputError, match=f'expected threshold/{part}, got'):
    layer.apply({'threshold': leaves}, x, train=False)


def test_statistics_that_would_broadcast_are_refused():
  layer, variables, x = norm_layer('mpbn_channel')
  variables['batch_stats']['mpbn_channel']['mean'] = jnp.zeros((1,))
  with pytest.raises(InputError, match=r'mean of shape \(3,\), got \(1,\)'):
    layer.apply(variables, x, train=False)


@pytest.mark.parametrize(
  ('norm', 'lost'), [('bn', 'kernel'), ('tebn', 'kernel'), ('tebn', 'factor')]
)
def test_folded_convolution_without_a_part_of_it_is_refused(norm, lost):
  layer, variables, x = norm_layer(norm)
  folded = fold_convolutions(variables)
  del folded['folded'][lost]
  with pytest.raises(InputError, match=f'expected folded/{lost} beside the b'):
    layer.apply(folded, x, train=False)


def test_folded_kernel_of_another_shape_is_refused():
  layer, variables, x = norm_layer('bn')
  folded = fold_convolutions(variables)
  folded['folded']['kernel'] = folded['folded']['kernel'][:1, :1]
  with pytest.raises(
    InputError, match=r'folded/kernel of shape \(3, 3, 3, 3\)'
  ):
    layer.apply(folded, x, train=False)


@pytest.mark.parametrize(
  ('layer', 'message'),
  [
    (lambda: LIF(norm='mpbn'), "membrane_norm 'mpbn'.*mpbn_channel"),
    (lambda: LIF(spike_norm='psp'), "spike_norm 'psp'.*did you mean 'psp_"),
    (lambda: ConvNorm(2, norm='mpbn_channel'), "conv_norm 'mpbn_channel'.*bn,"),
    (lambda: DenseNorm(2, norm='bm'), "conv_norm 'bm'.*one of bn"),
    (lambda: SpikeNorm(norm='psp'), "spike_norm 'psp'.*did you mean 'psp_"),
  ],
)
def test_norm_that_a_layer_does_not_know_is_named(layer, message):
  with pytest.raises(InputError, match=f'unknown {message}'):
    layer()


@pytest.mark.parametrize('statistics', ['moment', ''])
def test_norm_without_a_constant_is_refused_by_the_fold(
  statistics, monkeypatch
):
  ones = {'scale': jnp.ones(3)}
  own = NormAfterConvolution(
    init=lambda shape, **_: (
      ones,
      {statistics: jnp.ones(3)} if statistics else {},
    ),
    train=lambda params, stats, x, **_: (x, stats),
    evaluate=lambda params, stats, x: x,
    fold=lambda params, stats, kernel, bias: {'kernel': kernel, 'bias': bias},
  )
  monkeypatch.setitem(NORMS, 'own', own)
  x = jnp.zeros((2, 2, 3, 3, 3))
  variables = ConvNorm(3, norm='own').init(jax.random.key(0), x, train=False)
  with pytest.raises(InputError, match=r'a constant \(eps, .* got (mom|none)'):
    fold_convolutions(variables)


def test_norm_that_takes_the_name_of_another_has_its_own_leaves(monkeypatch):
  for leaf in ('scale', 'weight'):
    own = dataclasses.replace(
      NORMS['bn'],
      init=lambda shape, *, eps, leaf=leaf, **_: (
        {leaf: jnp.ones(shape[-1:])},
        {'eps': jnp.float32(eps)},
      ),
    )
    monkeypatch.setitem(NORMS, 'own', own)
    assert leaves_of('own') == ({leaf}, {'eps'})
