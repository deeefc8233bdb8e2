"""The front as a plot: damage against latency, with a numbered point for each plan that links to its chain.

The points are predictions; next to them stand the plans that were built, where they were measured.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shoal.record import Planning, PlanRound
from shoal.report import numbers
from shoal.report.damage import KL, Damage
from shoal.report.plan import FrontPlan, chosen_round, front_range, share_of
from shoal.report.plots.figure import WIDTHS, Plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HEIGHTS = {"wide": 340.0, "narrow": 320.0}
SIZES = tuple(_HEIGHTS)
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 26.0, 46.0, 62.0
# The size of a digit, to keep the numbers of the points apart.
_DIGIT, _LINE = 7.0, 12.0

Place = tuple[float, float]


@dataclass(frozen=True)
class _Built:
    """One built plan: where it was predicted and where it was measured, as share of the latency and damage."""

    predicted: Place
    measured: Place
    chosen: bool
    title: str


def plot(
    plans: Sequence[FrontPlan], planning: Planning, size: str, *, recovered: bool = False, damage: Damage = KL
) -> str:
    """The front as one SVG; empty if no plan has a place.

    Args:
        plans: of the front; those without a finite place are left out.
        planning: whose built plans are drawn next to them.
        size: of the page, a key of `SIZES`.
        recovered: whether the network was recovered afterwards, which the plot does not show.
        damage: what it is.
    """
    shown = [plan for plan in plans if plan.drawable]
    if not shown:
        return ""
    built, final = _built_plans(planning, damage), _final_place(planning)
    places = [_place(plan) for plan in shown]
    every = [
        *places,
        *(end for built_plan in built for end in (built_plan.predicted, built_plan.measured)),
        *([final] if final else []),
    ]
    made = next((plan.number for plan in shown if plan.chosen), None)
    with Plot(WIDTHS[size], _HEIGHTS[size]) as drawing:
        axes = drawing.axes(_LEFT, _TOP, drawing.width - _RIGHT, drawing.height - _BOTTOM)
        drawing.scale(axes, "y", [damage for _, damage in every])
        ticks = drawing.scale(
            axes,
            "x",
            [share for share, _ in every],
            logarithmic=False,
            label=numbers.share_tick,
            nticks=10 if size == "wide" else 5,
        )
        _captions(drawing, axes, ticks, planning.original_ms, damage)
        drawing.add(drawing.line(axes, sorted(places), "front-line"))
        for built_plan in built:
            drawing.add(drawing.line(axes, [built_plan.predicted, built_plan.measured], "connector predicted"))
        chosen = next((built_plan for built_plan in built if built_plan.chosen), None)
        if final and chosen:
            drawing.add(drawing.line(axes, [chosen.measured, final], "connector refitted"))
        for plan in shown:
            _point(drawing, axes, plan)
        for built_plan in built:
            diameter, style = (14, "built chosen") if built_plan.chosen else (10, "built")
            mark = drawing.marker(axes, *built_plan.measured, diameter, style, "D")
            drawing.add(mark, title=built_plan.title, **_link(made if built_plan.chosen else None))
        if final:
            _final_marker(drawing, axes, final, made, damage, recovered=recovered)
        _numbers(drawing, axes, shown)
        return drawing.svg(f"front-{size}", "Damage against latency", front_range(plans), role="group")


def _place(plan: FrontPlan) -> Place:
    return plan.share or 0.0, plan.point.damage


def _built_plans(planning: Planning, damage: Damage) -> list[_Built]:
    built = []
    for number, plan in enumerate(planning.rounds, 1):
        predicted = share_of(plan.latency_guessed_ms, planning)
        measured = share_of(plan.latency_measured_ms, planning)
        damages = plan.damage_comparison
        if predicted is not None and measured is not None and all(map(math.isfinite, damages)):
            ends = (predicted, damages[0]), (measured, damages[1])
            built.append(_Built(*ends, plan.chosen, _built_title(number, plan, damage)))
    return built


def _built_title(number: int, plan: PlanRound, damage: Damage) -> str:
    latency = numbers.milliseconds(plan.latency_measured_ms), numbers.milliseconds(plan.latency_guessed_ms)
    guessed, measured = plan.damage_comparison
    return (
        f"Built plan {number}{', the chosen plan' if plan.chosen else ''}\n"
        f"{latency[0]} (predicted: {latency[1]})\n{damage.figure(measured)} (predicted: {numbers.significant(guessed)})"
    )


def _final_place(planning: Planning) -> Place | None:
    """The network that was kept: the latency of the chosen plan, and its damage in the end."""
    built = chosen_round(planning)
    share = None if built is None else share_of(built.latency_measured_ms, planning)
    if share is None or not math.isfinite(planning.damage_final):
        return None
    return share, planning.damage_final


def _captions(drawing: Plot, axes: "Axes", ticks: Sequence[float], original_ms: float, damage: Damage) -> None:
    bottom = drawing.height - _BOTTOM
    drawing.text(0, 16, "Damage against latency", "strong")
    drawing.text(0, 33, damage.axis, "soft")
    for share in ticks:
        x, _ = drawing.pixel(axes, share, 1.0)
        drawing.text(x, bottom + 31, numbers.milliseconds(share * original_ms), "tick", "center")
    middle = (_LEFT + drawing.width - _RIGHT) / 2
    drawing.text(middle, drawing.height - 8, "latency relative to the original", "tick", "center")
    drawing.frame(axes, "bottom", "left")


def _link(number: int | None) -> dict[str, Any]:
    """The link to a plan; skipped by the keyboard, which stops at the plan's own point."""
    return {} if number is None else {"href": f"#plan-{number}", "focusable": False}


def _point(drawing: Plot, axes: "Axes", plan: FrontPlan) -> None:
    """A point that links to its plan; the invisible circle around it is for fingers."""
    reach = drawing.marker(axes, *_place(plan), 24, "reach")
    dot = drawing.marker(axes, *_place(plan), 9, "dot")
    drawing.add(reach, dot, title=f"Plan {plan.number}\n{', '.join(plan.facts[:2])}", href=f"#plan-{plan.number}")


def _final_marker(
    drawing: Plot, axes: "Axes", place: Place, made: int | None, damage: Damage, *, recovered: bool
) -> None:
    title = f"The final network{', before recovery' if recovered else ''}\n{damage.figure(place[1])}"
    drawing.add(*drawing.final_marker(axes, *place), title=title, **_link(made))


def _numbers(drawing: Plot, axes: "Axes", plans: Sequence[FrontPlan]) -> None:
    """The numbers of the points to their upper right, where a falling front leaves room; none over another."""
    taken: list[tuple[float, float, float]] = []
    ends = plans[0], plans[-1]
    for plan in sorted(plans, key=lambda plan: (not plan.chosen, plan not in ends, plan.number)):
        x, y = drawing.pixel(axes, *_place(plan))
        x, y, text = x + 6, y - 6, str(plan.number)
        width = _DIGIT * len(text)
        if all(abs(y - row) >= _LINE or x + width <= left or x >= left + w for left, row, w in taken):
            taken.append((x, y, width))
            drawing.text(x, y, text, "tick halo strong" if plan.chosen else "tick halo")


def legend(*, recovered: bool = False) -> list[tuple[str, str]]:
    """Every sign, as its CSS classes, with its meaning."""
    return [
        ("dot", "a predicted plan"),
        ("built line dotted", "a plan as built and measured; the dotted line starts at its prediction"),
        ("built chosen", "the chosen plan, as built"),
        (
            "built ring",
            f"the chosen plan in the end, its replacements refitted{', before recovery' if recovered else ''}",
        ),
    ]
