"""The path of least damage through a chain, under budgets, exactly.

Positions 0..length are nodes. An edge covers the blocks start..stop-1 and keeps, removes or replaces them; a path from
0 to length is one network. Damages and costs add up along a path. That additivity is an assumption about networks (the
caller measures how far it is off); the choice under it is exact.

The integer program (`scipy.optimize.milp`, HiGHS) is small because most edges are ruled out before: an edge is dropped
where even the best path through it breaks a budget, or has a Lagrangian bound above a path already known. What is left
is also well scaled: no coefficient exceeds its own bound, whatever its unit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum, inf, isfinite
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from pydantic import ValidationError, model_validator
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import coo_matrix, csr_matrix

from shoal.errors import PlanError, did_you_mean
from shoal.record import FrozenModel

Array: TypeAlias = np.ndarray[Any, Any]
Objective: TypeAlias = Literal["damage", "latency_ms", "macs", "params", "depth"]
Edges: TypeAlias = tuple[int, ...]
QUANTITIES: tuple[Objective, ...] = ("damage", "latency_ms", "macs", "params", "depth")

TOLERANCE = 1e-9
"""A path is within a bound b if its total is at most b (1 + TOLERANCE), and as good as another within the same."""

# HiGHS takes rows within 1e-6 and an objective within 1e-6, absolutely, and SciPy cannot change that: bounds are
# brought to SCALE, so that these are 1e-10 of it. SLACK is wider than TOLERANCE by more than that, so that HiGHS never
# loses a path that counts as within; one that does not is told when it comes out, and cut off.
SCALE = 1e4
SLACK = 2 * TOLERANCE
CANDIDATES = 256


class _Checked(FrozenModel):
    """A value whose mistakes are a PlanError, also where it is made by hand."""

    if not TYPE_CHECKING:  # a type checker shall see the fields as arguments, not **data

        def __init__(self, **data: Any) -> None:
            try:
                super().__init__(**data)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"])
                message = first["msg"].removeprefix("Value error, ")
                name = type(self).__name__.lower()
                raise PlanError(
                    f"the {name} {data} is malformed: {where + ': ' if where else ''}{message}",
                    "Give finite numbers of at least 0: damages, costs and budgets are amounts, not differences.",
                ) from error

    @model_validator(mode="after")
    def _numbers(self) -> "_Checked":
        for name in QUANTITIES:
            number = getattr(self, name)
            if number is not None and not (isfinite(number) and number >= 0):
                raise ValueError(f"{name} is {number}, expected a finite number >= 0")
        return self


class Edge(_Checked):
    """One way to go from position `start` to `stop`: what becomes of the blocks start..stop-1, and what it costs.

    `kind` names the stand-in, empty for keep and remove. `depth` is the number of blocks left: 1 for keep and for a
    stand-in, 0 for remove.
    """

    start: int
    stop: int
    action: Literal["keep", "remove", "replace"]
    kind: str = ""
    damage: float
    latency_ms: float
    macs: float
    params: float
    depth: int

    @model_validator(mode="after")
    def _forward(self) -> "Edge":
        if self.start >= self.stop:
            raise ValueError(f"it goes from {self.start} to {self.stop}, expected start < stop")
        return self


class ResourceLimits(_Checked):
    """Upper bounds for the totals over the path; None is free.

    What stands outside the chain (stem, head) costs too: the caller takes it off first.
    """

    latency_ms: float | None = None
    macs: float | None = None
    params: float | None = None
    depth: float | None = None
    damage: float | None = None

    def limits(self) -> dict[Objective, float]:
        """The bounds that are set."""
        return {name: float(getattr(self, name)) for name in QUANTITIES if getattr(self, name) is not None}


class Path(FrozenModel):
    """A path through the chain: indices into the list of edges, in order, and the totals over them."""

    edges: tuple[int, ...]
    damage: float
    latency_ms: float
    macs: float
    params: float
    depth: int


@dataclass(frozen=True, eq=False)
class EdgeGraph:
    """The edges as arrays: what all searches on one chain share."""

    length: int
    start: Array
    stop: Array
    into: list[Array]
    out_of: list[Array]
    cost: dict[str, Array]

    @property
    def everything(self) -> Array:
        """A mask that lets every edge live."""
        return np.ones(len(self.start), dtype=bool)

    def forward(self, weights: Array) -> tuple[Array, Array]:
        """The least weight from 0 to each position, and the last edge on the way (-1: none)."""
        least, last = np.full(self.length + 1, inf), np.full(self.length + 1, -1)
        least[0] = 0.0
        for position in range(1, self.length + 1):
            edges = self.into[position]
            if edges.size:
                sums = least[self.start[edges]] + weights[edges]
                best = int(np.argmin(sums))
                least[position], last[position] = sums[best], edges[best]
        return least, last

    def backward(self, weights: Array) -> tuple[Array, Array]:
        """The least weight from each position to the end, and the first edge on the way (-1: none)."""
        least, first = np.full(self.length + 1, inf), np.full(self.length + 1, -1)
        least[self.length] = 0.0
        for position in range(self.length - 1, -1, -1):
            edges = self.out_of[position]
            if edges.size:
                sums = least[self.stop[edges]] + weights[edges]
                best = int(np.argmin(sums))
                least[position], first[position] = sums[best], edges[best]
        return least, first

    def through(self, weights: Array) -> Array:
        """For each edge the least weight of a path through it; infinite where none is."""
        return self.forward(weights)[0][self.start] + weights + self.backward(weights)[0][self.stop]

    def total(self, name: str, edges: Sequence[int]) -> float:
        """The sum over a path, rounded once: it must not depend on the order of adding."""
        return fsum(self.cost[name][list(edges)])

    def path(self, edges: Sequence[int]) -> Path:
        """The path as a value."""
        return Path(
            edges=tuple(edges),
            damage=self.total("damage", edges),
            latency_ms=self.total("latency_ms", edges),
            macs=self.total("macs", edges),
            params=self.total("params", edges),
            depth=round(self.total("depth", edges)),
        )


def build_edge_graph(edges: Sequence[Edge], length: int) -> EdgeGraph:
    """The edges as arrays.

    Raises:
        PlanError: no blocks, an edge outside the chain, or no path from 0 to `length`.
    """
    if length < 1:
        raise PlanError(f"the chain has {length} blocks, expected at least 1", "Give the number of its blocks.")
    for index, edge in enumerate(edges):
        if edge.start < 0 or edge.stop > length:
            raise PlanError(
                f"edge {index} covers the positions {edge.start}..{edge.stop}, expected 0..{length}",
                "Drop it, or give the length of the chain that it was made for.",
            )
    start = np.array([edge.start for edge in edges], dtype=int)
    stop = np.array([edge.stop for edge in edges], dtype=int)
    cost: dict[str, Array] = {
        name: np.array([getattr(edge, name) for edge in edges], dtype=float) for name in QUANTITIES
    }
    cost["edges"] = np.ones(len(edges))
    into = [np.flatnonzero(stop == position) for position in range(length + 1)]
    out_of = [np.flatnonzero(start == position) for position in range(length + 1)]
    chain = EdgeGraph(length, start, stop, into, out_of, cost)
    reached = chain.forward(np.zeros(len(edges)))[0]
    if not isfinite(reached[length]):
        furthest = int(np.flatnonzero(np.isfinite(reached))[-1])
        raise PlanError(
            f"no path of the {len(edges)} edges covers the chain: from 0 they lead to {furthest}, expected {length}",
            f"Add edges that lead from position {furthest} on; a keep edge for every block always makes a path.",
        )
    return chain


def solve(
    edges: Sequence[Edge],
    length: int,
    budget: ResourceLimits,
    *,
    objective: Objective = "damage",
    without: Sequence[frozenset[int]] = (),
) -> Path | None:
    """The path with the least `objective` within `budget`.

    Of paths equal to within 1e-9 (relative) the faster one is taken, of these the one with fewer edges. A path is
    within the budget if no total exceeds its bound by more than 1e-9 of the bound. The same edges give the same path.

    Args:
        edges: the ways to go; the indices in the answer are theirs.
        length: the number of blocks.
        budget: upper bounds for the totals.
        objective: what shall be least.
        without: paths that are not wanted: no answer holds all edges of one of these sets.

    Returns:
        The path, or None where no path is within the budget.

    Raises:
        PlanError: an edge outside the chain, a chain that no path covers, an unknown objective, a malformed `without`.
    """
    order = _order(objective)
    _check_without(without, len(edges))
    return least_path(build_edge_graph(edges, length), budget.limits(), order, without)


def best(
    edges: Sequence[Edge], length: int, budget: ResourceLimits, k: int, objective: Objective = "damage"
) -> list[Path]:
    """The `k` best distinct paths within `budget`, best first; fewer where there are fewer. See `solve`."""
    if k < 1:
        raise PlanError(f"{k} paths were asked for, expected at least 1", "Give k >= 1.")
    order = _order(objective)
    chain, limits = build_edge_graph(edges, length), budget.limits()
    found: list[Path] = []
    while len(found) < k:
        path = least_path(chain, limits, order, [frozenset(known.edges) for known in found])
        if path is None:
            break
        found.append(path)
    return found


def drop_dominated(edges: Sequence[Edge], length: int) -> list[Edge]:
    """The edges without those that another one makes pointless.

    The rule: an edge goes if another single edge over the same span has no more damage, latency, MACs, parameters and
    depth; of two edges equal in all five the first stays. Keep edges always stay, and may be the reason another goes.
    The optimum stays what it was under every budget and objective; the list of the k best does not.

    Raises:
        PlanError: as `solve`.
    """
    build_edge_graph(edges, length)
    spans: dict[tuple[int, int], list[int]] = {}
    for index, edge in enumerate(edges):
        spans.setdefault((edge.start, edge.stop), []).append(index)
    numbers = [tuple(getattr(edge, name) for name in QUANTITIES) for edge in edges]

    def beats(other: int, index: int) -> bool:
        no_more = all(theirs <= ours for theirs, ours in zip(numbers[other], numbers[index], strict=True))
        # Of equals the first stays, unless a later one is the keep edge, which stays anyway.
        first = (edges[other].action != "keep", other) < (edges[index].action != "keep", index)
        return no_more and (first or numbers[other] != numbers[index])

    return [
        edge
        for index, edge in enumerate(edges)
        if edge.action == "keep" or not any(beats(other, index) for other in spans[edge.start, edge.stop])
    ]


def least_path(
    chain: EdgeGraph, limits: Mapping[Objective, float], order: Sequence[str], without: Sequence[frozenset[int]] = ()
) -> Path | None:
    """The path within `limits` that is least in the first quantity of `order`, of those in the second, and so on.

    Ties are broken by solving again with what was found as one more bound. A small weight in one objective instead
    would have to be below HiGHS's own tolerance to be harmless.
    """
    bounds = [(chain.cost[name], limit) for name, limit in limits.items()]
    alive, known = chain.everything, None
    for name in order:
        search = _Search(chain, chain.cost[name], bounds, without)
        known, alive = search.least(alive, known)
        if known is None:
            return None
        if alive.sum() == len(known):  # nothing else comes near
            break
        bounds.append((chain.cost[name], chain.total(name, known)))
    return chain.path(known) if known is not None else None


@dataclass(frozen=True, eq=False)
class _Search:
    """One objective (`weights`) under `bounds`; `alive` masks the edges that may still be on an optimal path."""

    chain: EdgeGraph
    weights: Array
    bounds: Sequence[tuple[Array, float]]
    without: Sequence[frozenset[int]]

    def least(self, alive: Array, known: Edges | None) -> tuple[Edges | None, Array]:
        """The best path, and the edges of all paths that are as good; `known` is a path within the bounds, if any."""
        alive = self._affordable(alive)
        if not alive.any():
            return None, alive
        rows = self._binding(alive)
        prices = self._prices(alive, rows)
        if prices is None:
            if known is None:
                return None, alive
            prices = np.zeros(len(rows))
        nearby = self._candidates(alive, rows, prices)
        known = min([*nearby, *([known] if known else [])], key=self._value, default=None)
        if known is None:
            # Without a path there is no scale for the objective: any path first, so that the next search has one.
            known = self._integer(alive, rows, None)
            if known is None:
                return None, alive
        alive = self._promising(alive, rows, prices, known)
        if alive.sum() > len(known) and self._value(known) > 0:
            found = self._integer(alive, rows, known)
            if found is None:
                raise PlanError(f"HiGHS found no path, though {known} is one", "Report this with the table of edges.")
            known = min(known, found, key=self._value)
            alive = self._promising(alive, rows, prices, known)
        return known, alive

    def allows(self, path: Edges) -> bool:
        """Is it within every bound, and wanted?"""
        edges = list(path)
        within = all(fsum(weights[edges]) <= bound * (1 + TOLERANCE) for weights, bound in self.bounds)
        return within and not any(unwanted.issubset(path) for unwanted in self.without)

    def _value(self, path: Edges) -> float:
        return fsum(self.weights[list(path)])

    def _affordable(self, alive: Array) -> Array:
        """Without the edges whose cheapest path already breaks a bound; again, as each bound helps the others."""
        while True:
            before = int(alive.sum())
            for weights, bound in [*self.bounds, (self.weights, inf)]:
                least = self.chain.through(np.where(alive, weights, inf))
                alive = alive & (least <= bound * (1 + SLACK)) & np.isfinite(least)
            if int(alive.sum()) == before:
                return alive

    def _binding(self, alive: Array) -> list[Array]:
        """The bounds that some path breaks, as rows with 1 as their bound. So a bound of 0 is never divided by."""
        rows = []
        for weights, bound in self.bounds:
            dearest = -self.chain.forward(np.where(alive, -weights, inf))[0][self.chain.length]
            if dearest > bound * (1 + TOLERANCE):
                rows.append(weights / bound)
        return rows

    def _prices(self, alive: Array, rows: list[Array]) -> Array | None:
        """What one unit of each row is worth in the linear relaxation; None where even that has no solution."""
        if not rows:
            return np.zeros(0)
        index = np.flatnonzero(alive)
        scale = float(self.weights[index].max()) or 1.0
        flow, supply = self._flow(index)
        answer = linprog(
            self.weights[index] / scale,
            A_ub=np.stack([row[index] for row in rows]),
            b_ub=np.full(len(rows), 1 + SLACK),
            A_eq=flow,
            b_eq=supply,
            method="highs",
        )
        if answer.status == 2:
            return None
        # Any prices >= 0 give a true bound, so none at all will do where HiGHS gave up.
        return np.maximum(-answer.ineqlin.marginals, 0) * scale if answer.status == 0 else np.zeros(len(rows))

    def _priced(self, alive: Array, rows: list[Array], prices: Array) -> Array:
        weights = self.weights + sum(price * row for price, row in zip(prices, rows, strict=True))
        return np.where(alive, weights, inf)

    def _candidates(self, alive: Array, rows: list[Array], prices: Array) -> list[Edges]:
        """Allowed paths near the relaxation's optimum: the best one through each promising edge."""
        paths: dict[Edges, None] = {}
        tables = [(self._priced(alive, rows, prices), CANDIDATES)] + [(np.where(alive, row, inf), 1) for row in rows]
        for weights, count in tables:
            (before, last), (after, first) = self.chain.forward(weights), self.chain.backward(weights)
            least = before[self.chain.start] + weights + after[self.chain.stop]
            for edge in np.argsort(least, kind="stable")[:count]:
                if isfinite(least[edge]):
                    paths[self._assemble(int(edge), last, first)] = None
        return [path for path in paths if self.allows(path)]

    def _assemble(self, edge: int, last: Array, first: Array) -> Edges:
        path = [edge]
        while (position := self.chain.start[path[0]]) > 0:
            path.insert(0, int(last[position]))
        while (position := self.chain.stop[path[-1]]) < self.chain.length:
            path.append(int(first[position]))
        return tuple(path)

    def _promising(self, alive: Array, rows: list[Array], prices: Array, known: Edges) -> Array:
        """Without the edges whose every path is worse than `known`, by the weight itself or by the Lagrangian bound."""
        value = self._value(known)
        for weights, paid in (
            (np.where(alive, self.weights, inf), 0.0),
            (self._priced(alive, rows, prices), float(prices.sum()) * (1 + SLACK)),
        ):
            # The second term is for rounding: what was paid comes off again, and may be far more than the value.
            margin = SLACK * value + 1e-12 * paid
            alive = alive & (self.chain.through(weights) - paid <= value + margin)
        return alive

    def _flow(self, index: Array) -> tuple[csr_matrix, Array]:
        """One unit leaves 0, and what enters a position leaves it; the end follows from the others."""
        edges, ends = np.arange(len(index)), self.chain.stop[index]
        inner = ends < self.chain.length
        positions = np.concatenate([self.chain.start[index], ends[inner]])
        signs = np.concatenate([np.ones(len(index)), -np.ones(int(inner.sum()))])
        columns = np.concatenate([edges, edges[inner]])
        supply = np.zeros(self.chain.length)
        supply[0] = 1
        return coo_matrix((signs, (positions, columns)), shape=(self.chain.length, len(index))).tocsr(), supply

    def _integer(self, alive: Array, rows: list[Array], known: Edges | None) -> Edges | None:
        """The best path by HiGHS among the edges alive; verified, and cut off and sought again if it is not allowed."""
        index = np.flatnonzero(alive)
        scale = self._value(known) if known is not None else float(self.weights[index].max()) or 1.0
        flow, supply = self._flow(index)
        constraints = [LinearConstraint(flow, supply, supply)]
        constraints += [LinearConstraint(SCALE * row[index][None], -inf, SCALE * (1 + SLACK)) for row in rows]
        # A cut with a dead edge holds by itself.
        cuts = [unwanted for unwanted in self.without if alive[list(unwanted)].all()]
        while True:
            sums = [np.isin(index, list(cut)).astype(float)[None] for cut in cuts]
            limits = [LinearConstraint(row, -inf, len(cut) - 1) for row, cut in zip(sums, cuts, strict=True)]
            chosen = _highs(self.weights[index] * (SCALE / scale), constraints + limits)
            if chosen is None:
                return None
            path = tuple(int(edge) for edge in sorted(index[chosen], key=lambda edge: self.chain.start[edge]))
            self._verify(path)
            if self.allows(path):
                return path
            cuts.append(frozenset(path))

    def _verify(self, path: Edges) -> None:
        starts, stops = self.chain.start[list(path)].tolist(), self.chain.stop[list(path)].tolist()
        if [0, *stops] != [*starts, self.chain.length]:
            raise PlanError(f"HiGHS gave no path: {starts} to {stops}", "Report this with the table of edges.")


