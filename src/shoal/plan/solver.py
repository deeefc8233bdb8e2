"""The path of least damage through a chain, under budgets, exactly.

Positions 0..length are nodes. An edge covers the blocks start..stop-1 and keeps, removes or replaces them; a path from
0 to length is one network. Damages and costs add up along a path. That additivity is an assumption about networks (the
caller measures how far it is off, and may correct it for pairs of edges, see `pairs`); the choice under it is exact.

The integer program (`scipy.optimize.milp`, HiGHS) is small because most edges are ruled out before: an edge is dropped
where even the best path through it breaks a budget, or has a Lagrangian bound above a path in hand. On tables of 27 to
100 blocks and 430 to 7,800 edges this is 5 to 15 times as fast as the plain program (a front of 24 points of 54 blocks
and 3,340 edges: 0.9 s against 14 s), and what remains is well scaled: no coefficient exceeds its own bound.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum, inf, isfinite
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import numpy as np
from pydantic import ValidationError, model_validator
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import coo_matrix, csr_matrix, hstack

from shoal.errors import PlanError, did_you_mean
from shoal.plan.pairs import PairTerm, PairTerms, pair_terms
from shoal.quantities import QUANTITIES
from shoal.record import FrozenModel

Array: TypeAlias = np.ndarray[Any, Any]
Edges: TypeAlias = tuple[int, ...]
OBJECTIVES = ("damage", *(quantity.attribute for quantity in QUANTITIES.values()), "depth")

TOLERANCE = 1e-9
"""A path is within a bound b if its total is at most b (1 + TOLERANCE), and as good as another within the same."""

# HiGHS takes rows within 1e-6 and an objective within 1e-6, absolutely, and SciPy cannot change that: bounds are
# brought to SCALE, so that these are 1e-10 of it. SLACK is wider than TOLERANCE by more than that, so that HiGHS never
# loses a path that counts as within; one that does not is recognised when it comes out, and cut off.
SCALE = 1e4
SLACK = 2 * TOLERANCE
_FURTHER = "latencies"
CANDIDATES = 256


class _Checked(FrozenModel):
    """A value whose mistakes are a PlanError, also where it is constructed directly."""

    label: ClassVar[str]

    if not TYPE_CHECKING:  # a type checker should see the fields as arguments, not **data

        def __init__(self, **data: Any) -> None:
            try:
                super().__init__(**data)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"])
                message = first["msg"].removeprefix("Value error, ")
                raise PlanError(
                    f"the {self.label} {data} is malformed: {where + ': ' if where else ''}{message}",
                    "Give finite numbers of at least 0: damages, costs and budgets are amounts, not differences.",
                ) from error

    @model_validator(mode="after")
    def _numbers(self) -> "_Checked":
        for name in OBJECTIVES:
            amount = getattr(self, name)
            if amount is not None and not (isfinite(amount) and amount >= 0):
                raise ValueError(f"{name} is {amount}, expected a finite number >= 0")
        for amount in getattr(self, "latencies", ()):
            if not (isfinite(amount) and amount >= 0):
                raise ValueError(f"a latency is {amount}, expected a finite number >= 0")
        return self


class Edge(_Checked):
    """A way from position `start` to `stop`: what becomes of the blocks start..stop-1, and what it costs.

    `kind` names the replacement, or the units that go alone. `depth` is the number of blocks that remain: 1 for keep
    and for a replacement, 0 for remove. `latencies` are the times at further batch sizes, if there are any;
    `raw_damage` is the damage before a refit, where `damage` is that after it.
    """

    label: ClassVar[str] = "edge"

    start: int
    stop: int
    action: Literal["keep", "remove", "replace"]
    kind: str = ""
    damage: float
    latency_ms: float
    macs: float
    params: float
    depth: int
    latencies: tuple[float, ...] = ()
    raw_damage: float | None = None

    @model_validator(mode="after")
    def _forward(self) -> "Edge":
        if self.start >= self.stop:
            raise ValueError(f"it goes from {self.start} to {self.stop}, expected start < stop")
        return self


class ResourceLimits(_Checked):
    """Upper bounds for the totals over the path; None is free. `latencies` are those at further batch sizes.

    What is outside the chain (stem, head) costs too: the caller takes it off first.
    """

    label: ClassVar[str] = "budget"

    latency_ms: float | None = None
    macs: float | None = None
    params: float | None = None
    depth: float | None = None
    damage: float | None = None
    latencies: tuple[float, ...] = ()

    def limits(self) -> dict[str, float]:
        """The bounds that are set."""
        limits = {name: float(getattr(self, name)) for name in OBJECTIVES if getattr(self, name) is not None}
        return limits | {_further(index): limit for index, limit in enumerate(self.latencies)}


class Path(FrozenModel):
    """A path through the chain: indices into the list of edges, in order, and the totals over them."""

    edges: tuple[int, ...]
    damage: float
    latency_ms: float
    macs: float
    params: float
    depth: int
    latencies: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class EdgeGraph:
    """The edges as arrays: what all searches on a chain share."""

    length: int
    start: Array
    stop: Array
    into: list[list[int]]
    out_of: list[list[int]]
    cost: dict[str, Array]
    pairs: PairTerms

    def path_sum(self, name: str) -> "_PathSum":
        """What a path has of a quantity; pairs count for damage."""
        return _PathSum(self.cost[name], self.pairs if name == "damage" else None)

    def forward(self, weights: Array) -> tuple[Array, Array]:
        """The least weight from 0 to each position, and the last edge on the way (-1: none)."""
        return _sweep(self.into, self.start.tolist(), weights, range(self.length + 1))

    def backward(self, weights: Array) -> tuple[Array, Array]:
        """The least weight from each position to the end, and the first edge on the way (-1: none)."""
        return _sweep(self.out_of, self.stop.tolist(), weights, range(self.length, -1, -1))

    def through(self, weights: Array) -> Array:
        """For each edge the least weight of a path through it; infinite where none is."""
        return self.forward(weights)[0][self.start] + weights + self.backward(weights)[0][self.stop]

    def total(self, name: str, edges: Sequence[int]) -> float:
        """The sum over a path, rounded once: it must not depend on the order of adding."""
        return self.path_sum(name).total(edges)

    def path(self, edges: Sequence[int]) -> Path:
        """The path as a value."""
        return Path(
            edges=tuple(edges),
            damage=self.total("damage", edges),
            latency_ms=self.total("latency_ms", edges),
            macs=self.total("macs", edges),
            params=self.total("params", edges),
            depth=round(self.total("depth", edges)),
            latencies=tuple(self.total(name, edges) for name in self.cost if name.startswith(_FURTHER)),
        )


@dataclass(frozen=True, eq=False)
class _PathSum:
    """What edges have of a quantity, and their pairs if any; `lower` and `upper` bound the total by sums over edges."""

    own: Array
    pairs: PairTerms | None = None

    @property
    def lower(self) -> Array:
        return self.own if self.pairs is None else self.own + self.pairs.lower

    @property
    def upper(self) -> Array:
        return self.own if self.pairs is None else self.own + self.pairs.upper

    def raised(self, bound: float, share: float) -> float:
        """A bound raised by a share of its size, or of the largest pair's: what is left of these may be very small."""
        largest = self.pairs.largest if self.pairs is not None else 0.0
        return bound + share * max(abs(bound), largest) if isfinite(bound) else bound

    def scale(self, total: float, alive: Array) -> float:
        """What is 1 in an integer program: a total that is expected, or the largest edge where there is none."""
        largest = self.pairs.largest if self.pairs is not None else 0.0
        return max(total, largest) or float(np.abs(self.own[alive]).max()) or 1.0

    def total(self, edges: Sequence[int]) -> float:
        terms = self.pairs.on(edges) if self.pairs is not None else []
        return fsum([*self.own[list(edges)], *terms])

    def row(self, index: Array, terms: Array) -> Array:
        """Coefficients of the edges at `index`, then of the pairs at `terms`."""
        pairs = self.pairs.damage[terms] if self.pairs is not None else np.zeros(len(terms))
        return np.concatenate([self.own[index], pairs])


