"""The chain as a picture: lines for a stage, a cell for a block, a bar for its worth, a pattern for what is said of it.

Underneath the cells runs the residual stream; a diamond on it is a shortcut with parameters of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, Protocol, TypeVar

from shoal.report import svg
from shoal.report.scales import Decades, decades

_NARROWEST, _WIDEST, _GAP = 32.0, 62.0, 5.0
# How high the room for a bar is.
BAR = 64.0
_GUTTER, _HEAD, _FOOT, _END = 38.0, 30.0, 36.0, 10.0
_STAGE_GAP = 12.0
_LABEL_WIDTH = 280.0
_LONGEST_NAME = 4

Fill = Literal["full", "hatch", "weave"]


@dataclass(frozen=True)
class Cell:
    """One block of the picture; `style` is what the style sheet calls it, `worth` sets the height of its bar."""

    path: str
    worth: float | None
    style: str
    fill: Fill
    projection: bool
    tooltip: str


@dataclass(frozen=True)
class Stage:
    """One stage of the picture and what is written above it."""

    number: int
    facts: str
    cells: Sequence[Cell]


class Staged(Protocol):
    """Whatever belongs to a stage."""

    @property
    def stage(self) -> int:
        """Its number."""


_Block = TypeVar("_Block", bound=Staged)


def by_stage(blocks: Sequence[_Block]) -> list[tuple[int, list[_Block]]]:
    """The blocks of every stage, in order."""
    return [(number, list(members)) for number, members in groupby(blocks, key=lambda block: block.stage)]


@dataclass(frozen=True)
class Line:
    """Cells side by side, and how far down they are."""

    cells: Sequence[Cell]
    top: float


@dataclass(frozen=True)
class Layout:
    """Where everything of a chain is in a drawing: the names of its stages, then the lines of cells."""

    names: Sequence[tuple[Stage, float]]
    lines: Sequence[Line]
    pitch: float
    scale: Decades
    width: float
    height: float

    @property
    def size(self) -> float:
        """How wide a cell is."""
        return self.pitch - _GAP

    def x(self, index: int) -> float:
        """The left edge of a cell, by its place in the line."""
        return _GUTTER + index * self.pitch + _GAP / 2


def layout(stages: Sequence[Stage], width: float) -> Layout:
    """The places of a chain that has stages, where there is room for `width` pixels."""
    scale, room = decades(cell.worth for stage in stages for cell in stage.cells), width - _GUTTER - _END
    columns = min(int(room // _NARROWEST), max(len(stage.cells) for stage in stages))
    pitch = min(_WIDEST, room / columns)
    names, lines, top = [], [], 0.0
    for stage in stages:
        names.append((stage, top))
        top += _HEAD
        for start in range(0, len(stage.cells), columns):
            lines.append(Line(stage.cells[start : start + columns], top))
            top += BAR + _FOOT
        top += _STAGE_GAP
    used = _GUTTER + max(columns * pitch + _END, _LABEL_WIDTH)
    return Layout(names, lines, pitch, scale, used, top)


def chain(stages: Sequence[Stage], width: float, ident: str, desc: str) -> str:
    """The chain as one SVG; empty text for an empty chain.

    Args:
        stages: in the order of the forward.
        width: there is room for, in pixels; a stage too long for it goes on in the next line.
        ident: prefix of the ids inside, unique on the page.
        desc: the picture in words, for those who do not see it.
    """
    if not stages:
        return ""
    places = layout(stages, width)
    drawn: list[str] = [patterns(ident), *stage_names(places)]
    for line in places.lines:
        cells = [draw(cell, places.x(i), line.top, places, ident) for i, cell in enumerate(line.cells)]
        drawn.append(svg.group(*rail(line, places), *cells))
    return svg.picture(ident, places.width, places.height, "The chain of residual blocks", desc, *drawn)


def stage_names(places: Layout) -> list[svg.Markup]:
    """Which stage begins where, and the facts about it."""
    return [_stage_label(stage, top) for stage, top in places.names]


def _stage_label(stage: Stage, top: float) -> svg.Markup:
    return svg.tag(
        "text",
        svg.tag("tspan", f"Stage {stage.number}", class_="strong"),
        svg.tag("tspan", stage.facts, dx=10, class_="soft"),
        x=_GUTTER,
        y=top + 18,
    )


def rail(line: Line, places: Layout) -> list[svg.Markup]:
    """What a line of cells stands on: the scale of the bars and the residual stream."""
    right = _GUTTER + len(line.cells) * places.pitch
    stream = line.top + BAR + 8
    arrow = svg.tag("path", d=f"M{right - 1} {stream - 3.5}l6 3.5l-6 3.5z", class_="arrow")
    grid = _gridlines(places.scale, line.top, right)
    return [*grid, svg.line(_GUTTER, stream, right, stream, "stream"), arrow]


def _gridlines(scale: Decades, top: float, right: float) -> list[svg.Markup]:
    drawn = []
    for place, text in scale.labels():
        y = top + BAR * (1 - place)
        drawn.append(svg.line(_GUTTER, y, right, y, "grid"))
        drawn.append(svg.label(_GUTTER - 6, y + 4, text, "tick end"))
    return drawn


def draw(cell: Cell, x: float, top: float, places: Layout, ident: str) -> svg.Markup:
    """One block: its bar in a box, its name below, and a diamond on the stream for a projection."""
    size = places.size
    filled = BAR * (0.0 if cell.worth is None else places.scale.at(cell.worth))
    drawn: list[str] = [svg.tag("title", cell.tooltip), svg.rect(x, top, size, BAR, "box", rx=3)]
    if filled:
        drawn.append(_bar(cell.fill, x, top + BAR - filled, size, filled, ident))
    if cell.worth is None:
        drawn.append(svg.label(x + size / 2, top + BAR / 2 + 4, "–", "tick middle"))
    if cell.projection:
        middle, stream = x + size / 2, top + BAR + 8
        drawn.append(svg.tag("path", d=f"M{middle} {stream - 5}l5 5l-5 5l-5 -5z", class_="diamond"))
    drawn.append(svg.label(x + size / 2, top + BAR + 26, _short(cell.path), "tick middle"))
    return svg.group(*drawn, class_=f"block {cell.style}")


def _bar(fill: Fill, x: float, y: float, width: float, height: float, ident: str) -> svg.Markup:
    if fill == "full":
        return svg.rect(x, y, width, height, "bar", rx=2)
    return svg.rect(x, y, width, height, "bar", rx=2, fill=f"url(#{ident}-{fill})")


def patterns(ident: str) -> svg.Markup:
    """The definitions of the fills that are not full."""
    return svg.tag("defs", _stripes(f"{ident}-hatch", "hatch", 45), _stripes(f"{ident}-weave", "weave", -45))


def _stripes(ident: str, class_: str, angle: int) -> svg.Markup:
    return svg.tag(
        "pattern",
        svg.line(0, 0, 0, 5, class_),
        id=ident,
        width=5,
        height=5,
        patternUnits="userSpaceOnUse",
        patternTransform=f"rotate({angle})",
    )


def _short(path: str) -> str:
    last = path.rsplit(".", 1)[-1]
    return last if len(last) <= _LONGEST_NAME else ""


def sample(style: str, fill: Fill, ident: str) -> svg.Markup:
    """A small decorative cell for a legend."""
    shape = svg.group(svg.rect(3, 3, 16, 16, "box", rx=3), _bar(fill, 3, 8, 16, 11, ident), class_=f"block {style}")
    return svg.icon(patterns(ident), shape) if fill != "full" else svg.icon(shape)


def signs() -> list[tuple[str, str]]:
    """The signs every picture of a chain uses, with their meaning."""
    diamond = svg.tag("path", d="M11 6l5 5l-5 5l-5 -5z", class_="diamond")
    dash = svg.label(11, 15, "–", "tick middle")
    return [
        (svg.icon(svg.line(0, 11, 22, 11, "stream"), diamond), "projection shortcut"),
        (svg.icon(svg.rect(3, 3, 16, 16, "box", rx=3), dash), "worth not measured"),
    ]
