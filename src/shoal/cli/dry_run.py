"""`shoal compress --from DIR --dry-run`: the plan and the whole front by the tables, in seconds, nothing built."""

from rich.table import Table
from torch import nn

from shoal.cli.compress import CompressRequest
from shoal.cli.console import Session
from shoal.pipeline import PlanPrediction, predict_plan
from shoal.record import FrontPoint
from shoal.report import numbers
from shoal.sources import Data
from shoal.tasks import Task


def dry_run_plan(session: Session, request: CompressRequest, task: Task | None, model: nn.Module, data: Data) -> int:
    """Say which plan the tables promise for the goal; returns the exit code."""
    with session.progress() as progress:
        solved = predict_plan(
            model,
            data.calibration(augment=True),
            request.goal,
            validation=data.validation(augment=True),
            config=request.config(task=task, tables=request.tables),
            callbacks=progress,
        )
    if session.as_json:
        session.print_json(_document(request, solved))
        return 0
    session.console.print(_table(solved))
    if solved.plan is None:
        session.say("Which of them is within the drop, only measuring tells.")
    else:
        session.say(f"By the tables: {_words(solved.plan, solved)}.")
        for span, kind in zip(solved.plan.replaced, solved.plan.kinds, strict=True):
            session.say(f"  replaced by {kind}: {' + '.join(span)}")
        if solved.plan.removed:
            session.say(f"  removed: {', '.join(solved.plan.removed)}")
    session.say("Promises of single changes added up, in nats and ms; without --dry-run plans are built and measured.")
    return 0


def _document(request: CompressRequest, solved: PlanPrediction) -> dict[str, object]:
    return {
        "dry_run": True,
        "goal": request.goal.to_dict(),
        "original_ms": solved.original_ms,
        "latency_source": solved.source,
        "plan": solved.plan.model_dump() if solved.plan is not None else None,
        "front": [point.model_dump() for point in solved.front],
    }


def _table(solved: PlanPrediction) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("pick", "latency", "of the original's", "damage", "blocks left", "removed", "replaced"):
        table.add_column(heading, justify="right")
    for number, point in enumerate(solved.front, 1):
        away = sum(len(span) for span in point.replaced)
        table.add_row(
            str(number),
            numbers.milliseconds(point.latency_ms),
            f"{100 * point.latency_ms / solved.original_ms:.1f} %",
            numbers.significant(point.damage),
            str(point.depth),
            str(len(point.removed)),
            f"{away} by {len(point.replaced)}",
        )
    return table


def _words(plan: FrontPoint, solved: PlanPrediction) -> str:
    share = 100 * plan.latency_ms / solved.original_ms
    return (
        f"{numbers.milliseconds(plan.latency_ms)}, {share:.1f} % of the original's latency; damage "
        f"{numbers.significant(plan.damage)}; {plan.depth} blocks left"
    )
