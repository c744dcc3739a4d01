"""All configuration keys, with their defaults and meanings.

The other files in `configs/` start from `get_config()` and change individual
keys. Keys have the names of the arguments that they set.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """Returns the default configuration, locked against new keys."""
  config = ml_collections.ConfigDict()

  config.seed = 0  # seed of initial parameters, shuffling and augmentation
  config.num_epochs = 400  # passes over the training split
  # Work directory of a run that provides the initial weights of a new run; ''
  # initializes them randomly.
  config.init_from = ''

  config.model = model = ml_collections.ConfigDict()
  # resnet18 | resnet19 | resnet20 | resnet34 | preact_resnet | vgg16 |
  # spiking_cnn
  model.name = 'resnet20'
  model.num_classes = 10  # number of classes of the data set
  model.num_steps = 4  # number of time steps T
  model.width = 64  # channels of the first layer; the others scale with it
  model.tau = 0.25  # kept fraction of the membrane potential, in [0, 1)
  model.v_th = 0.5  # firing threshold
  # rect (the paper's) | tanh (its code's) | triangle | sigmoid | atan |
  # piecewise_quadratic
  model.surrogate = 'rect'
  # Width or slope of the surrogate; None uses its default.
  model.surrogate_parameter = ml_collections.config_dict.placeholder(float)
  # What these count in: one | v_th (a window as wide as the threshold).
  model.surrogate_unit = 'one'
  model.learn_tau = False  # whether to learn one tau per layer (PLIF)
  model.learn_v_th = False  # whether to learn one v_th per channel
  model.reset = 'hard'  # hard (to zero) | soft (subtracts v_th)
  model.detach_reset = False  # whether the gradient ignores spikes in the reset
  # Potential before the first step: zero | mean (a running mean of the last
  # potentials: MP-Init).
  model.start = 'zero'
  # Norm after every convolution: bn | tdbn | bntt | tebn | tab | none.
  model.conv_norm = 'bn'
  # Norm of the membrane potential: mpbn_channel | mpbn_element | affine (no
  # statistics) | none.
  model.membrane_norm = 'mpbn_channel'
  # Norm of the spikes: psp_bn | psp_bn_step | psp_ln | neunorm | none.
  model.spike_norm = 'none'
  # Kept fraction of the synaptic filter before the spike norm, in [0, 1); 0
  # disables the filter.
  model.tau_s = 0.0
  model.momentum = 0.1  # weight of the new value in running statistics
  model.eps = 1e-5  # added to variances
  # Number of groups of consecutive examples of a batch with batch statistics of
  # their own; 1 takes those of the whole batch. With a multiple of the number
  # of devices, these exchange running statistics only.
  model.stats_groups = 1
  # Dtype of activations and products: float32 | bfloat16; membrane potentials,
  # statistics and parameters are always float32.
  model.dtype = 'float32'
  # Number of layers of preact_resnet, 6n + 4; None uses 22. Other networks have
  # a fixed depth and require None.
  model.depth = ml_collections.config_dict.placeholder(int)
  # What the forward pass keeps for the backward pass, which computes the rest
  # again: all | products (outputs of convolutions, and spikes as bits) | spikes
  # (as bits: the least memory, the most time). See docs/performance.md.
  model.keep = 'all'
  # Whether to recompute the activations of residual blocks in the backward
  # pass, another way to trade time for memory: on a CPU, the one that saves
  # most. None disables it and suits every network.
  model.remat = ml_collections.config_dict.placeholder(bool)
  # Initial kernels: fan_out (the paper's code) | fan_in | micheli | spike_init
  # (the last two for networks without norms).
  model.kernel_init = 'fan_out'
  # Initial scale of the last norm of every residual block (of its last kernel
  # without a norm); None uses the network's default: 1, or 1 / n in
  # preact_resnet with n blocks per stage.
  model.last_scale = ml_collections.config_dict.placeholder(float)
  model.autodiff = False  # JAX's own backward pass: slower, more memory
  model.unroll = True  # unroll the T steps: faster, but slower to compile

  config.data = data = ml_collections.ConfigDict()
  # digits | photo_digits | event_digits | cifar10 | cifar100 | imagenet |
  # cifar10_dvs | dvs_gesture | nmnist
  data.name = 'digits'
  data.batch_size = 128  # batch size of all devices together
  # The last training examples of an epoch if they do not fill a batch: keep (as
  # a smaller batch, as in the paper's code) | drop.
  data.last_batch = 'drop'
  # Directory of prepared data sets. Put your own copies of CIFAR archives into
  # <dir>/downloads/manual, those of event data into <dir>/CIFAR10DVS,
  # DVSGesture or NMNIST.
  data.dir = '~/tensorflow_datasets'
  # Number of random examples per split, with the shape of the data set, that
  # replace it; 0 reads the data set.
  data.fake = 0
  # Number of training examples to use, the same for every seed; 0 uses all.
  data.train_size = 0
  # Number of training examples held out for validation if the data set has no
  # validation split; 0 holds out none.
  data.validation_size = 0
  # How to divide event recordings into T frames: count (equal numbers of
  # events) | time (equal durations).
  data.framing = 'count'
  data.on_bad_image = 'stop'  # if an image cannot be decoded: stop | skip
  data.workers = 0  # threads that decode images; 0 uses one per core
  data.prefetch = 2  # number of batches prefetched to the devices
  # Augmentation of training images, in this order.
  data.resized_crop = False  # resize a random part of the image (ImageNet)
  data.shift = 0  # maximum random shift in pixels (random crop after padding)
  data.roll = 0  # maximum random roll in pixels (event frames)
  data.flip = False  # mirror each image with probability 1/2
  data.auto_augment = False  # AutoAugment's policy for CIFAR-10
  # Number of operations that RandAugment applies to each image, instead of
  # AutoAugment; 0 disables it.
  data.rand_augment = 0
  data.rand_augment_magnitude = 9  # their strength, 0 to 30
  data.cutout = 0  # side of the blackened square in pixels
  data.random_erasing = 0.0  # probability of erasing a random rectangle
  # Alpha of the Beta distribution of the mixing weights; 0 disables mixup.
  # Images only.
  data.mixup = 0.0

  config.optimizer = optimizer = ml_collections.ConfigDict()
  optimizer.name = 'sgd'  # sgd | adamw | lamb
  optimizer.learning_rate = 0.1  # peak learning rate
  # How the rate falls to 0 after the warm-up: cosine | linear | constant (it
  # does not).
  optimizer.schedule = 'cosine'
  # How often the schedule updates the rate: step | epoch (as in the paper's
  # code).
  optimizer.decay_every = 'step'
  optimizer.warmup_epochs = 0.0  # epochs of linear warm-up
  # v = momentum * v + gradient; in adamw and lamb, b1.
  optimizer.momentum = 0.9
  optimizer.b2 = 0.999  # decay of squared gradients in adamw and lamb
  optimizer.nesterov = False  # whether to use Nesterov momentum
  optimizer.weight_decay = 1e-4  # on convolution and linear kernels only
  optimizer.gradient_clip = 0.0  # maximum global norm; 0 disables clipping
  # Number of groups into which a batch is divided, trained one after the other
  # before an update: less memory. Batch statistics are those of each group.
  optimizer.accumulate = 1
  # Decay, in [0, 1), of the exponential moving average of parameters and
  # running statistics, which then is the network that is validated, evaluated,
  # folded and loaded; usually 0.99 to 0.9999. 0 keeps no average.
  optimizer.ema = 0.0

  config.loss = loss = ml_collections.ConfigDict()
  # cross_entropy (of the mean logits over time, the paper's Eq. 3) | tet (mean
  # over time of the cross-entropy of each step).
  loss.name = 'cross_entropy'
  loss.label_smoothing = 0.0  # fraction of the label spread over all classes
  # Weight, in [0, 1), of the mean squared difference between the logits of all
  # steps and a target: the second term of tet.
  loss.regularizer = 0.0
  loss.regularizer_target = 1.0  # that target
  # Weight, in [0, 1), of self-distillation: the divergence of each step's
  # prediction from that of the mean logits over time. The terms above share the
  # rest. Needs num_steps > 1.
  loss.distillation = 0.0
  loss.distillation_temperature = 2.0  # divides the logits in that term

  config.evaluation = evaluation = ml_collections.ConfigDict()
  evaluation.batch_size = 128  # batch size of all devices together
  # Checkpoint for --mode=evaluate and --mode=fold: latest | best (on
  # validation).
  evaluation.checkpoint = 'latest'
  # What to fold: thresholds (membrane norms into thresholds) | all (also the
  # norms after convolutions and of the spikes into kernels).
  evaluation.fold = 'thresholds'

  # The paper's result, if the configuration is one of its experiments.
  config.paper = paper = ml_collections.ConfigDict()
  # Test accuracy in percent.
  paper.accuracy = ml_collections.config_dict.placeholder(float)
  # Deviation over three runs, if given.
  paper.deviation = ml_collections.config_dict.placeholder(float)
  paper.places = ''  # tables, figures and sections with the result

  config.log = log = ml_collections.ConfigDict()
  log.every_steps = 50  # steps over which a line of training metrics averages
  # Epochs between checkpoints and validations; the last epoch always has both.
  log.checkpoint_every_epochs = 1
  log.tensorboard = True  # whether to write TensorBoard event files
  # Whether each line of training metrics has those of every layer too: firing
  # rates, norms of gradients, thresholds. They need one more pass per line.
  log.per_layer = False
  # Directory that keeps compiled programs between runs; '' keeps none.
  log.compilation_cache = '~/.cache/mpbn_jax/xla'

  return config.lock()
