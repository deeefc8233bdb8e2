"""A model as a chain of residual blocks: the traced run, the additions, the chain, what is left without a branch."""

from shoal.blocks.adapters import Shortcut, adapter
from shoal.blocks.discover import analyze, graph_from_trace, trace
from shoal.blocks.graph import Block, BlockGraph, Chain, Unit
from shoal.deprecated import former_names

__all__ = ["Block", "BlockGraph", "Chain", "Shortcut", "Unit", "adapter", "analyze", "graph_from_trace", "trace"]

__getattr__ = former_names(
    __name__,
    {
        "Anatomy": "shoal.blocks:BlockGraph",
        "anatomy_of": "shoal.blocks:graph_from_trace",
        "dissect": "shoal.blocks:analyze",
    },
)
