"""Images that are decoded and augmented in a second, next to their floors.

CIFAR-10's shape: 50,000 random images in memory, batches of 128, through
`TrainingBatches`; the floor is the plain gather of the same images. ImageNet:
JPEGs of 500x375 pixels in a folder tree, batches of 128, all threads; the
floor is Pillow's decoding of the same bytes in the same threads.

  python benchmarks/loading.py [--rounds=7] [--workers=0]
"""

import argparse
import concurrent.futures
import dataclasses
import io
import os
import pathlib
import statistics
import sys
import tempfile
import time

import jax
import numpy as np
import PIL
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from mpbn_jax.configs.default import get_config

from mpbn_jax.datasets import augmentations, get_spec, imagenet
from mpbn_jax.datasets.base import Dataset, Split
from mpbn_jax.datasets.batches import TrainingBatches

BATCH = 128
CIFAR = {
  'no augmentation': dict(),
  'shift': dict(shift=4),
  'flip': dict(flip=True),
  'cutout': dict(cutout=16),
  'shift, flip, cutout': dict(shift=4, flip=True, cutout=16),
  'and AutoAugment': dict(shift=4, flip=True, cutout=16, auto_augment=True),
  'and mixup': dict(shift=4, flip=True, cutout=16, mixup=0.2),
  'and random erasing': dict(
    shift=4, flip=True, cutout=16, random_erasing=0.25
  ),
  'resized crop, flip': dict(resized_crop=True, flip=True),
}


def batches(spec, split, **asked):
  """Returns the training batches with these augmentations."""
  config = {**get_config().data, **asked}
  dataset = Dataset(
    spec,
    {'train': split},
    augmentations(config, spec=spec),
    mixup=config['mixup'],
  )
  return TrainingBatches(dataset, batch_size=BATCH, seed=0)


def consumer(make, count):
  """Returns a function that makes `count` batches, the next at each call."""
  step = 0

  def run():
    nonlocal step
    for _ in range(count):
      make(step)
      step += 1

  return run


def in_memory():
  """Returns ({name: function}, images of each call) of CIFAR-10's shape."""
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (50_000, 32, 32, 3), np.uint8)
  labels = rng.integers(0, 10, 50_000).astype(np.int32)
  spec, split = get_spec('cifar10'), Split(images, labels)
  order = rng.permutation(50_000)
  steps = len(order) // BATCH

  def gather(step):
    start = step % steps * BATCH
    return images[order[start : start + BATCH]]

  functions = {'floor: gather': consumer(gather, 20)}
  for name, asked in CIFAR.items():
    functions[name] = consumer(batches(spec, split, **asked).batch, 20)
  return functions, 20 * BATCH


def write_jpegs(root):
  """Writes a folder tree of 256 JPEGs; returns their mean size in bytes."""
  rng = np.random.default_rng(0)
  sizes = []
  for part in ('train', 'val'):
    folder = root / 'imagenet' / part / 'n01440764'
    folder.mkdir(parents=True)
    for i in range(2 * BATCH):
      coarse = Image.fromarray(rng.integers(0, 256, (25, 33, 3), np.uint8))
      smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC))
      noise = rng.normal(0, 12, smooth.shape)
      pixels = np.clip(smooth + noise, 0, 255).astype(np.uint8)
      file = io.BytesIO()
      Image.fromarray(pixels).save(file, 'JPEG', quality=90)
      (folder / f'{i}.JPEG').write_bytes(file.getvalue())
      sizes.append(len(file.getvalue()))
  return statistics.mean(sizes)


def streamed(root, workers):
  """Returns ({name: function}, images of each call) of the folder tree."""
  spec = dataclasses.replace(imagenet.SPEC, class_names=('n01440764',))
  config = {**get_config().data, 'dir': str(root), 'workers': workers}
  split = imagenet.load(spec, config, num_steps=1)['train']
  files = sorted((root / 'imagenet' / 'train').rglob('*.JPEG'))
  encoded = [file.read_bytes() for file in files]
  threads = workers or len(os.sched_getaffinity(0))
  pool = concurrent.futures.ThreadPoolExecutor(threads)

  def decode(content):
    Image.open(io.BytesIO(content)).load()

  def floor(step):
    start = step % 2 * BATCH
    return list(pool.map(decode, encoded[start : start + BATCH]))

  training = batches(spec, split, resized_crop=True, flip=True)

  def evaluation(step):
    start = step % 2 * BATCH
    return split.read(np.arange(start, start + BATCH))

  return {
    'floor: decoding': consumer(floor, 1),
    'random crop, flip': consumer(training.batch, 1),
    'centre crop': consumer(evaluation, 1),
  }, BATCH


def medians(functions, *, rounds):
  """Returns {name: median seconds}, the functions taking turns."""
  times = {name: [] for name in functions}
  for turn in range(rounds + 1):
    for name, function in functions.items():
      start = time.perf_counter()
      function()
      if turn:  # the first draws the epoch
        times[name].append(time.perf_counter() - start)
  return {name: statistics.median(values) for name, values in times.items()}


def report(functions, images, *, rounds):
  """Prints images a second, and how many floors a batch takes."""
  seconds = medians(functions, rounds=rounds)
  floor = next(iter(seconds.values()))
  for name, value in seconds.items():
    print(f'{name:<22}{images / value:12,.0f} /s {value / floor:8.2f} x floor')


def main():
  """Prints both tables."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--workers', type=int, default=0)
  options = parser.parse_args()
  cores = len(os.sched_getaffinity(0))
  print(
    f'{cores} cores, numpy {np.__version__}, Pillow {PIL.__version__}, jax '
    f'{jax.__version__}; median of {options.rounds} rounds that take turns'
  )
  print(f'50,000 images 32x32x3 in memory, batches of {BATCH}, one thread')
  report(*in_memory(), rounds=options.rounds)
  with tempfile.TemporaryDirectory() as directory:
    root = pathlib.Path(directory)
    size = write_jpegs(root)
    threads = options.workers or cores
    print(f'JPEGs 500x375 of {size / 1e3:.0f} kB, {threads} threads')
    report(*streamed(root, options.workers), rounds=options.rounds)


if __name__ == '__main__':
  main()
