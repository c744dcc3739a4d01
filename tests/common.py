"""Small networks, images and variables that look trained."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from mpbn_jax import NORMS, build_model
from mpbn_jax.interop.torch import from_reference
from mpbn_jax.norm import CONSTANTS

# Square images that are large enough for a network.
SIDES = {
  'resnet18': 32,
  'resnet19': 16,
  'resnet20': 16,
  'resnet34': 32,
  'preact_resnet': 8,
  'spiking_cnn': 8,
  'vgg16': 32,
}
# Every augmentation of `config.data`, on, but RandAugment: AutoAugment excludes
# it.
EVERYTHING = dict(
  resized_crop=True,
  shift=2,
  roll=1,
  flip=True,
  auto_augment=True,
  cutout=8,
  random_erasing=0.5,
  mixup=0.4,
)
GOLDEN = pathlib.Path(__file__).parent / 'golden'
# `conftest.py` sets the flag to False, to compile faster.
_USERS_OPTIONS = (
  {'xla_cpu_use_fusion_emitters': True}
  if jax.__version_info__ < (0, 11)
  else None
)


def as_users_compile(function, **options):
  """Returns `jax.jit(function)` without the flags of `conftest.py`."""
  return jax.jit(function, compiler_options=_USERS_OPTIONS, **options)


def random_norms(variables, *, seed=0, adversarial=False):
  """Returns variables whose norms look trained: no leaf is what init gives.

  A few scales are negative. Adversarial: every scale is one of the hard cases
  (negative, zero, tiny, huge), biases and means are spread wider.
  """
  rng = np.random.default_rng(seed)

  def leaf(path, value):
    name, shape = path[-1].key, value.shape
    norm = NORMS.get(path[-2].key)
    if norm is None or name in CONSTANTS:
      return value
    if name == 'scale' and adversarial and norm.place == 'membrane':
      hard = [1, -1, 0.7, -0.7, 0, 1e-6, -1e-6, 1e3, -1e3]
      return rng.permutation(np.resize(hard, value.size)).reshape(shape)
    spread = 0.5 if adversarial else 0.2
    draws = {
      'scale': rng.normal(1.0, 0.3, shape)
      * np.where(rng.random(shape) < 0.1, -1, 1),
      'factor': rng.uniform(0.5, 1.5, shape),
      'weight': rng.uniform(0.5, 1.5, shape),
      'moment': rng.uniform(0.05, 1.0, shape),
      'bias': rng.normal(0, spread, shape),
      'mean': rng.normal(0, spread, shape),
      'var': rng.uniform(0.05, 1.5, shape),
    }
    return draws.get(name, draws['factor'])

  return jax.tree_util.tree_map_with_path(
    lambda path, value: jnp.asarray(leaf(path, value), jnp.float32), variables
  )


def init(module, x):
  """Returns `module.init`, compiled: the forward pass in it is dead code.

  With the random generator that compiles fastest.
  """
  return jax.jit(lambda key, x: module.init(key, x, train=False))(
    jax.random.key(0, impl='unsafe_rbg'), x
  )


def init_norm(name, shape, **settings):
  """Returns (params, stats) of a norm, given settings for all norms."""
  norm = NORMS[name]
  return norm.init(shape, **{key: settings[key] for key in norm.settings})


def moving(stats):
  """Returns the statistics of a norm that training moves: no constants."""
  return {k: v for k, v in stats.items() if k not in CONSTANTS}


def random_variables(model, x):
  """Returns the variables of a model: random kernels, norms as if trained.

  From their shapes, in NumPy: `model.init` would compile a random generator
  for every shape, which takes longer than most tests.
  """
  shapes = {}

  @jax.jit
  def settings():
    """Returns the leaves that are settings; all else is dead code."""
    variables = model.init(jax.random.key(0), x, train=False)
    shapes.update(jax.tree.map(lambda leaf: leaf.shape, variables))
    return _settings(variables)

  values, rng = settings(), np.random.default_rng(0)

  def leaf(path, shape):
    if path[-1].key != 'kernel':
      return values.get(jax.tree_util.keystr(path), np.zeros(shape, np.float32))
    *_, side, fan_in, fan_out = (1, *shape)
    head = len(shape) == 2
    deviation = 1 / fan_in if head else (2 / (side**2 * fan_out)) ** 0.5
    return jnp.asarray(rng.normal(0, deviation, shape), jnp.float32)

  variables = jax.tree_util.tree_map_with_path(
    leaf, shapes, is_leaf=lambda shape: isinstance(shape, tuple)
  )
  return random_norms(variables)


def training_loss(model, x):
  """Returns (params -> (loss, running statistics), random params)."""
  variables = random_variables(model, x)

  def loss(params):
    logits, updates = model.apply(
      {**variables, 'params': params}, x, train=True, mutable=['batch_stats']
    )
    return (logits**2).mean(), updates['batch_stats']

  return loss, variables['params']


def _settings(variables):
  return {
    jax.tree_util.keystr(path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
    if path[-1].key in (*CONSTANTS, 'tau_logit')
  }


@functools.cache
def small(name='spiking_cnn', side=8, channels=1, **settings):
  """Returns (model, variables) of a small network with random norms.

  Its time steps are not unrolled: it is traced and compiled in half the time.
  """
  settings = {'width': 4, 'num_steps': 3, 'unroll': False, **settings}
  model = build_model({'name': name, **settings})
  return model, random_variables(model, jnp.zeros((2, side, side, channels)))


def images(count=8, side=8, channels=1, seed=0):
  """Returns normalized random images [count, side, side, channels]."""
  rng = np.random.default_rng(seed)
  return jnp.asarray(
    rng.normal(0, 1, (count, side, side, channels)), jnp.float32
  )


def assert_equals_its_frames(model, variables, x, *, outputs):
  """Compares training on images with the same frame at each of T steps.

  Args:
    model: the network.
    variables: its variables.
    x: images [B, H, W, C].
    outputs: (logits, batch_stats) of training on the images.
  """

  @jax.jit
  def train(x):
    return model.apply(variables, x, train=True, mutable=['batch_stats'])

  logits, updates = train(jnp.repeat(x[:, None], model.num_steps, 1))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    outputs,
    (logits, updates['batch_stats']),
  )


def assert_first_layer_learns(gradients):
  """Checks that the gradient of the first kernel is not 0."""
  names = ('conv1', 'stem_conv', 'stem_conv1')
  (first,) = (name for name in gradients if name in names)
  assert (gradients[first]['kernel'] != 0).any()


def assert_papers_deviation(params, name):
  """Checks the standard deviation of every initial kernel of a network."""
  for path, kernel in jax.tree_util.tree_leaves_with_path(params):
    if path[-1].key != 'kernel':
      continue
    layer = path[0].key
    if layer == 'head':
      expected = 0.01 if name == 'vgg16' else 1 / kernel.shape[0]
    else:
      expected = (2 / (kernel.shape[-3] ** 2 * kernel.shape[-1])) ** 0.5
    # Of n samples the deviation is known to 1 / sqrt(2 n); four times that.
    tolerance = 4 / (2 * kernel.size) ** 0.5
    assert abs(float(kernel.std()) / expected - 1) < tolerance, layer


# (file, what the reference built; widths are a sixteenth of the paper's)
GOLDEN_NETWORKS = {
  'resnet20_t2': {'name': 'resnet20', 'width': 4},
  'resnet19_t1': {'name': 'resnet19', 'width': 8},
  'vgg16_t2': {'name': 'vgg16', 'width': 4},
  'resnet18_imagenet_t2': {'name': 'resnet18', 'width': 4},
}


@functools.cache
def golden(file, **settings):
  """Returns (config, model, variables, x [B, H, W, C], the arrays)."""
  arrays = dict(np.load(GOLDEN / f'{file}.npz'))
  config = GOLDEN_NETWORKS[file] | {
    'num_steps': int(arrays['T']),
    'num_classes': arrays['eval_logits'].shape[1],
    'surrogate': 'tanh',
  }
  variables = from_reference(golden_state(arrays), config)
  x = jnp.asarray(arrays['x'].transpose(0, 2, 3, 1))
  return config, build_model(config | settings), variables, x, arrays


def golden_state(arrays):
  """Returns the reference's checkpoint in a golden file."""
  return {
    name.removeprefix('state/'): array
    for name, array in arrays.items()
    if name.startswith('state/')
  }
