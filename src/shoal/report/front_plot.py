"""The front as a plot: damage against latency, a numbered point a plan, each of them a link to its picture.

Beside the points, which are what the tables promise, stand the plans that were built, where they were measured.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from shoal.record import Planning, PlanRound
from shoal.report import numbers, plan_words, scales, svg
from shoal.report.plans import Plan, chosen_round, share_of

_LEFT, _RIGHT, _TOP, _BOTTOM, _INSET = 52.0, 26.0, 46.0, 62.0, 8.0
_LETTER, _LINE, _ROOMY = 7.0, 12.0, 600.0


@dataclass(frozen=True)
class Frame:
    """Where shares of the latency and damages are in the drawing."""

    width: float
    height: float
    across: scales.Linear
    up: scales.Scale

    @property
    def bottom(self) -> float:
        """The row of the axis below."""
        return self.height - _BOTTOM

    @property
    def right(self) -> float:
        """The column where the plot ends."""
        return self.width - _RIGHT

    def x(self, share: float) -> float:
        """The pixel column of a share."""
        return _LEFT + _INSET + (self.right - _LEFT - 2 * _INSET) * self.across.at(share)

    def y(self, damage: float) -> float:
        """The pixel row of a damage."""
        return self.row(self.up.at(damage))

    def row(self, place: float) -> float:
        """The pixel row of a place on the scale."""
        return self.bottom - _INSET - (self.bottom - _TOP - 2 * _INSET) * place


@dataclass(frozen=True)
class Built:
    """One built plan: where the tables saw it and where it was found, as share and damage."""

    guessed: tuple[float, float]
    measured: tuple[float, float]
    chosen: bool
    tooltip: str


def plot(
    plans: Sequence[Plan], planning: Planning, width: float, height: float, ident: str, *, recovered: bool = False
) -> str:
    """The front as one SVG; empty text where no plan has a place.

    Args:
        plans: of the front; those without a finite place are left out.
        planning: whose rounds are drawn beside them.
        width: in pixels.
        height: in pixels.
        ident: prefix of the ids inside, unique on the page.
        recovered: the network went on to recovery, which the plot knows nothing of.
    """
    shown = [plan for plan in plans if plan.drawable]
    if not shown:
        return ""
    built, final = _built(planning), _final(planning)
    places = [(plan.share or 0.0, plan.point.damage) for plan in shown]
    every = [*places, *(one.guessed for one in built), *(one.measured for one in built), *([final] if final else [])]
    frame = Frame(width, height, _across(every), scales.for_scores([damage for _, damage in every]))
    corners = " ".join(f"{frame.x(share):.1f},{frame.y(damage):.1f}" for share, damage in sorted(places))
    drawn = [*_axes(frame, planning.original_ms), svg.tag("polyline", points=corners, class_="ridge")]
    drawn += [_errand(one.guessed, one.measured, frame, "guess") for one in built]
    chosen = [one for one in built if one.chosen]
    drawn += [_errand(one.measured, final, frame, "refit") for one in chosen if final]
    drawn += [_point(plan, frame) for plan in shown]
    made = next((plan.number for plan in shown if plan.chosen), None)
    drawn += [_diamond(one, frame, made) for one in built]
    drawn += [_kept(final, frame, made, recovered=recovered)] if final else []
    drawn += _numbers(shown, frame)
    return svg.picture(ident, width, height, "Damage against latency", plan_words.front(plans), *drawn, role="group")


def _across(every: Sequence[tuple[float, float]]) -> scales.Linear:
    shares = [share for share, _ in every]
    margin = 0.04 * (max(shares) - min(shares)) or 0.1
    return scales.Linear(max(0.0, min(shares) - margin), max(shares) + margin)


def _built(planning: Planning) -> list[Built]:
    found = []
    for number, one in enumerate(planning.rounds, 1):
        guessed, measured = share_of(one.latency_guessed_ms, planning), share_of(one.latency_measured_ms, planning)
        finite = math.isfinite(one.damage_guessed) and math.isfinite(one.damage_measured)
        if guessed is not None and measured is not None and finite:
            ends = (guessed, one.damage_guessed), (measured, one.damage_measured)
            found.append(Built(*ends, one.chosen, _tooltip(number, one)))
    return found


def _tooltip(number: int, one: PlanRound) -> str:
    name = f"Built plan {number}{', the chosen one' if one.chosen else ''}"
    latency = (
        f"{numbers.milliseconds(one.latency_measured_ms)} (tables: {numbers.milliseconds(one.latency_guessed_ms)})"
    )
    damage = f"{numbers.significant(one.damage_measured)} nats (tables: {numbers.significant(one.damage_guessed)})"
    return f"{name}\n{latency}\n{damage}"


def _final(planning: Planning) -> tuple[float, float] | None:
    """Where the network that was kept is: the latency of the chosen plan, and what its damage is in the end."""
    made = chosen_round(planning)
    share = None if made is None else share_of(made.latency_measured_ms, planning)
    if share is None or not math.isfinite(planning.damage_final):
        return None
    return share, planning.damage_final


def _axes(frame: Frame, original_ms: float) -> list[svg.Markup]:
    drawn = [svg.label(0, 16, "Damage against latency", "strong"), svg.label(0, 33, "mean KL, nats", "soft")]
    for place, text in frame.up.labels():
        y = frame.row(place)
        drawn.append(svg.line(_LEFT, y, frame.right, y, "grid"))
        drawn.append(svg.label(_LEFT - 6, y + 4, text, "tick end"))
    for share in scales.ticks(frame.across.low, frame.across.high, 8 if frame.width >= _ROOMY else 4):
        x = frame.x(share)
        drawn.append(svg.line(x, _TOP, x, frame.bottom, "grid"))
        drawn.append(svg.label(x, frame.bottom + 16, numbers.share_tick(share), "tick middle"))
        drawn.append(svg.label(x, frame.bottom + 31, numbers.milliseconds(share * original_ms), "tick middle"))
    drawn.append(svg.line(_LEFT, frame.bottom, frame.right, frame.bottom, "zero"))
    drawn.append(svg.line(_LEFT, _TOP, _LEFT, frame.bottom, "zero"))
    middle = (_LEFT + frame.right) / 2
    return [*drawn, svg.label(middle, frame.height - 8, "latency, of the original's", "tick middle")]


def _errand(start: tuple[float, float], end: tuple[float, float], frame: Frame, class_: str) -> svg.Markup:
    """The way from what was said of a plan to what came of it."""
    return svg.line(frame.x(start[0]), frame.y(start[1]), frame.x(end[0]), frame.y(end[1]), class_)


def _diamond(one: Built, frame: Frame, made: int | None) -> svg.Markup:
    mark = built_mark(frame.x(one.measured[0]), frame.y(one.measured[1]), one.chosen)
    return _link(made if one.chosen else None, one.tooltip, mark)


def _link(number: int | None, title: str, *marks: svg.Markup) -> svg.Markup:
    """Marks of the plan of this number; passed over by the keyboard, which has its point already."""
    drawn = (svg.tag("title", title), *marks)
    return svg.group(*drawn) if number is None else svg.tag("a", *drawn, href=f"#plan-{number}", tabindex=-1)


def built_mark(x: float, y: float, chosen: bool) -> svg.Markup:
    """The sign of a built plan: a diamond, larger and full for the chosen one."""
    size = 7 if chosen else 5
    path = f"M{x:.2f} {y - size:.2f}l{size} {size}l-{size} {size}l-{size} -{size}z"
    return svg.tag("path", d=path, class_=f"built{' chosen' if chosen else ''}")


def _kept(place: tuple[float, float], frame: Frame, made: int | None, *, recovered: bool) -> svg.Markup:
    title = f"The network in the end{', before recovery' if recovered else ''}\n{numbers.significant(place[1])} nats"
    return _link(made, title, *kept_mark(frame.x(place[0]), frame.y(place[1])))


def kept_mark(x: float, y: float) -> list[svg.Markup]:
    """The sign of the network in the end: a point in a ring."""
    return [
        svg.tag("circle", cx=x, cy=y, r=7.5, class_="built"),
        svg.tag("circle", cx=x, cy=y, r=3.5, class_="built chosen"),
    ]


def _point(plan: Plan, frame: Frame) -> svg.Markup:
    """A point that leads to the picture of its plan; the circle around it that nobody sees is for fingers."""
    x, y = frame.x(plan.share or 0.0), frame.y(plan.point.damage)
    return svg.tag(
        "a",
        svg.tag("title", f"Plan {plan.number}\n{', '.join(plan_words.facts(plan)[:2])}"),
        svg.tag("circle", cx=x, cy=y, r=12, class_="reach"),
        svg.tag("circle", cx=x, cy=y, r=4.5, class_="dot"),
        href=f"#plan-{plan.number}",
    )


def _numbers(plans: Sequence[Plan], frame: Frame) -> list[svg.Markup]:
    """The numbers of the points to their upper right, where a falling front leaves room; none over another."""
    taken: list[tuple[float, float, float]] = []
    drawn = []
    for plan in sorted(plans, key=lambda one: (not one.chosen, one not in (plans[0], plans[-1]), one.number)):
        x, y, text = frame.x(plan.share or 0.0) + 6, frame.y(plan.point.damage) - 6, str(plan.number)
        wide = _LETTER * len(text)
        if all(abs(y - b) >= _LINE or x + wide <= a or x >= a + w for a, b, w in taken):
            taken.append((x, y, wide))
            drawn.append(svg.label(x, y, text, "tick halo strong" if plan.chosen else "tick halo"))
    return drawn


def legend(*, recovered: bool = False) -> list[tuple[str, str]]:
    """Every sign with its meaning."""
    guess = svg.line(1, 11, 21, 11, "guess")
    before = ", before recovery" if recovered else ""
    return [
        (svg.icon(svg.tag("circle", cx=11, cy=11, r=4.5, class_="dot")), "a plan by the tables"),
        (svg.icon(guess, built_mark(11, 11, chosen=False)), "built and measured; dotted: from where the tables saw it"),
        (svg.icon(built_mark(11, 11, chosen=True)), "the chosen one, as built"),
        (svg.icon(*kept_mark(11, 11)), f"the same in the end, its stand-ins refitted{before}"),
    ]
