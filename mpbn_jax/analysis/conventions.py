"""Conventions of counting synaptic operations."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convention:
  """How operations are counted; papers and programs disagree.

  Attributes:
    source: where the convention comes from.
    spikes: which values make an input binary, so that its weights are
      accumulated (AC); any other is multiplied (MAC). '0, 1' or '-1, 0, 1',
      judged over the whole data set.
    accumulates: ACs of a binary input. 'rate': the operations of the dense
      layer times the share of its input that is not 0. 'exact': the weights
      that each nonzero input meets, fewer at borders.
    multiplies: MACs of any other input. 'dense': all operations of the layer.
      'nonzero': those of inputs that are not 0, exactly.
    padding: whether the dense layer multiplies the zeros around a map.
    zero_weights: whether weights that are 0 count.
    bias: whether the additions of biases count, as operations of their layer.
    first_layer: 'every step' or 'once': how often the layers that read the same
      image at every step are computed.
    scales: whether a scale per channel (of an identity shortcut) counts as a
      layer with one weight per input.
    pooling: 'none'; 'additions', those inside of windows; 'inputs', one
      operation per input.
    sums: whether residual sums count.
    neurons: whether the update of every neuron counts as an AC.
    batch_norm: what a batch norm would cost. The network is folded: it has
      none.
  """

  source: str
  spikes: str = '0, 1'
  accumulates: str = 'rate'
  multiplies: str = 'dense'
  padding: bool = True
  zero_weights: bool = True
  bias: bool = False
  first_layer: str = 'every step'
  scales: bool = False
  pooling: str = 'none'
  sums: bool = False
  neurons: bool = False
  batch_norm: str = 'nothing'


CONVENTIONS: dict[str, Convention] = {
  'mpbn_jax': Convention(source='docs/analysis.md', scales=True),
  'neurobench': Convention(
    source='NeuroBench 2.3, SynapticOperations',
    spikes='-1, 0, 1',
    accumulates='exact',
    multiplies='nonzero',
    padding=False,
    zero_weights=False,
  ),
  'spikingjelly': Convention(
    source='SpikingJelly 2.0, ACCounter and MACCounter, without what its '
    'neurons compute',
    accumulates='exact',
    pooling='additions',
    sums=True,
    batch_norm='n MACs and n + c ACs for n values of c channels',
  ),
  'syops': Convention(
    source='syops 0.0.5',
    bias=True,
    pooling='inputs',
    neurons=True,
    batch_norm='2 n MACs for n values',
  ),
}
