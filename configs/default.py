"""Every key of a configuration, with its default and what it means.

A file of `configs/` starts from `get_config()` and changes what differs. Keys
are spelled as the arguments that they become.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """Returns the default configuration, locked against new keys."""
  config = ml_collections.ConfigDict()

  config.seed = 0  # of the initial parameters, the shuffling and augmentation
  config.num_epochs = 400  # passes over the training split

  config.model = model = ml_collections.ConfigDict()
  # resnet18 | resnet19 | resnet20 | resnet34 | vgg16 | spiking_cnn
  model.name = 'resnet20'
  model.num_classes = 10  # as many as the data set has
  model.num_steps = 4  # T, time steps of the network
  model.width = 64  # channels of the first layer; the others scale with it
  model.tau = 0.25  # kept fraction of the membrane potential, in [0, 1)
  model.v_th = 0.5  # firing threshold
  # rect (the paper's) | tanh (its code's) | triangle | sigmoid | atan |
  # piecewise_quadratic
  model.surrogate = 'rect'
  # Width or slope of the surrogate; None takes its own default.
  model.surrogate_parameter = ml_collections.config_dict.placeholder(float)
  model.reset = 'hard'  # hard (to zero) | soft (subtracts v_th)
  model.detach_reset = False  # whether the gradient ignores the reset's spikes
  model.current_norm = 'bn'  # after every convolution: bn | none
  # Before every firing: mpbn_channel | mpbn_element | none.
  model.membrane_norm = 'mpbn_channel'
  model.spike_norm = 'none'  # after every firing: none
  model.momentum = 0.1  # of running statistics: weight of the new value
  model.eps = 1e-5  # added to variances
  model.unroll = True  # unroll the T steps: faster, longer to compile

  config.data = data = ml_collections.ConfigDict()
  data.name = 'digits'  # digits
  data.batch_size = 128  # of all devices together
  data.shift = 1  # largest random shift of training images, in pixels

  config.optimizer = optimizer = ml_collections.ConfigDict()
  optimizer.learning_rate = 0.1  # at its peak
  optimizer.warmup_epochs = 0.0  # linear from 0 in them; then a cosine to 0
  optimizer.momentum = 0.9  # v = momentum * v + gradient
  optimizer.nesterov = False  # Nesterov's form of it
  optimizer.weight_decay = 1e-4  # on convolution and linear kernels only
  optimizer.gradient_clip = 0.0  # largest global norm; 0 clips nothing

  config.loss = loss = ml_collections.ConfigDict()
  loss.label_smoothing = 0.0  # share of the label spread over all classes

  config.evaluation = evaluation = ml_collections.ConfigDict()
  evaluation.batch_size = 128  # of all devices together
  # Of --mode=evaluate and --mode=fold: latest | best (on validation).
  evaluation.checkpoint = 'latest'
  # Also fold the norms after convolutions into them, when folding.
  evaluation.fold_convolutions = False

  config.log = log = ml_collections.ConfigDict()
  log.every_steps = 50  # steps that a line of training metrics averages
  # Epochs between checkpoints, and validations; the last epoch always has one.
  log.checkpoint_every_epochs = 1
  log.tensorboard = True  # event files beside metrics.jsonl
  # Compiled programs are kept here between runs; '' keeps none.
  log.compilation_cache = '~/.cache/mpbn_jax/xla'

  return config.lock()
