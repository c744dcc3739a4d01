"""A network of your own: depthwise separable convolutions (MobileNet).

python main.py --config=docs/examples/own_mobilenet.py
"""

from mpbn_jax import MODELS
from mpbn_jax.configs import digits
from mpbn_jax.models.network import SpikingNetwork


class SpikingMobileNet(SpikingNetwork):
  """A stem and two [depthwise 3x3 - LIF - pointwise 1x1 - LIF]."""

  def encoder(self):
    return self.conv(self.width, name='stem')

  def features(self, currents, *, train):
    x = self.lif(name='stem_lif')(currents, train=train)
    for i in (1, 2):
      channels = x.shape[-1]
      depthwise = self.conv(
        channels, groups=channels, stride=2, name=f'depthwise{i}'
      )
      x = self.lif(name=f'lif{i}a')(depthwise(x, train=train), train=train)
      pointwise = self.conv(
        2 * channels, kernel_size=1, padding=0, name=f'pointwise{i}'
      )
      x = self.lif(name=f'lif{i}b')(pointwise(x, train=train), train=train)
    return x


MODELS['mobilenet'] = SpikingMobileNet


def get_config():
  config = digits.get_config()
  config.model.name = 'mobilenet'
  config.model.conv_norm = 'none'
  config.model.spike_norm = 'psp_bn'
  config.evaluation.fold = 'all'
  return config
