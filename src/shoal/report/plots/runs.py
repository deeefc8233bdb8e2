"""Loss against speed, a numbered point with its interval for each run, which links to the run's own page."""

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from shoal.report import numbers
from shoal.report.plots.figure import WIDTHS, Plot

if TYPE_CHECKING:
    from shoal.report.runs import RunSummary

_HEIGHTS = {"wide": 340.0, "narrow": 300.0}
SIZES = tuple(_HEIGHTS)
_LEFT, _RIGHT, _TOP, _BOTTOM = 60.0, 26.0, 24.0, 52.0


def plot(runs: Sequence["RunSummary"], best: Collection[str], size: str) -> str:
    """The runs as one SVG; empty if none was timed.

    Args:
        runs: numbered in this order from 1.
        best: the names of those on the front, which a line joins.
        size: of the page, a key of `SIZES`.
    """
    shown = [(i, run) for i, run in enumerate(runs, 1) if run.speedup is not None and math.isfinite(run.loss)]
    if not shown:
        return ""
    places = [(run.speedup or 1.0, run.loss) for _, run in shown]
    ends = [end for _, run in shown for end in run.loss_interval if math.isfinite(end)]
    with Plot(WIDTHS[size], _HEIGHTS[size]) as drawing:
        axes = drawing.axes(_LEFT, _TOP, drawing.width - _RIGHT, drawing.height - _BOTTOM)
        drawing.scale(axes, "x", [speed for speed, _ in places], logarithmic=False, nticks=5)
        drawing.scale(axes, "y", [*ends, *(loss for _, loss in places)], logarithmic=False, nticks=5)
        drawing.frame(axes, "bottom", "left")
        drawing.text((_LEFT + drawing.width - _RIGHT) / 2, drawing.height - 10, "times faster", "tick", "center")
        unit = f"loss, {shown[0][1].unit}"
        drawing.text(12, (_TOP + drawing.height - _BOTTOM) / 2, unit, "tick", "center", rotation=90)
        front = sorted((run.speedup or 1.0, run.loss) for _, run in shown if run.name in best)
        drawing.add(drawing.line(axes, front, "front-line"))
        for _, run in shown:
            low, high = run.loss_interval
            if math.isfinite(low) and math.isfinite(high):
                drawing.add(drawing.line(axes, [(run.speedup or 1.0, low), (run.speedup or 1.0, high)], "whisker"))
        for i, run in shown:
            mark = drawing.marker(axes, run.speedup or 1.0, run.loss, 10, "mark")
            title = (
                f"{i}: {run.name}, {numbers.ratio(run.speedup or 1.0)} × at a loss of {numbers.significant(run.loss)}"
            )
            drawing.add(mark, title=title, href=run.page)
            x, y = drawing.pixel(axes, run.speedup or 1.0, run.loss)
            drawing.text(x + 9, y - 8, str(i), "tick halo")
        return drawing.svg(f"runs-{size}", "Loss against speed", f"{len(shown)} runs", role="group")
