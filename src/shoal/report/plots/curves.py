"""Line plots: the greedy removal step by step, a recovery over its steps, a training over its epochs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.record import Comparison, Interval, Recovery, RemovalStep
from shoal.report import metrics, numbers
from shoal.report.damage import KL, Damage
from shoal.report.plots.figure import WIDTHS, Plot
from shoal.training_record import EpochRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZES = tuple(WIDTHS)
_REMOVAL_WIDTHS = {"wide": 480.0, "narrow": 340.0}
_LEFT, _RIGHT, _TOP, _GAP, _FOOT = 62.0, 14.0, 46.0, 48.0, 40.0

Series = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class RemovalPoint:
    """One step: how many blocks were removed, a value with its interval, and whether the step was kept."""

    x: int
    value: float
    low: float
    high: float
    name: str
    kept: bool


def divergences(steps: Sequence[RemovalStep], removed: Sequence[str]) -> list[RemovalPoint]:
    """The divergence after every step."""
    return [
        RemovalPoint(i, step.kl, *step.kl_interval, step.removed, step.removed in removed)
        for i, step in enumerate(steps, 1)
        if math.isfinite(step.kl) and all(map(math.isfinite, step.kl_interval))
    ]


def drops(steps: Sequence[RemovalStep], removed: Sequence[str]) -> list[RemovalPoint]:
    """The drop on validation, of the task's metric or in points of top-1, after every step that has one."""
    points = []
    for i, step in enumerate(steps, 1):
        lost = _drop(step.validation) if step.validation is not None else None
        drop, (low, high) = lost or (math.nan, (math.nan, math.nan))
        if all(map(math.isfinite, (drop, low, high))):
            points.append(RemovalPoint(i, drop, low, high, step.removed, step.removed in removed))
    return points


def _drop(split: Comparison) -> tuple[float, Interval] | None:
    metric = metrics.deciding(split)
    if metric is not None:
        return metrics.loss(metric)
    if split.top1_drop is None:
        return None
    low, high = split.top1_drop_interval or (split.top1_drop, split.top1_drop)
    return 100 * split.top1_drop, (100 * low, 100 * high)


def removal_plot(
    points: Sequence[RemovalPoint], title: str, measure: Damage, size: str, limit: float | None = None
) -> str:
    """The greedy removal as a line with intervals; empty without points.

    Args:
        points: in order of x.
        title: of the plot.
        measure: what the values are, and their unit.
        size: of the page, one of `SIZES`.
        limit: a value not to be exceeded, drawn as a dashed line.
    """
    if not points:
        return ""
    values = [0.0, *(end for point in points for end in (point.low, point.high)), *([] if limit is None else [limit])]
    last = max(point.x for point in points)
    with Plot(_REMOVAL_WIDTHS[size], 240.0) as drawing:
        axes = drawing.axes(_LEFT, _TOP, drawing.width - _RIGHT, drawing.height - _FOOT)
        drawing.text(0, 16, title, "strong")
        dashed = "" if limit is None else f"; dashed: limit {numbers.tick(limit)}"
        drawing.text(0, 33, f"{measure.axis}{dashed}", "soft")
        drawing.scale(axes, "y", values, logarithmic=False)
        _count_axis(drawing, axes, 0, last, "blocks removed")
        drawing.add(drawing.line(axes, [(0, 0), (last, 0)], "zero"))
        if limit is not None:
            drawing.add(drawing.line(axes, [(0, limit), (last, limit)], "limit"))
        drawing.add(drawing.line(axes, [(point.x, point.value) for point in points], "curve"))
        for point in points:
            whisker = drawing.line(axes, [(point.x, point.low), (point.x, point.high)], "whisker")
            dot = drawing.marker(axes, point.x, point.value, 8, "dot" if point.kept else "dot back")
            drawing.add(whisker, dot, title=_removal_title(point, measure))
        ident = f"removal-{'limit' if limit is not None else title.split()[0].lower()}-{size}"
        return drawing.svg(ident, title, _describe_removal(points, measure))


def _removal_title(point: RemovalPoint, measure: Damage) -> str:
    interval = numbers.significant_interval((point.low, point.high))
    undone = "" if point.kept else ", undone"
    return f"{point.x}. {point.name}{undone}\n{measure.figure(point.value)} ({interval})"


