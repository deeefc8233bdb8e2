"""Strict identities: blocks whose branches are zero for every input, read off the weights."""

from shoal.blocks import BlockGraph
from shoal.blocks.zero_analysis import zero_values


def strict_identities(anatomy: BlockGraph) -> dict[str, str]:
    """The removable blocks that do nothing but their shortcut, each with the proof in words."""
    zeros = zero_values(anatomy.trace, anatomy.model)
    found = {}
    for block in anatomy.chain.removable:
        reasons = [zeros.get(one.branch) for one in anatomy.additions[block.path]]
        if reasons and all(reason is not None for reason in reasons):
            found[block.path] = "; ".join(dict.fromkeys(str(reason) for reason in reasons))
    return found
