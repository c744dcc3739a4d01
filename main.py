"""Trains, evaluates and folds spiking networks: python main.py --help."""

from mpbn_jax.__main__ import main, run

__all__ = ['main']

if __name__ == '__main__':
  run('python main.py')
