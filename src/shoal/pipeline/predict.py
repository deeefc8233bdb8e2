"""Solve for a goal by the tables alone, without building or measuring what comes out."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from shoal.batches import device_of
from shoal.errors import naming_memory_shortage
from shoal.pipeline.config import CompressConfig
from shoal.pipeline.context import build_context, materialize
from shoal.pipeline.goals import Budget, Goal, ParetoPoint
from shoal.pipeline.planner import build_planner
from shoal.progress import Callbacks, ProgressCallback, as_callbacks
from shoal.record import FrontPoint


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
    config: CompressConfig | None = None,
    callbacks: Callbacks | ProgressCallback | None = None,
) -> PlanPrediction:
    """The plan that compress() would build first, and the whole front, by the tables.

    Takes seconds where the folder `config.tables` holds them already; makes them first where it does not. Arguments are
    those of compress().

    Raises:
        NotReachedError: no plan meets the goal, by the tables.
        UsageError: no such point on the front.
        And what making the tables may raise, see compress().
    """
    config, callbacks = config or CompressConfig(), as_callbacks(callbacks)
    samples, judged = materialize(calibration, validation, config.measure, device_of(model))
    context = build_context(
        model, samples, judged, goal, config.measure, config.damage, callbacks.progress, config.output
    )
    planner = build_planner(context, config.latency_from, Path(config.tables) if config.tables is not None else None)
    plan = planner.guessed(goal) if isinstance(goal, Budget | ParetoPoint) else None
    return PlanPrediction(plan, planner.points(), planner.tables.whole.latency_ms, planner.clock.source)
