"""Graphs of folded networks, from which files for other programs are made."""

from mpbn_jax.graph.interpreter import run_graph
from mpbn_jax.graph.nodes import KINDS, Graph, Kind, Node
from mpbn_jax.graph.trace import network_graph

__all__ = ['KINDS', 'Graph', 'Kind', 'Node', 'network_graph', 'run_graph']
