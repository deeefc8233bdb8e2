"""A model as a chain of residual blocks: the traced run, the additions, the chain, what is left without a branch."""

from shoal.blocks.adapters import Shortcut, adapter
from shoal.blocks.discover import analyze, graph_from_trace, trace
from shoal.blocks.graph import Block, BlockGraph, Chain, Unit

__all__ = ["Block", "BlockGraph", "Chain", "Shortcut", "Unit", "adapter", "analyze", "graph_from_trace", "trace"]
