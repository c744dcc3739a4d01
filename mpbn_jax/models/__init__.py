"""Which networks are there, and how is one built from a configuration?"""

import dataclasses
from collections.abc import Callable, Mapping

from mpbn_jax.errors import InputError, unknown
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


def build_model(config: Mapping) -> SpikingNetwork:
  """Returns the network that `config.model` describes.

  Args:
    config: a mapping with `name`, a key of `MODELS`, and any attributes of
      that network (`SpikingNetwork` documents them); others take their
      defaults. A `ConfigDict` and a plain dict are both accepted.

  Returns:
    A Flax module: `init(key, x, train=False)` returns the variables,
    `apply(variables, x, train=False)` logits [B, num_classes].

  Raises:
    InputError: unknown network, setting, normalization, surrogate or reset;
      a setting outside its range. The message lists what is known.

  Example:
    >>> model = build_model({'name': 'resnet20', 'width': 4, 'num_steps': 2})
    >>> x = jnp.zeros((1, 32, 32, 3))
    >>> variables = model.init(jax.random.key(0), x, train=False)
    >>> model.apply(variables, x, train=False).shape
    (1, 10)
  """
  settings = dict(config)
  if 'name' not in settings:
    raise InputError(f'a model needs a name: one of {", ".join(MODELS)}')
  name = settings.pop('name')
  if name not in MODELS:
    raise unknown('model', name, MODELS)
  fields = {field.name for field in dataclasses.fields(SpikingNetwork)}
  fields -= {'parent', 'name'}
  for key in settings:
    if key not in fields:
      raise unknown(f'setting of {name!r}', key, fields)
  model = MODELS[name](**settings)
  model.check()
  return model
