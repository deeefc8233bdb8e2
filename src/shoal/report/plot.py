"""The greedy removal as small line plots: what was lost against how many blocks were taken."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from shoal.record import Step
from shoal.report import numbers, svg
from shoal.report.scales import ticks

_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 14.0, 46.0, 34.0


@dataclass(frozen=True)
class Point:
    """One step: x blocks removed, a value with its interval, and whether the step was kept in the end."""

    x: int
    value: float
    low: float
    high: float
    name: str
    kept: bool


@dataclass(frozen=True)
class Frame:
    """Where numbers land in the drawing."""

    width: float
    height: float
    last: int
    low: float
    high: float

    def x(self, number: float) -> float:
        """The pixel column of a number of removed blocks."""
        return _LEFT + (self.width - _LEFT - _RIGHT) * number / max(self.last, 1)

    def y(self, value: float) -> float:
        """The pixel row of a value."""
        inner = self.height - _TOP - _BOTTOM
        return _TOP + inner * (1 - (value - self.low) / (self.high - self.low))


def divergences(steps: Sequence[Step], removed: Sequence[str]) -> list[Point]:
    """The divergence after every step."""
    return [
        Point(i, s.kl, s.kl_interval[0], s.kl_interval[1], s.removed, s.removed in removed)
        for i, s in enumerate(steps, 1)
        if math.isfinite(s.kl) and all(map(math.isfinite, s.kl_interval))
    ]


def drops(steps: Sequence[Step], removed: Sequence[str]) -> list[Point]:
    """The drop on validation after every step that has one, in points."""
    points = []
    for i, step in enumerate(steps, 1):
        seen = step.validation
        if seen is None or seen.top1_drop is None or not math.isfinite(seen.top1_drop):
            continue
        low, high = seen.top1_drop_interval or (seen.top1_drop, seen.top1_drop)
        kept = step.removed in removed
        points.append(Point(i, 100 * seen.top1_drop, 100 * low, 100 * high, step.removed, kept))
    return points


def plot(points: Sequence[Point], title: str, unit: str, width: float, ident: str, limit: float | None = None) -> str:
    """A line with intervals; empty text without points.

    Args:
        points: in order of x.
        title: of the plot.
        unit: of the values.
        width: in pixels.
        ident: prefix of the ids inside, unique on the page.
        limit: a value that was not to be passed, drawn as a dashed line.
    """
    if not points:
        return ""
    frame = _frame(points, width, limit)
    drawn: list[str] = [_heading(title, unit, limit), *_axes(frame)]
    if limit is not None:
        y = frame.y(limit)
        drawn.append(svg.line(_LEFT, y, width - _RIGHT, y, "limit"))
    corners = " ".join(f"{frame.x(p.x):.1f},{frame.y(p.value):.1f}" for p in points)
    drawn.append(svg.tag("polyline", points=corners, class_="curve"))
    drawn += [_mark(point, frame, unit) for point in points]
    return svg.picture(ident, width, frame.height, title, _describe(points, unit), *drawn)


def _heading(title: str, unit: str, limit: float | None) -> svg.Markup:
    asked = "" if limit is None else f"; dashed: asked at most {numbers.tick(limit)}"
    return svg.group(svg.label(0, 16, title, "strong"), svg.label(0, 33, f"{unit}{asked}", "soft"))


def _frame(points: Sequence[Point], width: float, limit: float | None) -> Frame:
    values = [0.0, *(p.low for p in points), *(p.high for p in points), *([] if limit is None else [limit])]
    low, high = min(values), max(values)
    if high == low:
        high = low + 1.0
    margin = 0.06 * (high - low)
    return Frame(width, 240.0, max(p.x for p in points), low - margin if low < 0 else low, high + margin)


def _axes(frame: Frame) -> list[svg.Markup]:
    drawn = []
    for value in ticks(frame.low, frame.high, 4):
        y = frame.y(value)
        drawn.append(svg.line(_LEFT, y, frame.width - _RIGHT, y, "zero" if value == 0 else "grid"))
        drawn.append(svg.label(_LEFT - 8, y + 4, numbers.tick(value), "tick end"))
    bottom = frame.height - _BOTTOM
    whole = [value for value in ticks(0, frame.last, 7) if value == int(value)]
    drawn += [svg.label(frame.x(value), bottom + 16, str(int(value)), "tick middle") for value in whole]
    middle = (_LEFT + frame.width - _RIGHT) / 2
    drawn.append(svg.label(middle, bottom + 31, "blocks removed", "tick middle"))
    return drawn


def _mark(point: Point, frame: Frame, unit: str) -> svg.Markup:
    x, y = frame.x(point.x), frame.y(point.value)
    low, high = frame.y(point.low), frame.y(point.high)
    value = numbers.significant(point.value)
    fate = "" if point.kept else ", taken back"
    interval = numbers.significant_interval((point.low, point.high))
    lines = f"{point.x}. {point.name}{fate}\n{value} {unit} ({interval})"
    return svg.group(
        svg.tag("title", lines),
        svg.line(x, low, x, high, "whisker"),
        svg.tag("circle", cx=x, cy=y, r=4, class_="dot" if point.kept else "dot back"),
    )


def _describe(points: Sequence[Point], unit: str) -> str:
    last = points[-1]
    end = f"{numbers.significant(last.value)} {unit} after {last.x} removed"
    return f"From {numbers.significant(points[0].value)} {unit} after {points[0].x} removed to {end}."
