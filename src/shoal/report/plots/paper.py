"""The three pictures of the epsilon-ResNet paper beside those of a run: when blocks go, where they go, what it costs.

The paper (arXiv:1804.01661) has no table. Its numbers for CIFAR-10 were read off its figures 6, 9 and 10, to about 0.03
points of error and half a per cent of the blocks.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from shoal.record import Interval
from shoal.report import numbers
from shoal.report.plots.figure import WIDTHS, Plot
from shoal.training_record import BaselineRun, TrainRecord

Points = Sequence[tuple[float, float]]

_LEFT, _RIGHT, _TOP, _PANEL, _GAP, _COLUMN = 44.0, 10.0, 64.0, 120.0, 74.0, 40.0


@dataclass(frozen=True)
class PublishedRun:
    """One network of the paper on CIFAR-10: blocks of each of its three groups, those kept, errors in per cent."""

    depth: int
    group: int
    kept: tuple[int, int, int]
    lost: float
    error: float
    error_side: float


# Error and share lost from figure 6, blocks kept from figure 10 (the two disagree for depth 200: 48 and 58 % lost).
PUBLISHED = (
    PublishedRun(110, 18, (18, 16, 8), 22.2, 5.24, 5.84),
    PublishedRun(200, 33, (18, 15, 8), 48.4, 5.46, 5.66),
    PublishedRun(500, 83, (38, 17, 7), 75.1, 5.21, 5.36),
    PublishedRun(752, 125, (36, 22, 6), 82.9, 5.22, 5.18),
)
# Depth 752, figure 9: epochs of 1000, and the share of blocks lost by then.
PUBLISHED_TIMING: Points = ((0, 0), (15, 0), (128, 60), (275, 82.9), (1000, 82.9))


@dataclass(frozen=True)
class Picture:
    """One picture twice: as published, and of this run.

    Args:
        title: what is up the axis.
        across: what is along it.
        published: lines of points.
        measured: likewise; empty where this run has nothing to show.
        interval: of the only measured point, or None.
        lines: whether points are joined.
    """

    title: str
    across: str
    published: Sequence[Points]
    measured: Points
    interval: Interval | None = None
    lines: bool = True


def pictures(record: TrainRecord) -> list[Picture]:
    """The three of them."""
    reference = _reference(record)
    drop = reference.comparison.top1_drop if reference is not None else None
    interval = reference.comparison.top1_drop_interval if reference is not None else None
    return [
        Picture("Blocks lost, %", "% of the epochs", [[(x / 10, y) for x, y in PUBLISHED_TIMING]], timing(record)),
        Picture(
            "Blocks kept, %",
            "stage",
            [[(i, 100 * kept / run.group) for i, kept in enumerate(run.kept, 1)] for run in PUBLISHED],
            kept_by_stage(record),
        ),
        Picture(
            "Error, points",
            "% of blocks lost",
            [[(run.lost, run.error - run.error_side) for run in PUBLISHED]],
            [(100 * record.share_lost, 100 * drop)] if drop is not None else [],
            (100 * interval[0], 100 * interval[1]) if interval is not None else None,
            lines=False,
        ),
    ]


def timing(record: TrainRecord) -> Points:
    """Per cent of the blocks lost by the end of each epoch, over per cent of the epochs."""
    points, lost, total = [(0.0, 0.0)], 0, max(1, len(record.blocks))
    for number, row in enumerate(record.rows, 1):
        points.append((100 * number / len(record.rows), 100 * lost / total))
        lost += len(row.taken_out)
        points.append((100 * number / len(record.rows), 100 * lost / total))
    return points


def kept_by_stage(record: TrainRecord) -> Points:
    """Per cent of the blocks that were kept, for each stage."""
    kept: dict[int, list[bool]] = defaultdict(list)
    lost = {block.path for block in record.lost}
    for block in record.blocks:
        kept[block.stage].append(block.path not in lost)
    return [(stage, 100 * sum(flags) / len(flags)) for stage, flags in sorted(kept.items())]


def _reference(record: TrainRecord) -> BaselineRun | None:
    """The run without gates that this one was compared with, with side supervision if there is one."""
    plain = {run.name: run for run in record.beside}
    return plain.get("plain-side") or plain.get("plain")


def paper_plot(record: TrainRecord, size: str) -> str:
    """Three pictures, as published on the left, of this run on the right, on the same scales; empty without gates.

    Args:
        record: of the run.
        size: of the page, one of `WIDTHS`.
    """
    if not record.gated or not record.rows:
        return ""
    shown = pictures(record)
    with Plot(WIDTHS[size], _TOP + len(shown) * _PANEL + (len(shown) - 1) * _GAP + _GAP - 20) as drawing:
        half = (drawing.width - _COLUMN) / 2
        for column, name in enumerate(("Paper, CIFAR-10", "This run")):
            drawing.text(column * (half + _COLUMN), 16, name, "strong")
        for number, picture in enumerate(shown):
            top = _TOP + number * (_PANEL + _GAP)
            _panel(drawing, picture, picture.published, (_LEFT, top, half - _RIGHT), mine=False)
            right = half + _COLUMN
            _panel(drawing, picture, [picture.measured], (right + _LEFT, top, drawing.width - _RIGHT), mine=True)
        return drawing.svg(f"paper-{size}", "The paper's pictures and those of this run", describe(record))


def _panel(
    drawing: Plot, picture: Picture, series: Sequence[Points], place: tuple[float, float, float], *, mine: bool
) -> None:
    """One picture at (left, top, right), on the scales of both."""
    left, top, right = place
    axes = drawing.axes(left, top, right, top + _PANEL)
    drawing.text(left - _LEFT, top - 12, picture.title, "soft")
    every = [point for line in (*picture.published, picture.measured) for point in line]
    ends = picture.interval or ()
    drawing.scale(axes, "y", [0.0, *(y for _, y in every), *ends], logarithmic=False)
    drawing.scale(axes, "x", [x for x, _ in every], logarithmic=False)
    drawing.text((left + right) / 2, top + _PANEL + 34, picture.across, "tick", "center")
    for line in series:
        if picture.lines and line:
            drawing.add(drawing.line(axes, line, "curve"))
        for x, y in line if not (mine and len(line) > 12) else ():
            title = f"{picture.across}: {numbers.significant(x)}\n{picture.title}: {numbers.significant(y)}"
            drawing.add(drawing.marker(axes, x, y, 6, "dot"), title=title)
        if mine and picture.interval is not None and line:
            drawing.add(drawing.line(axes, [(line[0][0], end) for end in picture.interval], "whisker"))
    if mine and not picture.measured:
        drawing.text((left + right) / 2, top + _PANEL / 2, "not compared", "soft", "center")


def describe(record: TrainRecord) -> str:
    """The text alternative: what the paper found, and what this run did."""
    stages = ", ".join(f"{numbers.significant(kept, 2)} % of stage {stage}" for stage, kept in kept_by_stage(record))
    reference = _reference(record)
    error = "not compared with a plain network"
    if reference is not None:
        error = (
            f"error {numbers.points(reference.comparison.top1_drop)} against {reference.name} "
            f"({numbers.points_interval(reference.comparison.top1_drop_interval)})"
        )
    epochs = [block.epoch for block in record.lost]
    when = f"between epochs {min(epochs)} and {max(epochs)} of {len(record.rows)}" if epochs else "in no epoch"
    return (
        "Paper, CIFAR-10: at depth 752, 60 % of the blocks were lost by epoch 128 of 1000 and 83 % by 275; the last "
        "group lost most; error 0.6 points less than plain with side supervision at depth 110, equal at 752. "
        f"This run: {len(record.lost)} of {len(record.blocks)} blocks lost {when}; kept {stages}; {error}."
    )
