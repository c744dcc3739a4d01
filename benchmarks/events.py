"""Recordings of an event camera that become frames in a second.

Random recordings of a sensor of 128x128 pixels become T frames, in one thread:

  ours: `mpbn_jax.datasets.events.frames.to_frames`, at the sensor's size and
    resized to 48x48 as for CIFAR10-DVS,
  peer: tonic's `ToFrame`, which does not resize.

  python benchmarks/events.py [--rounds=20] [--events=100000] [--steps=10]
"""

import argparse
import importlib.metadata
import pathlib
import statistics
import sys
import time
from functools import partial

import numpy as np
import tonic

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from mpbn_jax.datasets.events.frames import to_frames

SIDE = 128
PEER = {'count': 'n_event_bins', 'time': 'n_time_bins'}
RECORDINGS = 8  # that take turns


def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--rounds', type=int, default=20)
  parser.add_argument('--events', type=int, default=100_000)
  parser.add_argument('--steps', type=int, default=10)
  flags = parser.parse_args(argv)
  print(
    f'{flags.events:,} events, T = {flags.steps}, {SIDE}x{SIDE}; NumPy '
    f'{np.__version__}, tonic {importlib.metadata.version("tonic")}, median of '
    f'{flags.rounds} rounds of {RECORDINGS} recordings'
  )
  recordings = [_recording(flags.events, seed) for seed in range(RECORDINGS)]
  print(
    f'{"framing":10}{"frames":>10}{"ours /s":>10}{"peer /s":>10}{"ratio":>8}'
  )
  for framing, bins in PEER.items():
    peer = tonic.transforms.ToFrame(
      sensor_size=(SIDE, SIDE, 2), **{bins: flags.steps}
    )
    ways = {'peer': peer}
    for side in (SIDE, 48):
      ways[side] = partial(
        to_frames,
        num_steps=flags.steps,
        sensor=(SIDE, SIDE),
        size=(side, side),
        framing=framing,
        name='random',
      )
    rates = _rates(ways, recordings, flags.rounds)
    for side in (SIDE, 48):
      print(
        f'{framing:10}{f"{side}x{side}":>10}{rates[side]:10.0f}'
        f'{rates["peer"]:10.0f}{rates[side] / rates["peer"]:8.1f}',
        flush=True,
      )


def _recording(count, seed):
  rng = np.random.default_rng(seed)
  events = np.zeros(count, tonic.datasets.CIFAR10DVS.dtype)
  events['t'] = np.sort(rng.integers(0, 10**6, count))
  events['x'], events['y'] = rng.integers(0, SIDE, (2, count))
  events['p'] = rng.integers(0, 2, count)
  return events


def _rates(ways, recordings, rounds):
  """Returns median recordings per second; rounds interleave the ways."""
  seconds = {name: [] for name in ways}
  for turn in range(-1, rounds):  # one to warm up
    for name, function in ways.items():
      start = time.perf_counter()
      for events in recordings:
        function(events)
      if turn >= 0:
        seconds[name].append(time.perf_counter() - start)
  return {
    name: len(recordings) / statistics.median(times)
    for name, times in seconds.items()
  }


if __name__ == '__main__':
  main()
