"""The Pareto front of damage against one cost: what can be had, for the user to pick from."""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np

from shoal.errors import PlanError, did_you_mean
from shoal.plan.solver import TOLERANCE, Edge, EdgeGraph, Objective, Path, build_edge_graph, least_path

CostName: TypeAlias = Literal["latency_ms", "macs", "params", "depth"]
COSTS: tuple[CostName, ...] = ("latency_ms", "macs", "params", "depth")


def front(edges: Sequence[Edge], length: int, *, cost: CostName = "latency_ms", points: int = 20) -> list[Path]:
    """Paths of which none is better than another in both damage and `cost`, cheapest first.

    The ends are the cheapest path and the one with the least damage (all kept, where a keep edge has no damage).
    Between them come the best paths for evenly spaced budgets, then for budgets within the widest gaps, until `points`
    are found or there are no more. Every point is Pareto-optimal among all paths, to within 1e-9 (relative); of paths
    equal in both the one with less latency, then fewer edges, stands for all.

    Raises:
        PlanError: fewer than 2 points, an unknown cost, an edge outside the chain, a chain that no path covers.
    """
    if points < 2:
        raise PlanError(f"{points} points were asked for, expected at least 2", "A front has two ends.")
    if cost not in COSTS:
        raise PlanError(f"the cost is {cost!r}, expected a quantity", did_you_mean(cost, [*COSTS]))
    search = _Front(build_edge_graph(edges, length), cost)
    for budget in np.linspace(search.price(search.found[0]), search.price(search.found[-1]), points)[1:-1]:
        search.probe(float(budget))
    while len(search.found) < points and search.gaps:
        search.refine()
    return search.found


class _Front:
    """The points found so far, and the gaps: ranges of cost between neighbours that nobody has searched."""

    def __init__(self, chain: EdgeGraph, cost: CostName) -> None:
        self.chain = chain
        self.cost = cost
        cheapest = self._least([cost, "damage"], {})
        kindest = self._least(["damage", cost], {})
        self.found = [cheapest]
        self.gaps: list[tuple[float, float]] = []
        if not self._same(cheapest, kindest):
            self.found.append(kindest)
            self._open(self.price(cheapest), self.price(kindest))

    def price(self, path: Path) -> float:
        """The path's total of the cost."""
        return float(getattr(path, self.cost))

    def refine(self) -> None:
        """Search the widest gap, in its middle; where nothing new is there, just below its upper end."""
        low, high = max(self.gaps, key=lambda gap: gap[1] - gap[0])
        # Below the upper end comes the next point of the front, or the gap is empty: so the search ends.
        if not self.probe((low + high) / 2) and (rest := [gap for gap in self.gaps if gap[1] == high]):
            self.probe(rest[0][1] * (1 - 3 * TOLERANCE))

    def probe(self, budget: float) -> bool:
        """Search at a budget, if it lies in a gap; is there a new point?"""
        gap = next(((low, high) for low, high in self.gaps if low < budget < high), None)
        if gap is None:
            return False
        cheaper = max((path for path in self.found if self.price(path) <= gap[0]), key=self.price)
        # The cheaper neighbour can be had, so no more damage than its: this rules out most edges at once.
        path = self._least(["damage", self.cost], {self.cost: budget, "damage": cheaper.damage})
        self.gaps.remove(gap)
        # A path may cost a rounding more than the budget: it must not be found again from there.
        self._open(max(budget, self.price(path)), gap[1])
        if any(self._same(path, one) for one in self.found) or path.damage >= cheaper.damage:
            return False
        self._open(gap[0], self.price(path))
        self.found = sorted([*self.found, path], key=self.price)
        return True

    def _open(self, low: float, high: float) -> None:
        # Closer than the tolerance of a bound two costs are one.
        if high * (1 - 3 * TOLERANCE) > low:
            self.gaps.append((low, high))

    def _same(self, one: Path, other: Path) -> bool:
        return abs(self.price(one) - self.price(other)) <= 3 * TOLERANCE * max(self.price(one), self.price(other))

    def _least(self, order: list[str], limits: dict[Objective, float]) -> Path:
        path = least_path(self.chain, limits, list(dict.fromkeys([*order, "latency_ms", "edges"])))
        if path is None:  # every budget is at least the cost of a path in hand
            raise PlanError(f"no path within {limits}, though one is known", "Report this with the table of edges.")
        return path
