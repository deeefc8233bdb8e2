"""Plans that only remove, by rules that look at no damage: what everybody tries first, and any plan has to beat.

Each removes as few blocks as its rule needs to meet the budget: the last k (arXiv:2403.17887 finds deep layers idle),
k spread evenly, k in a row with the least block influence (arXiv:2403.03853), or those that the solver takes where
nothing may be replaced. Before recovery they are far behind; after it not always.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
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
            return self._least_damage(limits)
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

    def _least_damage(self, limits: ResourceLimits) -> Path | None:
        """The solver's plan where nothing may be replaced."""
        indices = [index for index, edge in enumerate(self.edges) if edge.action != "replace"]
        path = solve([self.edges[index] for index in indices], len(self.tables.segments.paths), limits)
        return path and path.model_copy(update={"edges": tuple(indices[index] for index in path.edges)})


BASELINES: tuple[PlanOrigin, ...] = ("removals only", "block influence", "last-k", "uniform")


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
