"""The plans of the front, numbered as `--pick` counts them, and which of them is the network of the record."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from shoal.record import BlockRecord, FrontPoint, Planning, PlanRound, Record


@dataclass(frozen=True)
class Span:
    """Layers one after the other, and what kind of stand-in takes their place."""

    paths: list[str]
    kind: str


@dataclass(frozen=True)
class Plan:
    """One plan: its number, its share of the original's latency if there is one, and whether it was carried out."""

    number: int
    point: FrontPoint
    share: float | None
    chosen: bool

    @property
    def spans(self) -> list[Span]:
        """What is replaced; a kind nobody noted is just a stand-in."""
        named = zip_longest(self.point.replaced, self.point.kinds[: len(self.point.replaced)], fillvalue="")
        return [Span(list(paths), str(kind) or "stand-in") for paths, kind in named]

    @property
    def drawable(self) -> bool:
        """Whether it has a place on a plot."""
        return self.share is not None and math.isfinite(self.point.damage)


def plans(record: Record) -> list[Plan]:
    """Every plan of the front, in its order."""
    seen = record.planning
    if seen is None:
        return []
    chosen = _chosen(seen, record)
    return [
        Plan(number, point, share_of(point.latency_ms, seen), number == chosen)
        for number, point in enumerate(seen.front, 1)
    ]


def share_of(latency_ms: float, planning: Planning) -> float | None:
    """A latency as a fraction of the original's; None where either is no number."""
    if not (math.isfinite(latency_ms) and math.isfinite(planning.original_ms)) or planning.original_ms <= 0:
        return None
    return latency_ms / planning.original_ms


def chosen_round(planning: Planning) -> PlanRound | None:
    """The plan that was built and kept; None where no round says so."""
    return next((one for one in planning.rounds if one.chosen), None)


def _chosen(planning: Planning, record: Record) -> int | None:
    """The number of the plan that was carried out; None where it is not on the front."""
    if planning.picked is not None:
        return planning.picked
    made = chosen_round(planning)
    same = [(_distance(point, made), i) for i, point in enumerate(planning.front, 1) if _same(point, record)]
    return min(same)[1] if same else None


def _distance(point: FrontPoint, made: PlanRound | None) -> float:
    """Plans that differ only in the kinds of their stand-ins are told apart by what the tables said of them."""
    return 0.0 if made is None else abs(point.latency_ms - made.latency_guessed_ms)


def _same(point: FrontPoint, record: Record) -> bool:
    spans = {" + ".join(span) for span in point.replaced}
    return set(point.removed) == set(record.removed) and spans == set(record.replaced)


def fated(blocks: Sequence[BlockRecord], point: FrontPoint) -> list[BlockRecord]:
    """The blocks with the fate this plan has for them."""
    removed, replaced = set(point.removed), {path for span in point.replaced for path in span}
    return [
        block.model_copy(
            update={
                "fate": "removed" if block.path in removed else "replaced" if block.path in replaced else "kept",
            }
        )
        for block in blocks
    ]
