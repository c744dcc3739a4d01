"""The registry of networks, and building them from a configuration."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from mpbn_jax import initializers
from mpbn_jax.errors import InputError, unknown
from mpbn_jax.layers import LIF, ConvNorm, DenseNorm, Factory
from mpbn_jax.models.network import SpikingNetwork
from mpbn_jax.models.preact_resnet import SpikingPreActResNet
from mpbn_jax.models.resnet import (
  SpikingResNet18,
  SpikingResNet19,
  SpikingResNet20,
  SpikingResNet34,
)
from mpbn_jax.models.spiking_cnn import SpikingCNN
from mpbn_jax.models.vgg import SpikingVGG16

MODELS: dict[str, Callable[..., SpikingNetwork]] = {
  'preact_resnet': SpikingPreActResNet,
  'resnet18': SpikingResNet18,
  'resnet19': SpikingResNet19,
  'resnet20': SpikingResNet20,
  'resnet34': SpikingResNet34,
  'spiking_cnn': SpikingCNN,
  'vgg16': SpikingVGG16,
}

# {configuration key: attribute} for the layers of a network.
CONV_SETTINGS = {
  'conv_norm': 'norm',
  **{
    key: key
    for key in (
      *('v_th', 'momentum', 'eps', 'stats_groups'),
      *('autodiff', 'kernel_init'),
    )
  },
}
LIF_SETTINGS = {
  'membrane_norm': 'norm',
  **{
    key: key
    for key in (
      *('tau', 'v_th', 'learn_tau', 'learn_v_th'),
      *('spike_norm', 'tau_s', 'momentum', 'eps', 'stats_groups'),
      *('surrogate', 'surrogate_parameter', 'surrogate_unit'),
      *('reset', 'detach_reset', 'start'),
      *('unroll', 'autodiff', 'keep'),
    )
  },
}


def network_settings(name: str) -> set[str]:
  """Returns the configuration keys that are specific to a network."""
  network: Any = MODELS[name]
  fixed: set[str] = set()
  if isinstance(network, functools.partial):
    network, fixed = network.func, set(network.keywords)
  fields = {field.name for field in dataclasses.fields(network)}
  return fields - fixed - {'conv', 'dense', 'lif', 'parent', 'name'}


def build_model(config: Mapping) -> SpikingNetwork:
  """Returns the network that `config.model` describes.

  Args:
    config: a `ConfigDict` or dict with `name`, a key of `MODELS`, and any of:
      attributes of that network; `conv_norm` (after every convolution and
      linear layer), `membrane_norm` (before firing) and the attributes of
      `LIF` and `ConvNorm` listed in `LIF_SETTINGS` and `CONV_SETTINGS`. Keys
      that are missing or None take their defaults.

  Returns:
    A Flax module: `init(key, x, train=False)` returns the variables, and
    `apply(variables, x, train=False)` returns logits [B, num_classes].

  Raises:
    InputError: an unknown network, setting, normalization, surrogate or reset
      (lists the known ones), or a setting outside its range.

  Example:
    >>> model = build_model({'name': 'spiking_cnn', 'width': 4})
    >>> x = jnp.zeros((1, 8, 8, 1))
    >>> variables = model.init(jax.random.key(0), x, train=False)
    >>> model.apply(variables, x, train=False).shape
    (1, 10)
  """
  settings = {key: config[key] for key in config if config[key] is not None}
  if 'name' not in settings:
    raise InputError(f'a model needs a name: one of {", ".join(MODELS)}')
  name = settings.pop('name')
  if name not in MODELS:
    raise unknown('model', name, MODELS)
  own = network_settings(name)
  known = own | CONV_SETTINGS.keys() | LIF_SETTINGS.keys()
  # None is no value, but only of a setting that some network has.
  of_others = set().union(*map(network_settings, MODELS))
  for key in config:
    if key not in known | {'name'} and (
      key in settings or key not in of_others
    ):
      raise _unknown_setting(name, key, config[key])
  defaults = {'membrane_norm': 'mpbn_channel'}
  lif = Factory(LIF, **_renamed(defaults | settings, LIF_SETTINGS))
  if 'kernel_init' in settings:
    settings, lif = _with_kernel_init(settings, lif)
  conv = Factory(ConvNorm, **_renamed(settings, CONV_SETTINGS))
  dense = Factory(DenseNorm, **conv.keywords)
  conv(1)  # checks its settings
  v_th = lif().v_th
  if not v_th > 0:
    raise InputError(f'v_th must be positive, got {v_th}')
  return MODELS[name](
    conv=conv,
    dense=dense,
    lif=lif,
    **{key: value for key, value in settings.items() if key in own},
  )


def _with_kernel_init(settings, lif):
  """Returns settings with the initializer for its name, and neurons for it."""
  name, neuron = settings['kernel_init'], lif()
  at = {'tau': neuron.tau, 'v_th': neuron.v_th}
  init = initializers.get_kernel_init(name, **at)
  if name == 'spike_init' and neuron.surrogate_parameter is None:
    from mpbn_jax import spike_init  # its imports take time

    parameter = spike_init.surrogate_parameter(neuron.surrogate, **at)
    lif = Factory(LIF, **{**lif.keywords, 'surrogate_parameter': parameter})
  return {**settings, 'kernel_init': init}, lif


def settings_of(model: SpikingNetwork) -> dict[str, Any]:
  """Returns the settings from which `build_model` builds such a network."""
  fields = {field.name for field in dataclasses.fields(model)}
  fields -= {'conv', 'dense', 'lif', 'parent', 'name'}
  settings = {name: getattr(model, name) for name in fields}
  layers = ((model.conv(1), CONV_SETTINGS), (model.lif(), LIF_SETTINGS))
  for layer, names in layers:
    settings |= {key: getattr(layer, name) for key, name in names.items()}
  # None of a network that a user made with an initializer of another library.
  settings['kernel_init'] = getattr(settings['kernel_init'], 'name', None)
  return settings


def _renamed(settings, names):
  return {names[key]: value for key, value in settings.items() if key in names}


def _unknown_setting(name, key, value):
  have = sorted(model for model in MODELS if key in network_settings(model))
  if have:
    return InputError(
      f'{name!r} has no setting {key}, got {key}={value}: leave it out, or '
      f'choose another model ({", ".join(have)})'
    )
  if key == 'current_norm':
    return InputError(
      f"unknown setting of {name!r} 'current_norm': it was renamed to "
      "'conv_norm'"
    )
  known = network_settings(name) | CONV_SETTINGS.keys() | LIF_SETTINGS.keys()
  return unknown(f'setting of {name!r}', key, known)
