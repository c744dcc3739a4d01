"""Classifies the images in a .npy file with network.jax; needs JAX alone.

python load_example.py images.npy
"""

import pathlib
import sys

import jax
import numpy as np
from jax import export  # its files need `pip install flatbuffers`


def main(images: np.ndarray) -> None:
  """Prints the class of each of the images, uint8 [B, H, W, C]."""
  path = pathlib.Path(__file__).with_name('network.jax')
  try:
    network = export.deserialize(bytearray(path.read_bytes()))
  except Exception as error:
    sys.exit(f'error: expected a program of jax.export in {path}: {error!r}')
  print(*np.argmax(jax.jit(network.call)(images), -1))


if __name__ == '__main__':
  if len(sys.argv) != 2:
    sys.exit('usage: python load_example.py images.npy')
  main(np.load(sys.argv[1]))
