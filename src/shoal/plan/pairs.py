"""Corrections for pairs of edges: what two changes together do beyond the sum of both, as terms of an integer program.

A term counts where both edges are on the path. That is quadratic in the choice; it is linearised by one variable for
each pair. Searches over single edges need bounds that are sums over edges: `lower` hands every pair's gain to its first
edge, as far as its partners can be on one path at all.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import Any, TypeAlias

import numpy as np
from scipy.sparse import csr_matrix

from shoal.errors import PlanError
from shoal.record import FrozenModel

Array: TypeAlias = np.ndarray[Any, Any]


class PairTerm(FrozenModel):
    """Two edges by their indices, and the damage that they do together beyond the sum of theirs: less, if negative."""

    first: int
    second: int
    damage: float


@dataclass(frozen=True, eq=False)
class PairTerms:
    """Terms as arrays: `ahead` is the edge that comes first in the chain, `behind` the other."""

    ahead: Array
    behind: Array
    damage: Array
    start: Array
    stop: Array

    def __len__(self) -> int:
        return len(self.damage)

    def on(self, edges: Sequence[int]) -> list[float]:
        """The terms of the pairs on a path."""
        if not len(self):
            return []
        chosen = np.zeros(len(self.start), dtype=bool)
        chosen[list(edges)] = True
        return [float(term) for term in self.damage[chosen[self.ahead] & chosen[self.behind]]]

    @cached_property
    def largest(self) -> float:
        """The size of the largest term."""
        return float(np.abs(self.damage).max(initial=0.0))

    @cached_property
    def lower(self) -> Array:
        """For each edge the least that its pairs with later edges can add to a path."""
        return -self._most(-self.damage)

    @cached_property
    def upper(self) -> Array:
        """For each edge the most that its pairs with later edges can add to a path."""
        return self._most(self.damage)

    def _most(self, terms: Array) -> Array:
        partners: dict[int, list[int]] = defaultdict(list)
        for index in np.flatnonzero(terms > 0):
            partners[int(self.ahead[index])].append(int(index))
        most = np.zeros(len(self.start))
        for edge, indices in partners.items():
            most[edge] = self._packed(indices, terms)
        return most

    def _packed(self, indices: Sequence[int], terms: Array) -> float:
        """The largest sum of terms whose later edges do not overlap."""
        best = {0: 0.0}
        reached = 0.0
        for index in sorted(indices, key=lambda index: (self.stop[self.behind[index]], index)):
            edge = self.behind[index]
            before = max(value for stop, value in best.items() if stop <= self.start[edge])
            reached = max(reached, before + float(terms[index]))
            best[int(self.stop[edge])] = reached
        return reached

    def among(self, alive: Array) -> Array:
        """The indices of the terms whose edges are both alive."""
        return np.flatnonzero(alive[self.ahead] & alive[self.behind])

    def links(self, terms: Array, index: Array) -> tuple[csr_matrix, Array]:
        """Rows over edges and pairs, and their upper bounds, that make each pair's variable the product of its edges'.

        Where a term is a loss, z >= x + y - 1; where it is a gain, z <= x and z <= y.

        Args:
            terms: the terms that have a variable.
            index: the edges that have one.
        """
        columns = np.full(len(self.start), -1)
        columns[index] = np.arange(len(index))
        entries: list[tuple[int, int, float]] = []
        bounds: list[float] = []
        for number, term in enumerate(terms):
            pair, edges = len(index) + number, (int(columns[self.ahead[term]]), int(columns[self.behind[term]]))
            if self.damage[term] > 0:
                entries += [(len(bounds), pair, -1.0), *((len(bounds), edge, 1.0) for edge in edges)]
                bounds.append(1.0)
            else:
                for edge in edges:
                    entries += [(len(bounds), pair, 1.0), (len(bounds), edge, -1.0)]
                    bounds.append(0.0)
        rows, places, signs = zip(*entries, strict=True)
        shape = len(bounds), len(index) + len(terms)
        return csr_matrix((signs, (rows, places)), shape=shape), np.array(bounds)


def pair_terms(pairs: Sequence[PairTerm], start: Array, stop: Array) -> PairTerms:
    """The terms as arrays; those of the same pair are added up, and those that no path can hold are left out.

    Args:
        pairs: in any order.
        start: of every edge.
        stop: of every edge.

    Raises:
        PlanError: an edge that does not exist, an edge with itself, or a term that is not finite.
    """
    total: dict[tuple[int, int], float] = {}
    for pair in pairs:
        if not (0 <= pair.first < len(start) and 0 <= pair.second < len(start)) or pair.first == pair.second:
            raise PlanError(
                f"a pair is of the edges {pair.first} and {pair.second}, expected two of 0..{len(start) - 1}",
                "Give indices into the same list of edges.",
            )
        if not isfinite(pair.damage):
            raise PlanError(
                f"the term of the edges {pair.first} and {pair.second} is {pair.damage}", "Give a finite number."
            )
        ahead, behind = sorted((pair.first, pair.second), key=lambda edge: (start[edge], edge))
        if stop[ahead] <= start[behind]:
            total[ahead, behind] = total.get((ahead, behind), 0.0) + pair.damage
    kept = {key: damage for key, damage in total.items() if damage != 0}
    edges = np.array([*kept], dtype=int).reshape(-1, 2)
    return PairTerms(edges[:, 0], edges[:, 1], np.array([*kept.values()], dtype=float), start, stop)
