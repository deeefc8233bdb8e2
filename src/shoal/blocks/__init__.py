"""A model as a chain of residual blocks: the traced run, the additions, the chain, what is left without a branch."""

from shoal.blocks.adapters import Shortcut, adapter
from shoal.blocks.chain import Block, Chain, Unit
from shoal.blocks.discover import analyze, graph_from_trace, trace
from shoal.blocks.graph import BlockGraph

__all__ = ["Block", "BlockGraph", "Chain", "Shortcut", "Unit", "adapter", "analyze", "graph_from_trace", "trace"]
