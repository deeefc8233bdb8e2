"""Public tasks as table rows that the page and the terminal share."""

import math

from shoal.record import TaskEvaluation, TaskScore
from shoal.report import numbers
from shoal.report.comparison import Cell, ComparisonRow


def task_rows(evaluation: TaskEvaluation) -> list[ComparisonRow]:
    """One row for each task and metric: both networks, and the drop with its paired 95 % interval."""
    return [
        ComparisonRow(
            f"{score.task}, {score.metric}",
            f"n = {numbers.count(score.n)}; {score.method}, 95 %",
            Cell(numbers.significant(score.original, 4)),
            Cell(numbers.significant(score.compressed, 4)),
            _change(score),
        )
        for score in evaluation.scores
    ]


def _change(score: TaskScore) -> str:
    if score.method.startswith("Tango"):
        return f"{numbers.points(score.drop)} ({numbers.points_interval(score.drop_interval)})"
    if not all(map(math.isfinite, score.drop_interval)):
        return numbers.lost(score.drop)
    return f"{numbers.lost(score.drop)} ({numbers.lost_interval(score.drop_interval)})"