def _describe_removal(points: Sequence[RemovalPoint], measure: Damage) -> str:
    first, last = (f"{measure.figure(p.value)} after {p.x} removed" for p in (points[0], points[-1]))
    return f"From {first} to {last}."


def _count_axis(drawing: Plot, axes: "Axes", first: int, last: int, name: str) -> None:
    """The x axis over a count, with its name below; an axis without a name has no labels."""
    drawing.count_scale(axes, first, last, labels=bool(name))
    _, bottom = drawing.pixel(axes, first, axes.get_ylim()[0])
    drawing.text((_LEFT + drawing.width - _RIGHT) / 2, bottom + 33, name, "tick", "center")


def recovery_plot(recovery: Recovery, size: str, damage: Damage = KL) -> str:
    """Divergence, and below it the training loss if there is one; empty without an evaluation after the first step.

    Args:
        recovery: whose curve is drawn; evaluations without a number are left out.
        size: of the page, one of `SIZES`.
        damage: what the divergence is.
    """
    evaluations, losses = recovery_series(recovery)
    before, after = recovery.divergence_before, recovery.divergence_after
    if not any(step for step, _ in evaluations) or not all(map(math.isfinite, (before, after))):
        return ""
    last = max(recovery.steps, round(evaluations[-1][0]))
    tall, low = 190.0, 80.0
    height = _TOP + tall + (_GAP + low if losses else 0) + _FOOT
    with Plot(WIDTHS[size], height) as drawing:
        right = drawing.width - _RIGHT
        top = drawing.axes(_LEFT, _TOP, right, _TOP + tall)
        drawing.text(0, 16, "Divergence on validation", "strong")
        drawing.text(0, 33, f"{damage.axis}, logarithmic", "soft")
        drawing.scale(top, "y", [before, after, *(value for _, value in evaluations)], logarithmic=True)
        _count_axis(drawing, top, 0, last, "" if losses else "steps")
        drawing.frame(top, "bottom")
        drawing.add(drawing.line(top, [(0, before), (last, before)], "limit"))
        drawing.add(drawing.line(top, evaluations, "curve"))
        for step, value in evaluations:
            title = f"Step {numbers.count(round(step))}\n{damage.figure(value)}"
            drawing.add(drawing.marker(top, step, value, 5, "dot"), title=title)
        _final_marker(drawing, top, recovery, damage)
        if losses:
            bottom = drawing.axes(_LEFT, _TOP + tall + _GAP, right, _TOP + tall + _GAP + low)
            drawing.text(0, _TOP + tall + _GAP - 12, "Training loss, logarithmic", "soft")
            drawing.scale(bottom, "y", [value for _, value in losses], logarithmic=True)
            _count_axis(drawing, bottom, 0, last, "steps")
            drawing.frame(bottom, "bottom")
            drawing.add(drawing.line(bottom, losses, "curve"))
        return drawing.svg(f"recovery-{size}", "Divergence on validation by step", describe_recovery(recovery, damage))


def _final_marker(drawing: Plot, axes: "Axes", recovery: Recovery, damage: Damage) -> None:
    title = f"Kept: step {numbers.count(recovery.kept_step)}\n{damage.figure(recovery.divergence_after)}"
    drawing.add(*drawing.final_marker(axes, recovery.kept_step, recovery.divergence_after), title=title)


def recovery_series(recovery: Recovery) -> tuple[Series, Series]:
    """Divergence and loss by step, of the evaluations that have a number."""
    divergence = [(look.step, look.divergence) for look in recovery.curve]
    loss = [(look.step, look.loss) for look in recovery.curve]
    return _numeric(divergence), _numeric(loss)


def _numeric(series: Sequence[tuple[int, float | None]]) -> Series:
    return [(step, value) for step, value in series if value is not None and math.isfinite(value) and value >= 0]


