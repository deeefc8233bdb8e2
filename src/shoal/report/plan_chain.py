"""The chain under each of many plans: every cell is drawn once in a stock, and the pictures only point at it.

A picture of a plan this way takes bytes by the dozen for a block, and a page can hold a hundred blocks in thirty plans.
"""

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace

from shoal.record import BlockRecord, Fate
from shoal.report import fates, picture, svg
from shoal.report.plans import Plan, Span, fated

_LETTER, _EDGE = 6.4, 1.5
_SIGNS: dict[Fate, str] = {"kept": "k", "removed": "r", "replaced": "s"}


@dataclass(frozen=True)
class Album:
    """The pictures of all plans in one width; `stock` has to be on the page with them."""

    stock: str
    pictures: list[str]


def album(blocks: Sequence[BlockRecord], plans: Sequence[Plan], width: float, ident: str) -> Album:
    """A picture for every plan, empty text for each where there are no blocks.

    Args:
        blocks: of the original.
        plans: to be drawn.
        width: there is room for, in pixels.
        ident: prefix of the ids inside, unique on the page, and short: it stands at every cell.
    """
    if not blocks:
        return Album("", ["" for _ in plans])
    after = [fated(blocks, plan.point) for plan in plans]
    places = picture.layout(fates.stages(blocks), width)
    shelf = _stock(places, {(block.path, block.fate) for one in after for block in one}, ident)
    return Album(shelf, [_picture(one, plan, width, ident) for one, plan in zip(after, plans, strict=True)])


def _stock(places: picture.Layout, wanted: Set[tuple[str, Fate]], ident: str) -> str:
    rails = [svg.group(*picture.rail(line, places)) for line in places.lines]
    drawn = [
        svg.group(picture.draw(_fate_cell(cell, fate), x, y, places, ident), id=_id(ident, index, fate))
        for index, (cell, x, y) in enumerate(_cells(places))
        for fate in _SIGNS
        if (cell.path, fate) in wanted
    ]
    return svg.stock(picture.patterns(ident), svg.group(*rails, id=f"{ident}-rail"), *drawn)


def _id(ident: str, index: int, fate: Fate) -> str:
    return f"{ident}{_SIGNS[fate]}{index}"


def _fate_cell(cell: picture.Cell, fate: Fate) -> picture.Cell:
    fill: picture.Fill = "full" if fate == "kept" else "hatch"
    return replace(cell, style=fate, fill=fill, tooltip=f"{cell.path}: {fate}")


def _cells(places: picture.Layout) -> Iterator[tuple[picture.Cell, float, float]]:
    """Every cell with its left upper corner."""
    for line in places.lines:
        for i, cell in enumerate(line.cells):
            yield cell, places.x(i), line.top


def _picture(blocks: Sequence[BlockRecord], plan: Plan, width: float, ident: str) -> str:
    # Laid out again, because the facts of the stages are this plan's; the places are the same.
    places = picture.layout(fates.stages(blocks), width)
    cells = [svg.use(_id(ident, index, block.fate)) for index, block in enumerate(blocks)]
    spans = [_stand_in(span, places) for span in plan.spans]
    return svg.picture(
        f"{ident}-plan-{plan.number}",
        places.width,
        places.height,
        f"The chain under plan {plan.number}",
        describe(blocks),
        *picture.stage_names(places),
        svg.use(f"{ident}-rail"),
        *cells,
        *spans,
    )


def _stand_in(span: Span, places: picture.Layout) -> svg.Markup:
    """A box over the blocks of a span, one for every line they stand in; nothing for what is no block."""
    boxes = list(_boxes(set(span.paths), places))
    if not boxes:
        return svg.Markup("")
    title = f"{', '.join(span.paths)}: replaced by {span.kind}"
    drawn = [svg.rect(x, y - _EDGE, wide, picture.BAR + 2 * _EDGE, "box", rx=4) for x, y, wide in boxes]
    name = _name(span.kind, *max(boxes, key=lambda one: one[2]))
    return svg.group(svg.tag("title", title), *drawn, name, class_="stand-in")


def _boxes(paths: set[str], places: picture.Layout) -> Iterator[tuple[float, float, float]]:
    """Left edge, top and width over the blocks of each line."""
    for line in places.lines:
        covered = [places.x(i) for i, cell in enumerate(line.cells) if cell.path in paths]
        if covered:
            yield min(covered) - _EDGE, line.top, max(covered) - min(covered) + places.size + 2 * _EDGE


def _name(kind: str, x: float, y: float, wide: float) -> svg.Markup:
    """The kind in the middle of a box: upright in a narrow box, and only in the tooltip where it is too long."""
    long, middle, height = _LETTER * len(kind), x + wide / 2, y + picture.BAR / 2
    if long <= wide:
        return svg.label(middle, height + 4, kind, "tick middle")
    if long <= picture.BAR:
        return svg.label(0, 4, kind, "tick middle", transform=f"translate({middle:.1f} {height:.1f}) rotate(-90)")
    return svg.Markup("")


def describe(blocks: Sequence[BlockRecord]) -> str:
    """The picture in words, for those who do not see it; the names stand beside it."""
    parts = []
    for number, members in picture.by_stage(blocks):
        counts = ((fate, sum(block.fate == fate for block in members)) for fate in _SIGNS)
        said = ", ".join(f"{count} {fate}" for fate, count in counts if count)
        parts.append(f"Stage {number}: {said}.")
    return " ".join(parts)


def legend(ident: str) -> list[tuple[str, str]]:
    """Samples of the signs, each a small decorative SVG with its meaning."""
    stand_in = svg.group(svg.rect(2, 3, 18, 16, "box", rx=4), class_="stand-in")
    return [
        (picture.sample("kept", "full", f"{ident}-kept"), "kept"),
        (picture.sample("removed", "hatch", f"{ident}-removed"), "removed"),
        (svg.icon(stand_in), "a stand-in takes the place of the blocks under it"),
    ]
