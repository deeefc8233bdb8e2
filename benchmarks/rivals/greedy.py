"""Greedy removal with true re-scoring: after each removal every remaining block is tried again.

It judges on the images the planner judges on, blends and all, by the same divergence.
"""

from rivals.ground import Ground
from rivals.made import Made
from rivals.prefixes import shortest_prefix
from shoal.pipeline import RemoveBlocks
from shoal.pipeline.greedy import GreedyRemoval
from shoal.store import RunFolder


def greedy(ground: Ground, target: float) -> Made:
    """The shortest beginning of one greedy run that meets `target`; the run is kept and goes on where it stopped."""
    journal = RunFolder(ground.folder / "greedy", "frontier greedy", {})
    chooser = GreedyRemoval(
        ground.graph,
        RemoveBlocks(len(ground.graph.chain.removable)),
        ground.judge_on,
        ground.judge_on[:1],
        journal=journal,
        progress=ground.progress,
    )
    order = [step.removed for step in chooser.choose().steps]
    return shortest_prefix(ground, order, target, journal.path)
