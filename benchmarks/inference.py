"""How long does inference take: MPBN, folded, and without any norm of u?

    python benchmarks/inference.py --batch=16 --steps=4 --width=64 --peers
    python benchmarks/inference.py --rounds=31 --only=folded,plain
    python benchmarks/inference.py --rounds=31 --only=folded,plain --constants

A spiking ResNet: with MPBN, folded into thresholds, folded into convolutions
too, and the same network without MPBN ('plain'), next to peers with MPBN, each
in its own process. All take turns. FLOPs and bytes are those that XLA counts.
With --constants, the variables are part of our programs, as in exported ones.
"""

import measure
import networks

PEERS = ('spikingjelly', 'pytorch')


def functions(options):
  """Returns ({name: function}, {name: cost analysis}, FLOPs)."""
  shape = measure.shape(options)
  images, _ = measure.data(options.batch)
  network = networks.model(**shape)
  plain = networks.model(**shape, norm=False)
  variables = {
    **networks.folds(networks.initial(network, images)),
    'plain': networks.initial(plain, images),
  }
  found, costs = {}, {}
  for name, own in variables.items():
    of = plain if name == 'plain' else network
    found[name], costs[name] = networks.forward(
      of, own, images, constants=options.constants
    )
  if options.peers:
    import peers

    for name in PEERS:
      found[name] = peers.elsewhere(name, 'forward', options)
  return found, costs, networks.flops(network, images)


def main():
  parser = measure.parser(__doc__, rounds=11)
  parser.add_argument('--constants', action='store_true')
  options = parser.parse_args()
  settings = measure.settings(options) | {'constants': options.constants}
  found, costs, total = functions(options)
  names = measure.chosen(options.only, list(found), base='folded')
  found = {name: found[name] for name in names}
  found['floor'], own = networks.floor(total, precision=options.precision)
  seconds = measure.in_turns(
    found, rounds=options.rounds, repeats=options.repeats
  )
  seconds['floor'] = [s * total / own for s in seconds['floor']]
  print(f'forward pass, 32x32x3, {settings}')
  print(f'{"ms":>32} {"x floor":>8} {"GFLOP":>7} {"GB":>6}   x folded [95 %]')
  results = {}
  for name in found:
    value, low, high = measure.ratio(seconds[name], seconds['folded'])
    to_floor, _, _ = measure.ratio(seconds[name], seconds['floor'])
    median = 1e3 * measure.medians(seconds)[name]
    cost = costs.get(name, {})
    flops, moved = cost.get('flops', 0), cost.get('bytes accessed', 0)
    results[name] = {
      'ms': median,
      'to_floor': to_floor,
      'to_folded': [value, low, high],
      'flops': flops,
      'bytes': moved,
    }
    print(
      f'{name:<25} {median:6.1f} {to_floor:8.2f} {flops / 1e9:7.3f} '
      f'{moved / 1e9:6.3f} {value:8.3f} [{low:.3f}, {high:.3f}]'
    )
  measure.record(__file__, settings, results)


if __name__ == '__main__':
  main()
