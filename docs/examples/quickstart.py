"""A network on arrays of your own: train it, fold it, compare, plot.

pip install matplotlib
PYTHONPATH=. python docs/examples/quickstart.py
"""

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import mpbn_jax

# Any float images [N, H, W, C], scaled to about zero mean and unit deviation,
# and integer labels [N].
images, labels = load_digits(return_X_y=True)
images = images.reshape(-1, 8, 8, 1).astype(np.float32) / 6 - 0.8
train, test = slice(0, 1400), slice(1400, None)

model = mpbn_jax.build_model({'name': 'spiking_cnn', 'width': 16})
init = jax.jit(lambda key, x: model.init(key, x, train=False))
variables = init(jax.random.key(0), images[:1])
optimizer = optax.sgd(optax.cosine_decay_schedule(0.2, 88), momentum=0.9)
opt_state = optimizer.init(variables['params'])


@jax.jit
def train_step(variables, opt_state, x, y):
  def loss_of(params):
    logits, updates = model.apply(
      {**variables, 'params': params}, x, train=True, mutable=['batch_stats']
    )
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
    return loss, updates

  gradients, updates = jax.grad(loss_of, has_aux=True)(variables['params'])
  directions, opt_state = optimizer.update(gradients, opt_state)
  params = optax.apply_updates(variables['params'], directions)
  return {'params': params, **updates}, opt_state


rng = np.random.default_rng(0)
for _ in range(8):  # epochs
  for batch in rng.permutation(1400)[:1375].reshape(-1, 125):
    variables, opt_state = train_step(
      variables, opt_state, images[batch], labels[batch]
    )

# Every normalization of the membrane potential becomes a threshold; what the
# folded network no longer reads is dropped.
folded = mpbn_jax.strip(mpbn_jax.fold(variables))

predict = jax.jit(lambda variables, x: model.apply(variables, x, train=False))
logits, logits_folded = (predict(v, images[test]) for v in (variables, folded))
accuracy = (logits.argmax(-1) == labels[test]).mean()
print(f'test accuracy: {accuracy:.1%}')
print(f'largest change of a logit: {abs(logits - logits_folded).max():.1e}')

layers = folded['threshold']
plt.boxplot(
  [layer['threshold'] for layer in layers.values()], tick_labels=list(layers)
)
plt.ylabel('firing threshold of each channel')
plt.savefig('thresholds.png')
