"""A model as a chain of residual blocks: the traced run, the additions, the chain, what is left without a branch."""

from shoal.blocks.adapters import Shortcut, adapter
from shoal.blocks.anatomy import Anatomy
from shoal.blocks.chain import Block, Chain, Unit
from shoal.blocks.discover import anatomy_of, dissect, trace

__all__ = ["Anatomy", "Block", "Chain", "Shortcut", "Unit", "adapter", "anatomy_of", "dissect", "trace"]
