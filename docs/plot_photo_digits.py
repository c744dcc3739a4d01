"""The picture of the `photo_digits`, docs/photo_digits.png.

The first images of each split, with their labels; needs matplotlib
(requirements-dev.txt).

  python docs/plot_photo_digits.py [--count=40] [--output=photo_digits.png]
"""

import argparse
import pathlib
import sys

import matplotlib

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from mpbn_jax.datasets.embedded import photo_digits

OUTPUT = pathlib.Path(__file__).resolve().parent / 'photo_digits.png'
COLUMNS = 10


def main() -> None:
  """Writes the picture."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--count', type=int, default=40, help='of each split')
  parser.add_argument('--output', type=pathlib.Path, default=OUTPUT)
  arguments = parser.parse_args()
  figure(arguments.count).savefig(arguments.output)


def figure(count: int):
  """Returns a matplotlib figure, one panel of `count` images a split."""
  matplotlib.use('Agg')  # no display is needed
  from matplotlib import pyplot

  rows = -(-count // COLUMNS)
  whole = pyplot.figure(figsize=(7, 3 * (0.4 + 0.8 * rows)), dpi=100)
  panels = whole.subfigures(len(photo_digits.SIZES), 1, squeeze=False)[:, 0]
  for name, panel in zip(photo_digits.SIZES, panels, strict=True):
    panel.suptitle(name, fontsize=11)
    axes = panel.subplots(rows, COLUMNS, squeeze=False).ravel()
    split = photo_digits.generate(name, count=count)
    for axis in axes:
      axis.axis('off')
    for axis, image, label in zip(
      axes, split.images, split.labels, strict=False
    ):
      axis.imshow(image, interpolation='nearest')
      axis.set_title(str(label), fontsize=8, pad=2)
    panel.subplots_adjust(
      left=0.01, right=0.99, bottom=0.01, top=0.86, wspace=0.05, hspace=0.3
    )
  return whole


if __name__ == '__main__':
  main()