def _sweep(joining: list[list[int]], far: list[int], weights: Array, positions: range) -> tuple[Array, Array]:
    """The least weight from the first position to each, and the edge that leads there (-1: none).

    Args:
        joining: by position the edges that lead to it; they are few, so plain numbers are faster than arrays.
        far: the other end of each edge.
        weights: of the edges.
        positions: in the order of the search.
    """
    least, step, numbers = [inf] * len(positions), [-1] * len(positions), weights.tolist()
    least[positions[0]] = 0.0
    for position in positions[1:]:
        best = inf
        for edge in joining[position]:
            total = least[far[edge]] + numbers[edge]
            if total < best:
                best, step[position] = total, edge
        least[position] = best
    return np.array(least), np.array(step)


def build_edge_graph(edges: Sequence[Edge], length: int, pairs: Sequence[PairTerm] = ()) -> EdgeGraph:
    """The edges as arrays.

    Raises:
        PlanError: no blocks, an edge outside the chain, no path from 0 to `length`, or a pair of other edges.
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
        name: np.array([getattr(edge, name) for edge in edges], dtype=float) for name in OBJECTIVES
    }
    cost["edges"] = np.ones(len(edges))
    for index in range(max((len(edge.latencies) for edge in edges), default=0)):
        # An edge without them, such as one that passes the stream on, takes no time.
        cost[_further(index)] = np.array([sum(edge.latencies[index : index + 1]) for edge in edges], dtype=float)
    into: list[list[int]] = [[] for _ in range(length + 1)]
    out_of: list[list[int]] = [[] for _ in range(length + 1)]
    for number, edge in enumerate(edges):
        into[edge.stop].append(number)
        out_of[edge.start].append(number)
    chain = EdgeGraph(length, start, stop, into, out_of, cost, pair_terms(pairs, start, stop))
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
    objective: str = "damage",
    without: Sequence[frozenset[int]] = (),
    pairs: Sequence[PairTerm] = (),
) -> Path | None:
    """The path with the least `objective` within `budget`.

    Of paths equal to within 1e-9 (relative) the faster is taken, of these the one with fewer edges. A path is
    within the budget if no total exceeds its bound by more than 1e-9 of the bound. The same edges give the same path.

    Args:
        edges: the ways to go; the indices in the result are theirs.
        length: the number of blocks.
        budget: upper bounds for the totals.
        objective: what to minimise.
        without: paths to leave out: no result holds all edges of any of these sets.
        pairs: what two edges do together beyond the sum of their damages.

    Returns:
        The path, or None where no path is within the budget.

    Raises:
        PlanError: an edge outside the chain, a chain that no path covers, an unknown objective, a malformed `without`.
    """
    order = _order(objective)
    _check_without(without, len(edges))
    return least_path(build_edge_graph(edges, length, pairs), budget.limits(), order, without)


def best(
    edges: Sequence[Edge],
    length: int,
    budget: ResourceLimits,
    k: int,
    objective: str = "damage",
    pairs: Sequence[PairTerm] = (),
) -> list[Path]:
    """The `k` best distinct paths within `budget`, best first; fewer where there are fewer. See `solve`."""
    if k < 1:
        raise PlanError(f"k is {k}, expected at least 1", "It is the number of paths.")
    order = _order(objective)
    chain, limits = build_edge_graph(edges, length, pairs), budget.limits()
    paths: list[Path] = []
    while len(paths) < k:
        path = least_path(chain, limits, order, [frozenset(path.edges) for path in paths])
        if path is None:
            break
        paths.append(path)
    return paths


def least_path(
    chain: EdgeGraph, limits: Mapping[str, float], order: Sequence[str], without: Sequence[frozenset[int]] = ()
) -> Path | None:
    """The path within `limits` that is least in the first quantity of `order`, of those in the second, and so on.

    Ties are broken by solving again with the optimum as a further bound. A small weight in the same objective instead
    would have to be below HiGHS's own tolerance to be harmless.
    """
    unknown = sorted(limits.keys() - chain.cost.keys())
    if unknown:
        raise PlanError(f"the budget bounds {', '.join(unknown)}, which no edge has", "Give edges with as many.")
    bounds = [(chain.path_sum(name), limit) for name, limit in limits.items()]
    alive, incumbent = np.ones(len(chain.start), dtype=bool), None
    for name in order:
        search = _PathSearch(chain, chain.path_sum(name), bounds, without)
        incumbent, alive = search.least(alive, incumbent)
        if incumbent is None:
            return None
        if alive.sum() == len(incumbent):  # nothing else comes near
            break
        bounds.append((chain.path_sum(name), chain.total(name, incumbent)))
    return chain.path(incumbent) if incumbent is not None else None


@dataclass(frozen=True, eq=False)
class _Bound:
    """A bound that some path breaks, and the same with some slack, in units of `scale`."""

    quantity: _PathSum
    limit: float
    scale: float

    @property
    def row(self) -> Array:
        """The least that a path has of it, by edges."""
        return self.quantity.lower / self.scale


@dataclass(frozen=True)
class _Cut:
    """Of these edges a path has at most so many."""

    edges: frozenset[int]
    most: int


@dataclass(frozen=True, eq=False)
class _PathSearch:
    """The objective `goal` under `bounds`; `alive` masks the edges that may still be on an optimal path."""

    chain: EdgeGraph
    goal: _PathSum
    bounds: Sequence[tuple[_PathSum, float]]
    without: Sequence[frozenset[int]]

    def least(self, alive: Array, incumbent: Edges | None) -> tuple[Edges | None, Array]:
        """The best path, and the edges of all paths as good; `incumbent` is a path within the bounds, if any."""
        alive = self._affordable(alive)
        if not alive.any():
            return None, alive
        rows = self._binding(alive)
        prices = self._prices(alive, rows)
        if prices is None:
            if incumbent is None:
                return None, alive
            prices = np.zeros(len(rows))
        nearby = self._candidates(alive, rows, prices)
        incumbent = min([*nearby, *([incumbent] if incumbent else [])], key=self._value, default=None)
        if incumbent is None:
            # Without a path there is no scale for the objective: any path first, so that the next search has a scale.
            incumbent = self._integer(alive, rows, None)
            if incumbent is None:
                return None, alive
        alive = self._promising(alive, rows, prices, incumbent)
        if alive.sum() > len(incumbent) and self._value(incumbent) > self._floor(alive):
            optimum = self._integer(alive, rows, incumbent)
            if optimum is None:
                raise PlanError(
                    f"HiGHS found no path, though {incumbent} is a path", "Report this with the table of edges."
                )
            incumbent = min(incumbent, optimum, key=self._value)
            alive = self._promising(alive, rows, prices, incumbent)
        return incumbent, alive

    def allows(self, path: Edges) -> bool:
        """Whether it is within every bound, and not to be left out."""
        within = all(quantity.total(path) <= quantity.raised(bound, TOLERANCE) for quantity, bound in self.bounds)
        return within and not any(excluded.issubset(path) for excluded in self.without)

    def _value(self, path: Edges) -> float:
        return self.goal.total(path)

    def _floor(self, alive: Array) -> float:
        """What no path is below."""
        return float(self.chain.forward(np.where(alive, self.goal.lower, inf))[0][self.chain.length])

    def _affordable(self, alive: Array) -> Array:
        """Without the edges whose cheapest path breaks a bound; repeatedly, as each bound helps the others."""
        while True:
            before = int(alive.sum())
            for quantity, bound in [*self.bounds, (self.goal, inf)]:
                least = self.chain.through(np.where(alive, quantity.lower, inf))
                alive = alive & (least <= quantity.raised(bound, SLACK)) & np.isfinite(least)
            if int(alive.sum()) == before:
                return alive

    def _binding(self, alive: Array) -> list[_Bound]:
        """The bounds that some path breaks, in units of themselves; where that is none, of the largest edge."""
        rows = []
        for quantity, bound in self.bounds:
            dearest = -self.chain.forward(np.where(alive, -quantity.upper, inf))[0][self.chain.length]
            if dearest > quantity.raised(bound, TOLERANCE):
                scale = quantity.scale(bound, alive)
                rows.append(_Bound(quantity, quantity.raised(bound, SLACK) / scale, scale))
        return rows

    def _prices(self, alive: Array, rows: list[_Bound]) -> Array | None:
        """What a unit of each row is worth in the linear relaxation; None where even that has no solution."""
        if not rows:
            return np.zeros(0)
        index = np.flatnonzero(alive)
        weights = self.goal.lower[index]
        scale = float(np.abs(weights).max()) or 1.0
        flow, supply = self._flow(index)
        answer = linprog(
            weights / scale,
            A_ub=np.stack([row.row[index] for row in rows]),
            b_ub=np.array([row.limit for row in rows]),
            A_eq=flow,
            b_eq=supply,
            method="highs",
        )
        if answer.status == 2:
            return None
        # Any prices >= 0 give a true bound, so none at all will do where HiGHS gave up.
        return np.maximum(-answer.ineqlin.marginals, 0) * scale if answer.status == 0 else np.zeros(len(rows))

    def _priced(self, alive: Array, rows: list[_Bound], prices: Array) -> Array:
        weights = self.goal.lower + sum(price * row.row for price, row in zip(prices, rows, strict=True))
        return np.where(alive, weights, inf)

    def _candidates(self, alive: Array, rows: list[_Bound], prices: Array) -> list[Edges]:
        """Allowed paths near the relaxation's optimum: the best one through each promising edge."""
        paths: dict[Edges, None] = {}
        tables = [(self._priced(alive, rows, prices), CANDIDATES)]
        tables += [(np.where(alive, row.row, inf), 1) for row in rows]
        for weights, count in tables:
            (before, last), (after, first) = self.chain.forward(weights), self.chain.backward(weights)
            least = before[self.chain.start] + weights + after[self.chain.stop]
            for edge in np.argsort(least, kind="stable")[:count]:
                if isfinite(least[edge]):
                    paths[self._assemble(int(edge), last, first)] = None
        return [path for path in paths if self.allows(path)]

    def _assemble(self, edge: int, last: Array, first: Array) -> Edges:
        path = [edge]
        while (position := self.chain.start[path[-1]]) > 0:
            path.append(int(last[position]))
        path.reverse()
        while (position := self.chain.stop[path[-1]]) < self.chain.length:
            path.append(int(first[position]))
        return tuple(path)

    def _promising(self, alive: Array, rows: list[_Bound], prices: Array, incumbent: Edges) -> Array:
        """Without the edges whose every path is worse than `incumbent`, by the weight or by the Lagrangian bound."""
        value = self._value(incumbent)
        paid = [price * row.limit for price, row in zip(prices, rows, strict=True)]
        for weights, total, size in (
            (np.where(alive, self.goal.lower, inf), 0.0, 0.0),
            (self._priced(alive, rows, prices), sum(paid), sum(map(abs, paid))),
        ):
            # The second term is for rounding: what was paid comes off again, and may be far more than the value.
            margin = self.goal.raised(value, SLACK) - value + 1e-12 * size
            alive = alive & (self.chain.through(weights) - total <= value + margin)
        return alive

    def _flow(self, index: Array) -> tuple[csr_matrix, Array]:
        """A unit of flow leaves 0, and what enters a position leaves it; the end follows from the others."""
        edges, ends = np.arange(len(index)), self.chain.stop[index]
        inner = ends < self.chain.length
        positions = np.concatenate([self.chain.start[index], ends[inner]])
        signs = np.concatenate([np.ones(len(index)), -np.ones(int(inner.sum()))])
        columns = np.concatenate([edges, edges[inner]])
        supply = np.zeros(self.chain.length)
        supply[0] = 1
        return coo_matrix((signs, (positions, columns)), shape=(self.chain.length, len(index))).tocsr(), supply

    def _integer(self, alive: Array, rows: list[_Bound], incumbent: Edges | None) -> Edges | None:
        """The best path by HiGHS among the edges alive; cut off and sought again where it is not allowed."""
        index = np.flatnonzero(alive)
        paired = any(quantity.pairs is not None for quantity in (self.goal, *(row.quantity for row in rows)))
        terms = self.chain.pairs.among(alive) if paired else np.zeros(0, dtype=int)
        scale = self.goal.scale(self._value(incumbent) if incumbent is not None else 0.0, alive)
        flow, supply = self._flow(index)
        flow = hstack([flow, csr_matrix((flow.shape[0], len(terms)))], format="csr")
        constraints = [LinearConstraint(flow, supply, supply)]
        constraints += [
            LinearConstraint((row.quantity.row(index, terms) / row.scale * SCALE)[None], -inf, SCALE * row.limit)
            for row in rows
        ]
        if len(terms):
            links, upper = self.chain.pairs.links(terms, index)
            constraints.append(LinearConstraint(links, -inf, upper))
        # A cut with a dead edge holds by itself.
        cuts = [_Cut(excluded, len(excluded) - 1) for excluded in self.without if alive[list(excluded)].all()]
        while True:
            sums = [np.concatenate([np.isin(index, list(cut.edges)), np.zeros(len(terms))])[None] for cut in cuts]
            limits = [LinearConstraint(row, -inf, cut.most) for row, cut in zip(sums, cuts, strict=True)]
            chosen = _highs(self.goal.row(index, terms) / scale * SCALE, constraints + limits, len(index))
            if chosen is None:
                return None
            path = tuple(int(edge) for edge in sorted(index[chosen], key=lambda edge: self.chain.start[edge]))
            self._verify(path)
            if self.allows(path):
                return path
            cuts.append(self._cut(path, alive))

    def _cut(self, path: Edges, alive: Array) -> _Cut:
        """What rules out a path that is not allowed, and every other path that breaks the same bound in the same way.

        HiGHS takes 0.999999 for 1, so a path just above a bound may pass for one within it. Of blocks that are alike
        there are as many such paths as ways to choose: they would be cut off one by one without end. The inequality is
        an extended cover (Balas 1975, Mathematical Programming 8:146): of the dearest edges that together break the
        bound, and of all that cost as much as the dearest of them, no path within it has so many.
        """
        for quantity, bound in self.bounds:
            most = quantity.raised(bound, TOLERANCE)
            if quantity.pairs is not None or (quantity.own[alive] < 0).any() or quantity.total(path) <= most:
                continue
            cover: list[int] = []
            for edge in sorted(path, key=lambda edge: -quantity.own[edge]):
                cover.append(edge)
                if quantity.total(cover) > most:
                    dear = np.flatnonzero(alive & (quantity.own >= quantity.own[cover[0]]))
                    return _Cut(frozenset([*cover, *dear.tolist()]), len(cover) - 1)
        return _Cut(frozenset(path), len(path) - 1)

    def _verify(self, path: Edges) -> None:
        starts, stops = self.chain.start[list(path)].tolist(), self.chain.stop[list(path)].tolist()
        if [0, *stops] != [*starts, self.chain.length]:
            raise PlanError(f"HiGHS gave no path: {starts} to {stops}", "Report this with the table of edges.")


def _highs(weights: Array, constraints: list[LinearConstraint], edges: int) -> Array | None:
    """Which of the first variables, those of the edges, are 1 in the optimum; None where there is none."""
    answer = milp(
        weights,
        # The variable of a pair follows from those of its edges; of one that need not be whole HiGHS prints a line.
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
    return answer.x[:edges] > 0.5


def _further(index: int) -> str:
    """The name of the latency at a further batch size."""
    return f"{_FURTHER}[{index}]"


def _order(objective: str) -> list[str]:
    if objective not in OBJECTIVES:
        raise PlanError(f"the objective is {objective!r}, expected a quantity", did_you_mean(objective, [*OBJECTIVES]))
    return list(dict.fromkeys([objective, "latency_ms", "edges"]))


def _check_without(without: Sequence[frozenset[int]], edges: int) -> None:
    for excluded in without:
        if not excluded or min(excluded) < 0 or max(excluded) >= edges:
            raise PlanError(
                f"a path in `without` is {sorted(excluded)}, expected one or more indices in 0..{edges - 1}",
                "Give the edges of paths through the same list of edges.",
            )
