"""The Pareto front of damage against one cost: what can be had, for the user to pick from."""

from collections.abc import Sequence

import numpy as np

from shoal.errors import PlanError, did_you_mean
from shoal.plan.pairs import PairTerm
from shoal.plan.solver import OBJECTIVES, TOLERANCE, Edge, EdgeGraph, Path, build_edge_graph, least_path

COSTS = tuple(name for name in OBJECTIVES if name != "damage")


def front(
    edges: Sequence[Edge],
    length: int,
    *,
    cost: str = "latency_ms",
    points: int = 20,
    pairs: Sequence[PairTerm] = (),
) -> list[Path]:
    """Paths of which none is better than another in both damage and `cost`, cheapest first.

    The ends are the cheapest path and the one with the least damage (all kept, where a keep edge has no damage).
    Between them come the best paths for evenly spaced budgets, then for budgets within the widest gaps, until there are
    `points` of them or no more exist. Every point is Pareto-optimal among all paths, to within 1e-9 (relative); paths
    equal in both are represented by the one with less latency, then fewer edges.

    Raises:
        PlanError: fewer than 2 points, an unknown cost, an edge outside the chain, a chain that no path covers.
    """
    if points < 2:
        raise PlanError(f"points is {points}, expected at least 2", "A front has two ends.")
    if cost not in COSTS:
        raise PlanError(f"the cost is {cost!r}, expected a quantity", did_you_mean(cost, [*COSTS]))
    search = _FrontSearch(build_edge_graph(edges, length, pairs), cost)
    for budget in np.linspace(search.cost_of(search.paths[0]), search.cost_of(search.paths[-1]), points)[1:-1]:
        search.probe(float(budget))
    while len(search.paths) < points and search.gaps:
        search.refine()
    return search.paths


class _FrontSearch:
    """The paths of the front so far, and the gaps: ranges of cost between neighbours that were not searched yet."""

    def __init__(self, chain: EdgeGraph, cost: str) -> None:
        self.chain = chain
        self.cost = cost
        cheapest = self._least([cost, "damage"], {})
        gentlest = self._least(["damage", cost], {})
        self.paths = [cheapest]
        self.gaps: list[tuple[float, float]] = []
        if not self._same(cheapest, gentlest):
            self.paths.append(gentlest)
            self._open(self.cost_of(cheapest), self.cost_of(gentlest))

    def cost_of(self, path: Path) -> float:
        """The path's total of the cost."""
        return float(getattr(path, self.cost))

    def refine(self) -> None:
        """Search the widest gap, in its middle; where nothing new is there, just below its upper end."""
        low, high = max(self.gaps, key=lambda gap: gap[1] - gap[0])
        # Below the upper end comes the next point of the front, or the gap is empty: so the search ends.
        if not self.probe((low + high) / 2) and any(gap[1] == high for gap in self.gaps):
            self.probe(high * (1 - 3 * TOLERANCE))

    def probe(self, budget: float) -> bool:
        """Search at a budget, if it lies in a gap, and return whether there is a new point."""
        gap = next(((low, high) for low, high in self.gaps if low < budget < high), None)
        if gap is None:
            return False
        cheaper = max((path for path in self.paths if self.cost_of(path) <= gap[0]), key=self.cost_of)
        # The cheaper neighbour can be had, so no more damage than its: this rules out most edges at once.
        path = self._least(["damage", self.cost], {self.cost: budget, "damage": cheaper.damage})
        self.gaps.remove(gap)
        # A path may cost a rounding error more than the budget: the search must not return it again from there.
        self._open(max(budget, self.cost_of(path)), gap[1])
        if any(self._same(path, previous) for previous in self.paths) or path.damage >= cheaper.damage:
            return False
        self._open(gap[0], self.cost_of(path))
        self.paths = sorted([*self.paths, path], key=self.cost_of)
        return True

    def _open(self, low: float, high: float) -> None:
        # Costs closer than the tolerance of a bound are the same.
        if high * (1 - 3 * TOLERANCE) > low:
            self.gaps.append((low, high))

    def _same(self, first: Path, second: Path) -> bool:
        costs = self.cost_of(first), self.cost_of(second)
        return abs(costs[0] - costs[1]) <= 3 * TOLERANCE * max(costs)

    def _least(self, order: list[str], limits: dict[str, float]) -> Path:
        path = least_path(self.chain, limits, list(dict.fromkeys([*order, "latency_ms", "edges"])))
        if path is None:  # every budget is at least the cost of a path in hand
            raise PlanError(f"no path within {limits}, though there must be", "Report this with the table of edges.")
        return path
