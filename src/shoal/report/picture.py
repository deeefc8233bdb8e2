"""The chain as a picture: lines for a stage, a cell for a block, a bar for its worth, a pattern for its fate.

Underneath the cells runs the residual stream; a diamond on it is a shortcut with parameters of its own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from shoal.record import BlockRecord
from shoal.report import numbers, svg

_NARROWEST, _WIDEST, _GAP, _BAR = 32.0, 62.0, 5.0, 64.0
_GUTTER, _HEAD, _FOOT, _END = 38.0, 30.0, 36.0, 10.0
_STAGE_GAP = 12.0
_LABEL_WIDTH = 280.0
_LONGEST_NAME = 4


@dataclass(frozen=True)
class Scale:
    """A logarithmic scale of worths over whole decades; without worths it has no decades."""

    low: int
    high: int

    @property
    def decades(self) -> list[int]:
        """The exponents to draw a line at, some four at most."""
        step = max(1, math.ceil((self.high - self.low) / 3))
        return list(range(self.high, self.low - 1, -step))

    def height(self, worth: float) -> float:
        """How much of a cell a worth fills: 0 at the lowest decade or below, 1 at the highest."""
        if worth <= 0 or self.high == self.low:
            return 0.0
        return min(1.0, max(0.0, (math.log10(worth) - self.low) / (self.high - self.low)))


def scale_of(blocks: Sequence[BlockRecord]) -> Scale:
    """The scale that holds every positive finite worth, six decades at most."""
    worths = [b.worth_kl for b in blocks if b.worth_kl is not None and 0 < b.worth_kl < math.inf]
    if not worths:
        return Scale(0, 0)
    high = math.ceil(math.log10(max(worths)))
    low = math.floor(math.log10(min(worths)))
    return Scale(min(max(low, high - 6), high - 1), high)


def chain(blocks: Sequence[BlockRecord], width: float, ident: str = "chain") -> str:
    """The chain as one SVG; empty text for an empty chain.

    Args:
        blocks: in the order of the forward.
        width: there is room for, in pixels; a stage too long for it goes on in the next line.
        ident: prefix of the ids inside, unique on the page.
    """
    if not blocks:
        return ""
    scale, room = scale_of(blocks), width - _GUTTER - _END
    columns = min(int(room // _NARROWEST), max(len(members) for _, members in stages(blocks)))
    pitch = min(_WIDEST, room / columns)
    drawn: list[str] = [_hatch(ident)]
    top = 0.0
    for number, members in stages(blocks):
        drawn.append(_stage_label(number, members, top))
        top += _HEAD
        for start in range(0, len(members), columns):
            drawn.append(_line(members[start : start + columns], top, pitch, scale, ident))
            top += _BAR + _FOOT
        top += _STAGE_GAP
    used = _GUTTER + max(columns * pitch + _END, _LABEL_WIDTH)
    return svg.picture(ident, used, top, "The chain of residual blocks", describe(blocks), *drawn)


def stages(blocks: Sequence[BlockRecord]) -> list[tuple[int, list[BlockRecord]]]:
    """The blocks of every stage, in order."""
    return [(number, list(members)) for number, members in groupby(blocks, key=lambda block: block.stage)]


def describe(blocks: Sequence[BlockRecord]) -> str:
    """The picture in words, for those who do not see it."""
    parts = []
    for number, members in stages(blocks):
        gone = [block.path for block in members if block.fate == "removed"]
        what = f"removed {', '.join(gone)}" if gone else "all kept"
        parts.append(f"Stage {number}: {len(members)} blocks, {what}.")
    return " ".join(parts) + " The table of blocks below has every number."


def _stage_label(number: int, members: list[BlockRecord], top: float) -> svg.Markup:
    kept = sum(block.fate == "kept" for block in members)
    facts = f"{numbers.shape(members[-1].out_shape)} · {kept} of {len(members)} kept"
    return svg.tag(
        "text",
        svg.tag("tspan", f"Stage {number}", class_="strong"),
        svg.tag("tspan", facts, dx=10, class_="soft"),
        x=_GUTTER,
        y=top + 18,
    )


def _line(members: list[BlockRecord], top: float, pitch: float, scale: Scale, ident: str) -> svg.Markup:
    right = _GUTTER + len(members) * pitch
    stream = top + _BAR + 8
    size = pitch - _GAP
    cells = [_cell(block, _GUTTER + i * pitch + _GAP / 2, top, size, scale, ident) for i, block in enumerate(members)]
    arrow = svg.tag("path", d=f"M{right - 1} {stream - 3.5}l6 3.5l-6 3.5z", class_="arrow")
    return svg.group(*_gridlines(scale, top, right), svg.line(_GUTTER, stream, right, stream, "stream"), arrow, *cells)


def _gridlines(scale: Scale, top: float, right: float) -> list[svg.Markup]:
    if scale.high == scale.low:
        return []
    drawn = []
    for exponent in scale.decades:
        y = top + _BAR * (1 - (exponent - scale.low) / (scale.high - scale.low))
        drawn.append(svg.line(_GUTTER, y, right, y, "grid"))
        drawn.append(svg.label(_GUTTER - 6, y + 4, numbers.power_of_ten(exponent), "tick end"))
    return drawn


def _cell(block: BlockRecord, x: float, top: float, size: float, scale: Scale, ident: str) -> svg.Markup:
    filled = _BAR * (0.0 if block.worth_kl is None else scale.height(block.worth_kl))
    drawn: list[str] = [svg.tag("title", tooltip(block)), svg.rect(x, top, size, _BAR, "box", rx=3)]
    if filled:
        drawn.append(_bar(block, x, top + _BAR - filled, size, filled, ident))
    if block.worth_kl is None:
        drawn.append(svg.label(x + size / 2, top + _BAR / 2 + 4, "–", "tick middle"))
    if block.shortcut == "projection":
        middle, stream = x + size / 2, top + _BAR + 8
        drawn.append(svg.tag("path", d=f"M{middle} {stream - 5}l5 5l-5 5l-5 -5z", class_="diamond"))
    drawn.append(svg.label(x + size / 2, top + _BAR + 26, _short(block.path), "tick middle"))
    return svg.group(*drawn, class_=f"block {block.fate}{'' if block.removable else ' fixed'}")


def _bar(block: BlockRecord, x: float, y: float, width: float, height: float, ident: str) -> svg.Markup:
    if block.fate == "kept":
        return svg.rect(x, y, width, height, "bar", rx=2)
    return svg.rect(x, y, width, height, "bar", rx=2, fill=f"url(#{ident}-hatch)")


def _hatch(ident: str) -> svg.Markup:
    stripes = svg.line(0, 0, 0, 5, "hatch")
    pattern = svg.tag(
        "pattern",
        stripes,
        id=f"{ident}-hatch",
        width=5,
        height=5,
        patternUnits="userSpaceOnUse",
        patternTransform="rotate(45)",
    )
    return svg.tag("defs", pattern)


def _short(path: str) -> str:
    last = path.rsplit(".", 1)[-1]
    return last if len(last) <= _LONGEST_NAME else ""


def tooltip(block: BlockRecord) -> str:
    """All about a block, in lines."""
    worth = numbers.significant(block.worth_kl)
    lines = [
        f"{block.path}: {block.fate}",
        f"{block.kind}, {block.shortcut} shortcut, {numbers.amount(block.params)} parameters",
        f"{numbers.shape(block.in_shape)} to {numbers.shape(block.out_shape)}",
        "worth not measured" if worth == numbers.MISSING else f"worth {worth} nats alone",
    ]
    if not block.removable:
        lines.append(f"cannot be removed: {block.reason}" if block.reason else "cannot be removed")
    return "\n".join(lines)


def legend(ident: str = "legend") -> list[tuple[str, str]]:
    """Samples of the signs used, each a small decorative SVG with its meaning."""
    ends: dict[str, str | float] = {"width": 22, "height": 22, "viewBox": "0 0 22 22", "aria_hidden": "true"}
    kept = svg.group(svg.rect(3, 3, 16, 16, "box", rx=3), svg.rect(3, 8, 16, 11, "bar", rx=2), class_="block kept")
    hatched = svg.rect(3, 8, 16, 11, "bar", rx=2, fill=f"url(#{ident}-hatch)")
    gone = svg.group(svg.rect(3, 3, 16, 16, "box", rx=3), hatched, class_="block removed")
    diamond = svg.tag("path", d="M11 6l5 5l-5 5l-5 -5z", class_="diamond")
    stream = svg.line(0, 11, 22, 11, "stream")
    dash = svg.label(11, 15, "–", "tick middle")
    return [
        (svg.tag("svg", kept, **ends), "kept"),
        (svg.tag("svg", _hatch(ident), gone, **ends), "removed"),
        (svg.tag("svg", stream, diamond, **ends), "projection shortcut"),
        (svg.tag("svg", svg.rect(3, 3, 16, 16, "box", rx=3), dash, **ends), "worth not measured"),
    ]
