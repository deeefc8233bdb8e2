"""A cheap score against the true damage: a mark for each block, on axes that keep small values readable."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from shoal.record import Verdict
from shoal.report import numbers
from shoal.report.damage import KL, Damage
from shoal.report.plots.figure import Plot

_LEFT, _RIGHT, _TOP, _BOTTOM, _WIDTH, _HEIGHT = 60.0, 16.0, 12.0, 42.0, 320.0, 216.0
_MAX_NAMES = 12


@dataclass(frozen=True)
class Point:
    """One block: its score, the damage of its removal, and its verdict."""

    name: str
    score: float
    kl: float
    verdict: Verdict


def plot(points: Sequence[Point], name: str, ident: str, desc: str, damage: Damage = KL) -> str:
    """The points as one SVG; empty if there are none.

    Args:
        points: in any order; those that are not finite are left out.
        name: of the score.
        ident: prefix of the ids inside, unique on the page.
        desc: what the plot shows, in words.
        damage: what the other axis is.
    """
    finite = [point for point in points if math.isfinite(point.score) and math.isfinite(point.kl)]
    if not finite:
        return ""
    with Plot(_WIDTH, _HEIGHT) as drawing:
        axes = drawing.axes(_LEFT, _TOP, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM)
        drawing.scale(axes, "x", [point.score for point in finite], nticks=3)
        drawing.scale(axes, "y", [point.kl for point in finite])
        drawing.frame(axes, "bottom", "left")
        drawing.text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, name, "tick", "center")
        drawing.text(11, (_TOP + _HEIGHT - _BOTTOM) / 2, damage.axis, "tick", "center", rotation=90)
        spots = _spots([(*drawing.pixel(axes, point.score, point.kl), point) for point in finite])
        for x, y, members in spots:
            verdict = members[0].verdict
            shape, size = ("D", 10) if verdict == "undecided" else ("o", 8)
            mark = drawing.marker(axes, *drawing.point(axes, x, y), size, f"mark {verdict}", shape)
            drawing.add(mark, title=_title(members, damage))
        # Above all marks, or a neighbour would hide them.
        for x, y, members in spots:
            if len(members) > 1:
                drawing.text(x, y - 9, f"{len(members)} ×", "tick halo", "center")
        return drawing.svg(ident, f"{name} against the damage", desc)


def _spots(places: Sequence[tuple[float, float, Point]]) -> list[tuple[float, float, list[Point]]]:
    """The places to draw at, in pixels: one for all points of a verdict that would hide each other."""
    together: dict[tuple[int, int], dict[Verdict, list[tuple[float, float, Point]]]] = defaultdict(dict)
    for x, y, point in places:
        together[int(x // 3), int(y // 3)].setdefault(point.verdict, []).append((x, y, point))
    return [
        (members[0][0], members[0][1] + 3 * i, [point for _, _, point in members])
        for verdicts in together.values()
        for i, members in enumerate(verdicts.values())
    ]


def _title(members: Sequence[Point], damage: Damage) -> str:
    lines = [
        f"{point.name}: {point.verdict}, score {numbers.significant(point.score)}, damage {damage.figure(point.kl)}"
        for point in members[:_MAX_NAMES]
    ]
    more = len(members) - len(lines)
    return "\n".join([*lines, *([f"and {more} more"] if more else [])])
