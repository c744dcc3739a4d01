"""What are CIFAR-10 and CIFAR-100? (Krizhevsky, 2009.)"""

from mpbn_jax.datasets.base import Spec

CIFAR10 = Spec(
  name='cifar10',
  image_shape=(32, 32, 3),
  class_names=(
    'airplane',
    'automobile',
    'bird',
    'cat',
    'deer',
    'dog',
    'frog',
    'horse',
    'ship',
    'truck',
  ),
  max_value=255,
  # The MPBN paper's code.
  mean=(0.4914, 0.4822, 0.4465),
  std=(0.2023, 0.1994, 0.2010),
)

_FINE_LABELS = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy
bridge bus butterfly camel can castle caterpillar cattle chair chimpanzee clock
cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion
lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange
orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper
snail snake spider squirrel streetcar sunflower sweet_pepper table tank
telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""

CIFAR100 = Spec(
  name='cifar100',
  image_shape=(32, 32, 3),
  class_names=tuple(_FINE_LABELS.split()),  # in their alphabetical order
  max_value=255,
  # The MPBN paper's code.
  mean=(0.5071, 0.4867, 0.4408),
  std=(0.2675, 0.2565, 0.2761),
)
