"""Plans that only remove, by rules that look at no damage: what everybody tries first, and any plan has to beat.

Each removes as few blocks as its rule needs to meet the budget: the last k (arXiv:2403.17887 finds deep layers idle),
k spread evenly, k with the least block influence, one by one (arXiv:2403.03853) or in a row, or those that the solver
takes where nothing may be replaced, for the least damage or for the most parameters that remain (blocks that change the
shape stay, where they can). Before recovery they
are far behind; after it they often lead, the more so the deeper the cut.
"""

import math
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from shoal.batches import Batch
from shoal.blocks import BlockGraph
from shoal.errors import ShoalError
from shoal.pipeline.candidate_table import CandidateTable
from shoal.plan import Edge, Path, ResourceLimits, solve
from shoal.plan.solver import OBJECTIVES, TOLERANCE, build_edge_graph
from shoal.record import PlanOrigin
from shoal.scanning.scores.collect import block_scores

_MAX_SAMPLES, _BATCH = 64, 16  # that block influence is measured on
_UNKNOWN_INFLUENCE = 1.0  # of a block that changes the shape of its input: as if it turned the stream by 90 degrees
_TIE = 1e-4  # what the largest damage counts for, as a share of all parameters

Positions = Sequence[int]


def last(count: int, of: int) -> Iterator[Positions]:
    """The last `count` of so many."""
    yield range(of - count, of)


def spread(count: int, of: int) -> Iterator[Positions]:
    """`count` of so many, spread evenly."""
    yield [int((index + 0.5) * of / count) for index in range(count)]


def in_a_row(count: int, influences: Sequence[float]) -> Iterator[Positions]:
    """`count` neighbours, those with the least influence first."""
    starts = range(len(influences) - count + 1)
    for start in sorted(starts, key=lambda start: (math.fsum(influences[start : start + count]), -start)):
        yield range(start, start + count)


def lowest(count: int, influences: Sequence[float]) -> Iterator[Positions]:
    """`count` with the least influence, wherever they are; of equal ones the later."""
    yield sorted(range(len(influences)), key=lambda index: (influences[index], -index))[:count]


@dataclass(frozen=True, eq=False)
class Baselines:
    """The plans of removals alone of one network.

    Args:
        graph: of the original.
        tables: of the original.
        samples: mini-batches for block influence.
    """

    graph: BlockGraph
    tables: CandidateTable
    samples: Sequence[Batch]

    @cached_property
    def removals(self) -> list[int]:
        """The edges that remove a whole block, in the order of the chain; what cannot be removed stays."""
        units = self.tables.units_by_edge
        edges = [index for index, edge in enumerate(self.edges) if edge.action == "remove" and index not in units]
        return sorted(edges, key=lambda index: self.edges[index].start)

    @property
    def edges(self) -> Sequence[Edge]:
        """Every change that a plan may contain."""
        return self.tables.edges

    @cached_property
    def rules(self) -> Mapping[PlanOrigin, Callable[[int], Iterator[Positions]]]:
        """For each rule the positions, among the blocks that can be removed, that it tries for a number of blocks."""
        total = len(self.removals)
        return {
            "last-k": lambda count: last(count, total),
            "uniform": lambda count: spread(count, total),
            "block influence": lambda count: in_a_row(count, self.influences),
            "lowest influence": lambda count: lowest(count, self.influences),
        }

    @cached_property
    def influences(self) -> list[float]:
        """Of each block that can be removed; it is measured when it is first asked for."""
        batches = [part for batch in self.samples for part in _parts(batch)][: _MAX_SAMPLES // _BATCH]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about gradients, which this score does not need
                scores = block_scores(self.graph, batches)
        except ShoalError:  # a network whose stream cannot be followed: all windows are alike, and the last is taken
            scores = {}
        paths = [self.tables.segments.paths[self.edges[index].start] for index in self.removals]
        return [scores.get(path, {}).get("block_influence", _UNKNOWN_INFLUENCE) for path in paths]

    def path(self, origin: PlanOrigin, limits: ResourceLimits) -> Path | None:
        """The plan of one rule that removes the fewest blocks within the limits; None where not even all suffice."""
        if origin == "removals only":
            return self._solved([edge.damage for edge in self.edges], limits)
        if origin == "most parameters":
            return self._solved(self._lost_parameters, limits, self._shape_changes) or self._solved(
                self._lost_parameters, limits
            )
        for count in range(1, len(self.removals) + 1):
            for positions in self.rules[origin](count):
                path = self._without([self.removals[position] for position in positions])
                if _is_within(path, limits):
                    return path
        return None

    def _without(self, removals: Sequence[int]) -> Path:
        """The path that takes these edges, and keeps everything else."""
        removed = {self.edges[index].start: index for index in removals}
        kept = {edge.start: index for index, edge in enumerate(self.edges) if edge.action == "keep"}
        edges, position = [], 0
        while position < len(self.tables.segments.paths):
            edges.append(removed.get(position, kept[position]))
            position = self.edges[edges[-1]].stop
        return build_edge_graph(self.edges, len(self.tables.segments.paths)).path(edges)

    @cached_property
    def _lost_parameters(self) -> list[float]:
        """What each edge loses of the parameters, as a share of all; of equal ones the damage decides."""
        kept = {edge.start: edge.params for edge in self.edges if edge.action == "keep"}
        whole = max(1.0, math.fsum(kept.values()))
        most = max(1e-12, *(edge.damage for edge in self.edges if math.isfinite(edge.damage)))
        return [
            max(0.0, math.fsum(kept[at] for at in range(edge.start, edge.stop)) - edge.params) / whole
            + _TIE * edge.damage / most
            for edge in self.edges
        ]

    @cached_property
    def _shape_changes(self) -> frozenset[int]:
        """The edges that remove a block which changes the shape of its input."""
        changing = {at for at, part in enumerate(self.tables.segments.segments) if part.in_shape != part.out_shape}
        return frozenset(
            index
            for index, edge in enumerate(self.edges)
            if edge.action == "remove" and changing & set(range(edge.start, edge.stop))
        )

    def _solved(self, damages: Sequence[float], limits: ResourceLimits, without: Collection[int] = ()) -> Path | None:
        """The solver's plan of the least sum of these, where nothing may be replaced, nor these edges be used."""
        indices = [index for index, edge in enumerate(self.edges) if edge.action != "replace" and index not in without]
        edges = [self.edges[index].model_copy(update={"damage": damages[index]}) for index in indices]
        length = len(self.tables.segments.paths)
        path = solve(edges, length, limits)
        return path and build_edge_graph(self.edges, length).path([indices[index] for index in path.edges])


BASELINES: tuple[PlanOrigin, ...] = (
    "most parameters",
    "removals only",
    "lowest influence",
    "block influence",
    "last-k",
    "uniform",
)


def _is_within(path: Path, limits: ResourceLimits) -> bool:
    bounds = {name: getattr(limits, name) for name in OBJECTIVES}
    totals = [(getattr(path, name), bound) for name, bound in bounds.items() if bound is not None]
    totals += zip(path.latencies, limits.latencies, strict=True) if limits.latencies else []
    return all(total <= bound * (1 + TOLERANCE) for total, bound in totals)


def _parts(batch: Batch) -> Iterator[Batch]:
    """A mini-batch in small parts: a score keeps the activations of a part for its backward pass."""
    while batch.size > _BATCH:
        yield batch.take(_BATCH)
        batch = batch.rest(_BATCH)
    yield batch
