"""Differences with their intervals, one under another, along one axis with the tolerance as a band.

The drawing comes in parts, so that a page can keep the axis in sight while the rest scrolls, and break between parts in
print: a head with the axis, then one picture for every group of rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from shoal.record import Verdict
from shoal.report import numbers, svg
from shoal.report.marks import mark
from shoal.report.readings import Change
from shoal.report.scales import Scale

_LANE, _NAME, _SPACE, _HEAD, _AXIS = 16.0, 15.0, 7.0, 26.0, 40.0
_ROOMY, _LETTER, _INDENT, _WIDEST_NAMES = 600.0, 6.6, 14.0, 300.0


@dataclass(frozen=True)
class Lane:
    """One difference of a row: what was done, what came of it."""

    name: str
    change: Change
    verdict: Verdict
    tooltip: str


@dataclass(frozen=True)
class Row:
    """A block or layer with its differences; `marked` puts a diamond before its name."""

    name: str
    lanes: Sequence[Lane]
    marked: bool = False


@dataclass(frozen=True)
class Group:
    """Rows under one heading, with their description for those who do not see them."""

    title: str
    rows: Sequence[Row]
    desc: str


@dataclass(frozen=True)
class Canvas:
    """The scale and the band of all groups, and where they are on a drawing of this width."""

    width: float
    scale: Scale
    tolerance: float
    unit: str
    named_lanes: bool
    longest_name: int

    @property
    def roomy(self) -> bool:
        """Whether names stand beside their lanes; else above."""
        return self.width >= _ROOMY

    @property
    def names(self) -> float:
        """The room for names."""
        return min(_WIDEST_NAMES, _INDENT + _LETTER * self.longest_name + 10.0) if self.roomy else 0.0

    @property
    def left(self) -> float:
        """Where the axis begins."""
        return self.names + (52.0 if self.named_lanes else 10.0)

    @property
    def right(self) -> float:
        """Where the axis ends."""
        return self.width - 16.0

    def x(self, value: float) -> float:
        """The pixel column of a difference."""
        return self.left + (self.right - self.left) * self.scale.at(value)


def head(canvas: Canvas) -> str:
    """The axis; decoration, because the pictures below say their numbers themselves."""
    drawn = [svg.line(canvas.left, _AXIS - 0.5, canvas.right, _AXIS - 0.5, "zero")]
    drawn.append(svg.label(canvas.x(0.0), 13, f"{canvas.unit} →", "tick"))
    last = -math.inf
    for place, text in canvas.scale.labels():
        x = canvas.left + (canvas.right - canvas.left) * place
        drawn.append(svg.line(x, _AXIS - 5, x, _AXIS, "zero"))
        half = _LETTER * len(text) / 2
        if x - half > last:
            drawn.append(svg.label(x, _AXIS - 9, text, "tick middle"))
            last = x + half
    size: dict[str, str | float] = {"width": canvas.width, "height": _AXIS}
    return svg.tag("svg", *drawn, viewBox=f"0 0 {canvas.width:.0f} {_AXIS:.0f}", aria_hidden="true", **size)


def body(group: Group, canvas: Canvas, ident: str) -> str:
    """One group of rows as one SVG."""
    height = _HEAD + sum(_height(row, canvas) for row in group.rows)
    drawn = [svg.label(0, 17, group.title, "strong"), *_background(canvas, height)]
    top = _HEAD
    for row in group.rows:
        drawn.append(_row(row, canvas, top))
        top += _height(row, canvas)
    return svg.picture(ident, canvas.width, height, group.title, group.desc, *drawn)


def _height(row: Row, canvas: Canvas) -> float:
    return _LANE * max(1, len(row.lanes)) + _SPACE + (0.0 if canvas.roomy else _NAME)


def _background(canvas: Canvas, height: float) -> list[svg.Markup]:
    low, high = canvas.x(-canvas.tolerance), canvas.x(canvas.tolerance)
    drawn = [svg.rect(low, _HEAD, high - low, height - _HEAD, "band")]
    for place, _ in canvas.scale.labels():
        x = canvas.left + (canvas.right - canvas.left) * place
        drawn.append(svg.line(x, _HEAD, x, height, "grid"))
    zero = canvas.x(0.0)
    return [*drawn, svg.line(zero, _HEAD, zero, height, "zero")]


def _row(row: Row, canvas: Canvas, top: float) -> svg.Markup:
    name = fitted(row.name, canvas.names - _INDENT if canvas.roomy else canvas.width - _INDENT)
    drawn: list[str] = [svg.tag("title", row.name)]
    if row.marked:
        drawn.append(svg.tag("path", d=f"M5 {top + 4}l4 4l-4 4l-4 -4z", class_="diamond"))
    drawn.append(svg.label(_INDENT, top + 12, name, "halo"))
    if not row.lanes:
        drawn.append(svg.label(canvas.left, top + 12, "not measured", "soft"))
    first = top + (0.0 if canvas.roomy else _NAME)
    drawn += [_lane(lane, canvas, first + i * _LANE + _LANE / 2) for i, lane in enumerate(row.lanes)]
    return svg.group(*drawn)


def _lane(lane: Lane, canvas: Canvas, y: float) -> svg.Markup:
    low, high = canvas.x(lane.change.low), canvas.x(lane.change.high)
    drawn: list[str] = [svg.tag("title", lane.tooltip)]
    if canvas.named_lanes:
        drawn.append(svg.label(canvas.left - 8, y + 4, lane.name, "tick end"))
    drawn.append(svg.line(low, y, high, y, f"whisker {lane.verdict}"))
    # An interval without an end goes on: an arrowhead at the edge says so.
    if math.isinf(lane.change.low):
        drawn.append(svg.tag("path", d=f"M{low:.2f} {y:.2f}l5 -4v8z", class_="arrow"))
    if math.isinf(lane.change.high):
        drawn.append(svg.tag("path", d=f"M{high:.2f} {y:.2f}l-5 -4v8z", class_="arrow"))
    drawn.append(mark(lane.verdict, canvas.x(lane.change.value), y))
    return svg.group(*drawn, class_="lane")


def fitted(name: str, room: float) -> str:
    """A path that fits, its end kept, because that is where paths differ."""
    letters = max(4, int(room // _LETTER))
    return name if len(name) <= letters else f"…{name[1 - letters :]}"


def tooltip(name: str, change: Change, unit: str, verdict: Verdict, n: int) -> str:
    """All about one difference, in lines."""
    ends = numbers.significant_interval((change.low, change.high), digits=3)
    interval = "interval without end" if ends == numbers.MISSING else ends
    return f"{name}: {verdict}\n{numbers.significant(change.value)} {unit} ({interval}), n = {numbers.count(n)}"
