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
  # Work directory of a run that a new one takes its initial weights from; '':
  # random ones.
  config.init_from = ''

  config.model = model = ml_collections.ConfigDict()
  # resnet18 | resnet19 | resnet20 | resnet34 | preact_resnet | vgg16 |
  # spiking_cnn
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
  model.learn_tau = False  # learn tau, one of each layer (PLIF)
  model.learn_v_th = False  # learn v_th, one of each channel
  model.reset = 'hard'  # hard (to zero) | soft (subtracts v_th)
  model.detach_reset = False  # whether the gradient ignores the reset's spikes
  # After every convolution: bn | tdbn | bntt | tebn | none.
  model.conv_norm = 'bn'
  # Before every firing: mpbn_channel | mpbn_element | none.
  model.membrane_norm = 'mpbn_channel'
  # After every firing: psp_bn | psp_bn_step | psp_ln | neunorm | none.
  model.spike_norm = 'none'
  # Kept fraction of the synaptic filter before it, in [0, 1); 0: the spikes.
  model.tau_s = 0.0
  model.momentum = 0.1  # of running statistics: weight of the new value
  model.eps = 1e-5  # added to variances
  # Of activations and products: float32 | bfloat16; the potential, statistics
  # and parameters are float32 in any case.
  model.dtype = 'float32'
  # Layers with weights of preact_resnet, 6n + 4; None: 22. The others have one
  # depth: None.
  model.depth = ml_collections.config_dict.placeholder(int)
  # Compute the activations of residual blocks again in the backward pass: less
  # memory, more time; None: no, also where there are no blocks.
  model.remat = ml_collections.config_dict.placeholder(bool)
  # What the scale of every residual block's last norm starts at; None: the
  # network's own, 1, and 1 / n in preact_resnet with n blocks a stage.
  model.last_scale = ml_collections.config_dict.placeholder(float)
  model.unroll = True  # unroll the T steps: faster, longer to compile

  config.data = data = ml_collections.ConfigDict()
  # digits | photo_digits | event_digits | cifar10 | cifar100 | imagenet |
  # cifar10_dvs | dvs_gesture | nmnist
  data.name = 'digits'
  data.batch_size = 128  # of all devices together
  # Training examples that fill no whole batch at the end of an epoch: they are
  # a smaller batch, as in the paper's code, or left out: keep | drop.
  data.last_batch = 'drop'
  # Where prepared data sets lie. Archives of CIFAR that you bring belong into
  # <dir>/downloads/manual, those of events into <dir>/CIFAR10DVS, DVSGesture
  # or NMNIST.
  data.dir = '~/tensorflow_datasets'
  # Random examples of the true shape in place of the data set, so many in each
  # split; 0 reads the data set.
  data.fake = 0
  # Only so many training examples, the same for every seed; 0: all.
  data.train_size = 0
  # So many training examples are held out for validation, where a data set has
  # no validation split of its own; 0: none.
  data.validation_size = 0
  # How recordings of events become T frames, with equal numbers of events or
  # in equal times: count | time.
  data.framing = 'count'
  data.on_bad_image = 'stop'  # images that cannot be decoded: stop | skip
  data.workers = 0  # threads that decode images; 0: one a core
  data.prefetch = 2  # batches kept ready on the devices
  # Augmentation of training images, in this order.
  data.resized_crop = False  # random part of the image, resized (ImageNet)
  data.shift = 0  # largest random shift in pixels: crop after padding so many
  data.roll = 0  # largest random roll in pixels (event frames)
  data.flip = False  # mirror every other image
  data.auto_augment = False  # AutoAugment's policy for CIFAR-10
  data.cutout = 0  # side of the square that is blackened, in pixels
  data.random_erasing = 0.0  # probability that a random rectangle is erased
  # Alpha of the Beta distribution of mixing; 0 mixes nothing. Images only.
  data.mixup = 0.0

  config.optimizer = optimizer = ml_collections.ConfigDict()
  optimizer.learning_rate = 0.1  # at its peak
  # The cosine moves on with every step, or, as in the paper's code, every
  # epoch: step | epoch.
  optimizer.decay_every = 'step'
  optimizer.warmup_epochs = 0.0  # linear from 0 in them; then a cosine to 0
  optimizer.momentum = 0.9  # v = momentum * v + gradient
  optimizer.nesterov = False  # Nesterov's form of it
  optimizer.weight_decay = 1e-4  # on convolution and linear kernels only
  optimizer.gradient_clip = 0.0  # largest global norm; 0 clips nothing

  config.loss = loss = ml_collections.ConfigDict()
  # Of the mean of the steps' logits (the paper's Eq. 3), or the mean of the
  # steps' losses: cross_entropy | tet.
  loss.name = 'cross_entropy'
  loss.label_smoothing = 0.0  # share of the label spread over all classes

  config.evaluation = evaluation = ml_collections.ConfigDict()
  evaluation.batch_size = 128  # of all devices together
  # Of --mode=evaluate and --mode=fold: latest | best (on validation).
  evaluation.checkpoint = 'latest'
  # What is folded: membrane norms into thresholds, or the norms after
  # convolutions and after firing into kernels too: thresholds | all.
  evaluation.fold = 'thresholds'

  # What the paper prints, where the configuration is one of its experiments.
  config.paper = paper = ml_collections.ConfigDict()
  # Test accuracy in percent.
  paper.accuracy = ml_collections.config_dict.placeholder(float)
  # Of three runs, where given.
  paper.deviation = ml_collections.config_dict.placeholder(float)
  paper.places = ''  # every table, figure and section that prints it

  config.log = log = ml_collections.ConfigDict()
  log.every_steps = 50  # steps that a line of training metrics averages
  # Epochs between checkpoints, and validations; the last epoch always has one.
  log.checkpoint_every_epochs = 1
  log.tensorboard = True  # event files beside metrics.jsonl
  # Compiled programs are kept here between runs; '' keeps none.
  log.compilation_cache = '~/.cache/mpbn_jax/xla'

  return config.lock()
