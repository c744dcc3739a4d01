"""Graphs of folded networks, from which files for other programs are made."""

from mpbn_jax.graph.comparison import GraphComparison, compare_graphs
from mpbn_jax.graph.files import read_network, write_network
from mpbn_jax.graph.interpreter import run_graph
from mpbn_jax.graph.nodes import KINDS, Graph, Kind, Node
from mpbn_jax.graph.quantization import quantize
from mpbn_jax.graph.trace import network_graph

__all__ = [
  'KINDS',
  'Graph',
  'GraphComparison',
  'Kind',
  'Node',
  'compare_graphs',
  'network_graph',
  'quantize',
  'read_network',
  'run_graph',
  'write_network',
]