def _highs(weights: Array, constraints: list[LinearConstraint]) -> Array | None:
    """Which variables are 1 in the optimum; None where there is none."""
    answer = milp(
        weights,
        integrality=np.ones(len(weights)),
        bounds=Bounds(0, 1),
        constraints=constraints,
        # Presolve may call a problem infeasible that a bound makes tight, and some releases of HiGHS print a line
        # where they translate a solution back from it.
        options={"mip_rel_gap": 0.0, "presolve": False},
    )
    if answer.status == 2:
        return None
    if answer.status != 0:
        raise PlanError(f"HiGHS did not finish: {answer.message}", "Give fewer edges, or report this with the table.")
    return answer.x > 0.5


def _order(objective: str) -> list[str]:
    if objective not in QUANTITIES:
        raise PlanError(f"the objective is {objective!r}, expected a quantity", did_you_mean(objective, [*QUANTITIES]))
    return list(dict.fromkeys([objective, "latency_ms", "edges"]))


def _check_without(without: Sequence[frozenset[int]], edges: int) -> None:
    for unwanted in without:
        if not unwanted or min(unwanted) < 0 or max(unwanted) >= edges:
            raise PlanError(
                f"a path in `without` is {sorted(unwanted)}, expected one or more indices in 0..{edges - 1}",
                "Give the edges of paths found on the same list of edges.",
            )
