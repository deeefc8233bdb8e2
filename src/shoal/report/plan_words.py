"""How a plan was found, in words and rows, for the page and the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass

from shoal.record import Planning, PlanRound
from shoal.report import numbers
from shoal.report.plans import Plan, Span, chosen_round


@dataclass(frozen=True)
class RoundRow:
    """One built plan: what the tables said, what it was, and by how much they were off."""

    number: int
    chosen: bool
    latency: tuple[str, str, str]
    damage: tuple[str, str, str, str]


def rounds(planning: Planning) -> list[RoundRow]:
    """The built plans in the order they were built in."""
    return [RoundRow(i, one.chosen, _latency(one), _damage(one)) for i, one in enumerate(planning.rounds, 1)]


def _latency(one: PlanRound) -> tuple[str, str, str]:
    guessed, measured = one.latency_guessed_ms, one.latency_measured_ms
    off = numbers.deviation(guessed, measured)
    return numbers.milliseconds(guessed), numbers.milliseconds(measured), off


def _damage(one: PlanRound) -> tuple[str, str, str, str]:
    guessed, measured = one.damage_guessed, one.damage_measured
    refitted = numbers.significant(one.damage_refitted) if one.damage_refitted is not None else "–"
    return numbers.significant(guessed), numbers.significant(measured), numbers.deviation(guessed, measured), refitted


def lead(planning: Planning) -> str:
    """What the front is made of."""
    tried = numbers.count(planning.candidates)
    return (
        f"{tried} candidates, a block removed or blocks replaced by a stand-in, were each tried alone. Adding up what "
        "they cost in damage and save in latency gives the plans below, of which none is better than another in both: "
        "estimates, but for those that were built."
    )


def refitting(planning: Planning, *, recovered: bool = False) -> str:
    """What became of the damage of the chosen plan after it was built; what recovery did to it is told elsewhere."""
    made = chosen_round(planning)
    built = "" if made is None else f"as built {numbers.significant(made.damage_measured)} nats, "
    refitted, final = numbers.significant(planning.damage_refitted), numbers.significant(planning.damage_final)
    end = "in the end, before recovery," if recovered else "in the end"
    return f"Damage of the chosen plan: {built}with its stand-ins refitted {refitted}, {end} {final} nats."


def source(planning: Planning) -> str:
    """Where the latencies came from; empty where they were measured."""
    if planning.latency_source == "measured":
        return ""
    return f"The latencies of the tables were not measured in this run; they come from {planning.latency_source}."


def picked(planning: Planning) -> str:
    """Whose choice it was, where it was the user's."""
    if planning.picked is None:
        return ""
    return f"Plan {planning.picked} was picked from the front with `--pick {planning.picked}`."


def front(plans: Sequence[Plan]) -> str:
    """How many plans there are and how far they reach: `24 plans, 31.0 % to 96.0 % of the latency`."""
    shares = [plan.share for plan in plans if plan.share is not None]
    many = f"{len(plans)} plan{'' if len(plans) == 1 else 's'}"
    if not shares:
        return many
    low, high = numbers.percent(min(shares)), numbers.percent(max(shares))
    return f"{many}, {low}{'' if low == high else f' to {high}'} of the latency"


def surprise(planning: Planning) -> str:
    """How well the tables knew the chosen plan's latency; empty where nothing was built."""
    made = chosen_round(planning) or next(iter(planning.rounds[-1:]), None)
    if made is None:
        return ""
    guessed, measured, off = _latency(made)
    return f"the tables guessed {guessed}, measured {measured}{'' if off == numbers.MISSING else f' ({off})'}"


def facts(plan: Plan) -> list[str]:
    """The plan in numbers, most important first."""
    point = plan.point
    share = "" if plan.share is None else f", {numbers.percent(plan.share)} of the original's"
    return [
        f"{numbers.milliseconds(point.latency_ms)}{share}",
        f"damage {numbers.significant(point.damage)} nats",
        f"{numbers.amount(point.macs)} MACs",
        f"{numbers.amount(point.params)} parameters",
        *([f"depth {numbers.count(point.depth)}"] if point.depth else []),
    ]


def covers(span: Span) -> tuple[str, str, str]:
    """First and last of a span and how long it is; no last where it is a single one."""
    many = len(span.paths)
    first, last = (span.paths[0], span.paths[-1]) if many else (numbers.MISSING, "")
    return first, last if many > 1 else "", f" ({many} in a row)" if many > 2 else ""
