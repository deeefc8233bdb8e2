"""The plans that are best where damages count otherwise than the tables say, to contend beside the best by the tables.

A damage of the tables is that of one change alone, before a refit and before recovery. What is left of a plan's damage
after them is not the sum: a few large changes are mended better than many small ones, for a network that is whole
behind them learns to take what comes. So a damage d may count as d^0.6 or d^0.45, or that of a removal as less;
which of these plans is best is measured, after a refit or a short recovery, not believed. Figures: docs/figures.md.
"""

from collections.abc import Sequence

from shoal.plan import Edge

POWERS = (0.6, 0.45)
# What a removal counts for: it leaves whole trained blocks behind, that recover better than they do at first.
FACTORS = (0.3, 0.1)


def concave_damage(edges: Sequence[Edge], power: float) -> list[Edge]:
    """The edges with every damage d as d^power: below 1, few large ones rather than many small ones."""
    return [one.model_copy(update={"damage": one.damage**power}) for one in edges]


def discounted_removals(edges: Sequence[Edge], factor: float) -> list[Edge]:
    """The edges with the damage of every removal multiplied by so much."""
    return [one.model_copy(update={"damage": factor * one.damage}) if one.action == "remove" else one for one in edges]
