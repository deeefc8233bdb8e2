"""Solve for a goal by the tables alone, without building or measuring what comes out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from shoal.batches import device_of
from shoal.errors import naming_memory_shortage
from shoal.pipeline.by_plan import planner_of
from shoal.pipeline.choose import Goal, Progress
from shoal.pipeline.told import Settings, samples, tell
from shoal.record import FrontPoint
from shoal.scanning import Damage


@dataclass(frozen=True)
class Solved:
    """What the tables promise; nothing of it was measured on a network that was built.

    `plan` is None for a goal that only measuring can decide (a drop). Times are of `source`.
    """

    plan: FrontPoint | None
    front: list[FrontPoint]
    original_ms: float
    source: str


@naming_memory_shortage()
def solve(
    model: nn.Module,
    calibration: Iterable[Any],
    goal: Goal,
    *,
    validation: Iterable[Any] | None = None,
    tables: str | Path | None = None,
    latency_from: str | Path | None = None,
    damage: Damage | None = None,
    output: str | Sequence[str] | None = None,
    settings: Settings | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Solved:
    """The plan that compress() would build first, and the whole front, by the tables.

    Takes seconds where `tables` holds them already; makes them first where it does not. Arguments are those of
    compress().

    Raises:
        NotReachedError: no plan meets the goal, by the tables.
        UsageError: no such point on the front.
        And what making the tables may raise, see compress().
    """
    settings = settings or Settings()
    chosen_on, judged_on = samples(calibration, validation, settings, device_of(model))
    told = tell(model, chosen_on, judged_on, goal, settings, damage, progress, output)
    planner = planner_of(told, latency_from, Path(tables) if tables is not None else None)
    plan = None if goal.max_drop is not None else planner.guessed(goal.target, goal.pick)
    return Solved(plan, planner.points(), planner.tables.whole.latency_ms, planner.clock.source)