def describe_recovery(recovery: Recovery, damage: Damage = KL) -> str:
    """The text alternative of the plot."""
    evaluations, losses = recovery_series(recovery)
    step, highest = max(evaluations, key=lambda evaluation: evaluation[1])
    peak = f", at most {numbers.significant(highest)} at step {numbers.count(round(step))}" if step else ""
    loss = ""
    if losses:
        first, last = (numbers.significant(value) for _, value in (losses[0], losses[-1]))
        loss = f" Training loss from {first} to {last}."
    return (
        f"Divergence on validation from {damage.figure(recovery.divergence_before)} before recovery{peak}, to "
        f"{damage.figure(recovery.divergence_after)} of the weights that were kept, those of step "
        f"{numbers.count(recovery.kept_step)}; {numbers.count(recovery.steps)} steps.{loss}"
    )


def recovery_legend() -> list[tuple[str, str]]:
    """Every sign, as its CSS classes, with its meaning."""
    return [
        ("dot small line", "the network in training, a dot for each evaluation"),
        ("line dashed", "before recovery"),
        ("built ring", "the weights that were kept"),
    ]


def training_plot(rows: Sequence[EpochRow], size: str) -> str:
    """Errors above, active blocks and learning rate below; empty without epochs.

    Args:
        rows: the epochs in order.
        size: of the page, one of `SIZES`.
    """
    if not rows:
        return ""
    errors = [(row.epoch, 100 * row.train_error) for row in rows]
    tests = [(row.epoch, 100 * row.test_error) for row in rows if row.test_error is not None]
    blocks = [(row.epoch, float(row.alive - len(row.taken_out))) for row in rows]
    rates = [(row.epoch, row.rate) for row in rows]
    panels: list[tuple[str, float, Series, Series, bool]] = [
        ("Error, per cent, logarithmic: line training (augmented), dots test", 190.0, errors, tests, True),
        ("Active blocks; vertical lines: epochs in which gates closed", 90.0, blocks, [(1, 0.0)], False),
        ("Learning rate, logarithmic", 90.0, rates, [], True),
    ]
    height = sum(tall for _, tall, *_ in panels) + 40 + 44 * (len(panels) - 1) + _FOOT
    with Plot(WIDTHS[size], height) as drawing:
        top = 40.0
        for number, (title, tall, line, others, logarithmic) in enumerate(panels, 1):
            axes = drawing.axes(_LEFT, top, drawing.width - _RIGHT, top + tall)
            drawing.text(_LEFT, top - 10, title, "soft")
            values = [value for _, value in (*line, *others)]
            drawing.scale(axes, "y", values, logarithmic=logarithmic)
            _count_axis(drawing, axes, 1, rows[-1].epoch, "epoch" if number == len(panels) else "")
            for row in rows:
                if row.lost:
                    drawing.add(drawing.line(axes, [(row.epoch, end) for end in axes.get_ylim()], "limit"))
            drawing.add(drawing.line(axes, _finite(line), "curve"))
            if number == 1:
                _test_errors(drawing, axes, rows)
            top += tall + 44
        return drawing.svg(f"curves-{size}", "Error, blocks and learning rate by epoch", describe_training(rows))


def _finite(series: Series) -> Series:
    return [(x, value) for x, value in series if math.isfinite(value)] or [(1.0, 0.0)]


def _test_errors(drawing: Plot, axes: "Axes", rows: Sequence[EpochRow]) -> None:
    for row in rows:
        if row.test_error is not None and math.isfinite(row.test_error):
            title = f"epoch {row.epoch}: test error {numbers.percent(row.test_error)}, {row.alive} active blocks"
            drawing.add(drawing.marker(axes, row.epoch, 100 * row.test_error, 5, "dot back"), title=title)


def describe_training(rows: Sequence[EpochRow]) -> str:
    """The text alternative of the plot."""
    first, last = rows[0], rows[-1]
    test = next((row.test_error for row in reversed(rows) if row.test_error is not None), None)
    on_test = f", on test {numbers.percent(test)}" if test is not None else ""
    pruned = [f"{len(row.taken_out)} after epoch {row.epoch}" for row in rows if row.taken_out]
    removal = f" Blocks pruned: {', '.join(pruned)}." if pruned else " No block was pruned."
    return (
        f"Training error from {numbers.percent(first.train_error)} in epoch 1 to {numbers.percent(last.train_error)} "
        f"in epoch {last.epoch}{on_test}.{removal}"
    )
