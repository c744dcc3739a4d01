"""A network of your own: a spiking multilayer perceptron.

python main.py --config=docs/examples/own_mlp.py
"""

from mpbn_jax import MODELS
from mpbn_jax.configs import digits
from mpbn_jax.models.network import SpikingNetwork


class SpikingMLP(SpikingNetwork):
  """Attributes: layers, how many there are before the readout."""

  layers: int = 2

  def encoder(self):
    return self.dense(self.width, flatten=True, name='dense1')

  def features(self, currents, *, train):
    x = self.lif(name='lif1')(currents, train=train)
    for i in range(2, self.layers + 1):
      y = self.dense(self.width, name=f'dense{i}')(x, train=train)
      x = self.lif(name=f'lif{i}')(y, train=train)
    return x


MODELS['mlp'] = SpikingMLP


def get_config():
  config = digits.get_config()
  with config.unlocked():  # for a key that only this network has
    config.model.layers = 3
  config.model.name = 'mlp'
  config.model.width = 64
  return config
