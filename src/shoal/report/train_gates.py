"""The responses of every block against epsilon, over the epochs: one lane a block, until it is taken out."""

from collections.abc import Sequence

from shoal.report import numbers, svg
from shoal.training import EpochRow, TrainRecord

_LEFT, _TOP, _LANE, _MOST = 120.0, 22.0, 11.0, 80
# Shades by the largest response of an epoch over epsilon.
_SHADES = ((4.0, 1.0), (2.0, 0.72), (1.0, 0.46))


def gates(record: TrainRecord, width: float, ident: str) -> str:
    """The lanes as one SVG; empty text without gates.

    Args:
        record: of the run.
        width: in pixels.
        ident: prefix of the ids inside, unique on the page.
    """
    paths = list(dict.fromkeys(path for row in record.rows for path in row.largest))
    if not paths:
        return ""
    order = [block.path for block in record.blocks if block.path in paths]
    epsilon = float(record.settings.get("epsilon", 0.0))
    columns = _columns(record.rows)
    step = (width - _LEFT - 8) / len(columns)
    drawn: list[str] = [svg.label(_LEFT, 14, "epochs, from left to right", "soft")]
    taken = {one.path: one.epoch for one in record.lost}
    for number, path in enumerate(order):
        y = _TOP + number * _LANE
        cells = [_cell(_LEFT + i * step, y, step, rows, path, epsilon) for i, rows in enumerate(columns)]
        name = svg.label(_LEFT - 8, y + _LANE - 2, path, "tick end")
        said = svg.tag("title", _said(record, path, taken))
        drawn.append(svg.group(said, name, *[cell for cell in cells if cell], class_="kept"))
    height = _TOP + len(order) * _LANE + 8
    return svg.picture(ident, width, height, "Responses against epsilon", describe(record), *drawn)


def legend() -> list[tuple[str, str]]:
    """What the shades mean."""
    names = ("over 4 epsilon", "2 to 4 epsilon", "1 to 2 epsilon", "under epsilon: the gate stays closed")
    shades = [*(opacity for _, opacity in _SHADES), 0.16]
    return [
        (svg.icon(svg.group(svg.rect(3, 5, 16, 12, "bar", fill_opacity=shade), class_="kept")), name)
        for shade, name in zip(shades, names, strict=True)
    ]


def describe(record: TrainRecord) -> str:
    """The picture in words."""
    lost = ", ".join(f"{one.path} in epoch {one.epoch}" for one in record.lost)
    return f"Lost: {lost}." if lost else "Every branch kept responses over epsilon; no block was lost."


def _columns(rows: Sequence[EpochRow]) -> list[Sequence[EpochRow]]:
    size = max(1, -(-len(rows) // _MOST))
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _cell(x: float, y: float, width: float, rows: Sequence[EpochRow], path: str, epsilon: float) -> str:
    found = [row.largest[path] for row in rows if path in row.largest]
    if not found:
        return ""
    ratio = max(found) / epsilon if epsilon else 0.0
    shade = next((opacity for limit, opacity in _SHADES if ratio > limit), 0.16)
    return svg.rect(x, y, max(width - 0.5, 0.5), _LANE - 2, "bar", fill_opacity=shade)


def _said(record: TrainRecord, path: str, taken: dict[str, int]) -> str:
    last = next((row for row in reversed(record.rows) if path in row.largest), None)
    largest = numbers.significant(last.largest[path]) if last is not None else numbers.MISSING
    fate = f"taken out after epoch {taken[path]}" if path in taken else "kept"
    return f"{path}: {fate}; largest response in its last epoch {largest}"
