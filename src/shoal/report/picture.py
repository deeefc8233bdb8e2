"""The chain as a picture: lines for a stage, a cell for a block, a bar for its worth, a pattern for what is said of it.

Underneath the cells runs the residual stream; a diamond on it is a shortcut with parameters of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, Protocol, TypeVar

from shoal.report import svg
from shoal.report.scales import Decades, decades

_NARROWEST, _WIDEST, _GAP, _BAR = 32.0, 62.0, 5.0, 64.0
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
    scale, room = decades(cell.worth for stage in stages for cell in stage.cells), width - _GUTTER - _END
    columns = min(int(room // _NARROWEST), max(len(stage.cells) for stage in stages))
    pitch = min(_WIDEST, room / columns)
    drawn: list[str] = [patterns(ident)]
    top = 0.0
    for stage in stages:
        drawn.append(_stage_label(stage, top))
        top += _HEAD
        for start in range(0, len(stage.cells), columns):
            drawn.append(_line(stage.cells[start : start + columns], top, pitch, scale, ident))
            top += _BAR + _FOOT
        top += _STAGE_GAP
    used = _GUTTER + max(columns * pitch + _END, _LABEL_WIDTH)
    return svg.picture(ident, used, top, "The chain of residual blocks", desc, *drawn)


def _stage_label(stage: Stage, top: float) -> svg.Markup:
    return svg.tag(
        "text",
        svg.tag("tspan", f"Stage {stage.number}", class_="strong"),
        svg.tag("tspan", stage.facts, dx=10, class_="soft"),
        x=_GUTTER,
        y=top + 18,
    )


def _line(cells: Sequence[Cell], top: float, pitch: float, scale: Decades, ident: str) -> svg.Markup:
    right = _GUTTER + len(cells) * pitch
    stream = top + _BAR + 8
    size = pitch - _GAP
    drawn = [_cell(cell, _GUTTER + i * pitch + _GAP / 2, top, size, scale, ident) for i, cell in enumerate(cells)]
    arrow = svg.tag("path", d=f"M{right - 1} {stream - 3.5}l6 3.5l-6 3.5z", class_="arrow")
    return svg.group(*_gridlines(scale, top, right), svg.line(_GUTTER, stream, right, stream, "stream"), arrow, *drawn)


def _gridlines(scale: Decades, top: float, right: float) -> list[svg.Markup]:
    drawn = []
    for place, text in scale.labels():
        y = top + _BAR * (1 - place)
        drawn.append(svg.line(_GUTTER, y, right, y, "grid"))
        drawn.append(svg.label(_GUTTER - 6, y + 4, text, "tick end"))
    return drawn


def _cell(cell: Cell, x: float, top: float, size: float, scale: Decades, ident: str) -> svg.Markup:
    filled = _BAR * (0.0 if cell.worth is None else scale.at(cell.worth))
    drawn: list[str] = [svg.tag("title", cell.tooltip), svg.rect(x, top, size, _BAR, "box", rx=3)]
    if filled:
        drawn.append(_bar(cell.fill, x, top + _BAR - filled, size, filled, ident))
    if cell.worth is None:
        drawn.append(svg.label(x + size / 2, top + _BAR / 2 + 4, "–", "tick middle"))
    if cell.projection:
        middle, stream = x + size / 2, top + _BAR + 8
        drawn.append(svg.tag("path", d=f"M{middle} {stream - 5}l5 5l-5 5l-5 -5z", class_="diamond"))
    drawn.append(svg.label(x + size / 2, top + _BAR + 26, _short(cell.path), "tick middle"))
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
