"""Solve for a goal by the tables alone, without building or measuring what comes out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from shoal.batches import device_of
from shoal.errors import naming_memory_shortage
from shoal.pipeline.context import MeasureConfig, build_context, materialize
from shoal.pipeline.goals import Budget, Goal, ParetoPoint
from shoal.pipeline.greedy import Progress
from shoal.pipeline.planner import build_planner
from shoal.record import FrontPoint
from shoal.scanning import DamageFunction


@dataclass(frozen=True)
class PlanPrediction:
    """What the tables promise; nothing of it was measured on a network that was built.

    `plan` is None for a goal that only measuring can decide (a drop). Times are of `source`.
    """

    plan: FrontPoint | None
    front: list[FrontPoint]
    original_ms: float
    source: str


@naming_memory_shortage()
def predict_plan(
    model: nn.Module,
    calibration: Iterable[Any],
    goal: Goal,
    *,
    validation: Iterable[Any] | None = None,
    tables: str | Path | None = None,
    latency_from: str | Path | None = None,
    damage: DamageFunction | None = None,
    output: str | Sequence[str] | None = None,
    settings: MeasureConfig | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> PlanPrediction:
    """The plan that compress() would build first, and the whole front, by the tables.

    Takes seconds where `tables` holds them already; makes them first where it does not. Arguments are those of
    compress().

    Raises:
        NotReachedError: no plan meets the goal, by the tables.
        UsageError: no such point on the front.
        And what making the tables may raise, see compress().
    """
    settings = settings or MeasureConfig()
    chosen_on, judged_on = materialize(calibration, validation, settings, device_of(model))
    told = build_context(model, chosen_on, judged_on, goal, settings, damage, progress, output)
    planner = build_planner(told, latency_from, Path(tables) if tables is not None else None)
    plan = planner.guessed(goal) if isinstance(goal, Budget | ParetoPoint) else None
    return PlanPrediction(plan, planner.points(), planner.tables.whole.latency_ms, planner.clock.source)
