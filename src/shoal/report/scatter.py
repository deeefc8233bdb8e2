"""A cheap score against the true damage: a point a block, on scales that keep small values readable."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from shoal.record import Verdict
from shoal.report import numbers, scales, svg
from shoal.report.marks import mark

_LEFT, _RIGHT, _TOP, _BOTTOM, _WIDTH, _HEIGHT = 52.0, 16.0, 12.0, 42.0, 320.0, 216.0
_INSET = 7.0
_MOST_NAMES = 12


@dataclass(frozen=True)
class Point:
    """One block: its score, the KL of the network without it, and what is said of it."""

    name: str
    score: float
    kl: float
    verdict: Verdict


def scatter(points: Sequence[Point], name: str, ident: str, desc: str) -> str:
    """The points as one SVG; empty text where there are none.

    Args:
        points: in any order; those that are not finite are left out.
        name: of the score.
        ident: prefix of the ids inside, unique on the page.
        desc: what it shows, in words.
    """
    finite = [point for point in points if math.isfinite(point.score) and math.isfinite(point.kl)]
    if not finite:
        return ""
    across = scales.for_scores([point.score for point in finite])
    up = scales.for_scores([point.kl for point in finite])
    drawn = [*_axes(across, up), *_names_of_axes(name)]
    spots = _together(finite, across, up).items()
    drawn += [_spot(x, y, members) for (x, y), members in spots]
    # On top of all marks, or a neighbour would hide them.
    drawn += [_count(x, y, len(members)) for (x, y), members in spots if len(members) > 1]
    return svg.picture(ident, _WIDTH, _HEIGHT, f"{name} against the damage", desc, *drawn)


def _x(place: float) -> float:
    return _LEFT + _INSET + (_WIDTH - _LEFT - _RIGHT - 2 * _INSET) * place


def _y(place: float) -> float:
    return _HEIGHT - _BOTTOM - _INSET - (_HEIGHT - _TOP - _BOTTOM - 2 * _INSET) * place


def _axes(across: scales.Scale, up: scales.Scale) -> list[svg.Markup]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    drawn = []
    for place, text in across.labels():
        drawn.append(svg.line(_x(place), _TOP, _x(place), bottom, "grid"))
        drawn.append(svg.label(_x(place), bottom + 16, text, "tick middle"))
    for place, text in up.labels():
        drawn.append(svg.line(_LEFT, _y(place), right, _y(place), "grid"))
        drawn.append(svg.label(_LEFT - 6, _y(place) + 4, text, "tick end"))
    frame = [svg.line(_LEFT, bottom, right, bottom, "zero"), svg.line(_LEFT, _TOP, _LEFT, bottom, "zero")]
    return [*drawn, *frame]


def _names_of_axes(name: str) -> list[svg.Markup]:
    middle, height = (_LEFT + _WIDTH - _RIGHT) / 2, (_TOP + _HEIGHT - _BOTTOM) / 2
    upright = svg.label(0, 0, "KL, nats", "tick middle", transform=f"translate(11 {height:.0f}) rotate(-90)")
    return [svg.label(middle, _HEIGHT - 8, name, "tick middle"), upright]


def _together(
    points: Sequence[Point], across: scales.Scale, up: scales.Scale
) -> dict[tuple[float, float], list[Point]]:
    """Points that would hide each other, one spot for each verdict among them."""
    found: dict[tuple[float, float, Verdict], list[Point]] = defaultdict(list)
    for point in points:
        found[_x(across.at(point.score)) // 1, _y(up.at(point.kl)) // 1, point.verdict].append(point)
    return {(x, y + 3 * i): members for i, ((x, y), members) in _staggered(found)}


def _staggered(
    found: dict[tuple[float, float, Verdict], list[Point]],
) -> list[tuple[int, tuple[tuple[float, float], list[Point]]]]:
    seen: dict[tuple[float, float], int] = defaultdict(int)
    spots = []
    for (x, y, _), members in found.items():
        spots.append((seen[x, y], ((x, y), members)))
        seen[x, y] += 1
    return spots


def _spot(x: float, y: float, members: Sequence[Point]) -> svg.Markup:
    return svg.group(svg.tag("title", _tooltip(members)), mark(members[0].verdict, x, y))


def _count(x: float, y: float, count: int) -> svg.Markup:
    return svg.label(x, y - 9, f"{count} ×", "tick middle halo")


def _tooltip(members: Sequence[Point]) -> str:
    lines = [
        f"{one.name}: {one.verdict}, score {numbers.significant(one.score)}, KL {numbers.significant(one.kl)} nats"
        for one in members[:_MOST_NAMES]
    ]
    more = len(members) - len(lines)
    return "\n".join([*lines, *([f"and {more} more"] if more else [])])
