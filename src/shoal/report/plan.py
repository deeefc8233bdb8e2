"""The section of a page about the plan: the front, what was built, and the chain under every plan."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from shoal.record import BlockRecord, FrontPoint, Planning, PlanRound, Record
from shoal.report import chain, numbers
from shoal.report.damage import KL, Damage, damage_of
from shoal.report.race import RaceTable, race_table
from shoal.report.text import plural


@dataclass(frozen=True)
class ReplacedSpan:
    """Consecutive layers, and the kind of their replacement."""

    paths: list[str]
    kind: str

    @property
    def ends(self) -> tuple[str, str, str]:
        """First path, last path and length; the last is empty for a single layer."""
        length = len(self.paths)
        first, last = (self.paths[0], self.paths[-1]) if length else (numbers.MISSING, "")
        return first, last if length > 1 else "", f" ({length} in a row)" if length > 2 else ""


@dataclass(frozen=True)
class FrontPlan:
    """One plan: its number, its share of the original's latency if there is one, and whether it was carried out."""

    number: int
    point: FrontPoint
    share: float | None
    chosen: bool
    damage: Damage = KL

    @property
    def spans(self) -> list[ReplacedSpan]:
        """The replaced spans; an unrecorded kind is just a replacement."""
        named = zip_longest(self.point.replaced, self.point.kinds[: len(self.point.replaced)], fillvalue="")
        return [ReplacedSpan(list(paths), str(kind) or "a replacement") for paths, kind in named]

    @property
    def drawable(self) -> bool:
        """Whether it has a place on a plot."""
        return self.share is not None and math.isfinite(self.point.damage)

    @property
    def facts(self) -> list[str]:
        """The plan in numbers, most important first."""
        share = "" if self.share is None else f", {numbers.percent(self.share)} of the original's"
        return [
            f"{numbers.milliseconds(self.point.latency_ms)}{share}",
            f"damage {self.damage.figure(self.point.damage)}",
            f"{numbers.amount(self.point.macs)} MACs",
            f"{numbers.amount(self.point.params)} parameters",
            *([f"depth {numbers.count(self.point.depth)}"] if self.point.depth else []),
        ]


@dataclass(frozen=True)
class BuiltPlan:
    """One plan that was built: predicted, measured and error of latency and damage; and the damage after a refit."""

    number: int
    chosen: bool
    latency: tuple[str, str, str]
    damage: tuple[str, str, str, str]


@dataclass(frozen=True)
class PlanCard:
    """One plan with its chain and its neighbours on the front."""

    plan: FrontPlan
    chain: chain.ChainGrid | None
    before: int | None
    after: int | None


@dataclass(frozen=True)
class PlanSection:
    """Everything that the template needs."""

    lead: str
    notes: list[str]
    plots: dict[str, str]
    legend: list[tuple[str, str]]
    built: list[BuiltPlan]
    refitting: str
    race: RaceTable | None
    signs: list[tuple[str, str]]
    cards: list[PlanCard]


def plan_section(record: Record) -> PlanSection | None:
    """The section; None for a record without a plan."""
    from shoal.report.plots import front

    planning = record.planning
    if planning is None:
        return None
    plans = plans_of(record)
    recovered, damage = record.recovery is not None, damage_of(record.outputs)
    plots = {size: front.plot(plans, planning, size, recovered=recovered, damage=damage) for size in front.SIZES}
    return PlanSection(
        lead=lead(planning),
        notes=[
            note
            for note in (picked(planning), budget_check(planning), latency_source(planning), guess_errors(planning))
            if note
        ],
        plots=plots if all(plots.values()) else {},
        legend=front.legend(recovered=recovered),
        built=built_plans(planning),
        refitting=refitting(planning, recovered=recovered, damage=damage),
        race=race_table(planning, damage),
        signs=chain.plan_legend() if record.blocks else [],
        cards=[_card(i, plans, record.blocks) for i in range(len(plans))],
    )


def _card(index: int, plans: Sequence[FrontPlan], blocks: Sequence[BlockRecord]) -> PlanCard:
    plan = plans[index]
    spans = [(span.paths, span.kind) for span in plan.spans]
    return PlanCard(
        plan,
        chain.plan_chain(with_actions(blocks, plan.point), spans, plan.number),
        plans[index - 1].number if index else None,
        plans[index + 1].number if index + 1 < len(plans) else None,
    )


def plans_of(record: Record) -> list[FrontPlan]:
    """Every plan of the front, numbered in its order as `--pick` counts them."""
    planning = record.planning
    if planning is None:
        return []
    chosen, damage = _chosen_number(planning, record), damage_of(record.outputs)
    return [
        FrontPlan(number, point, share_of(point.latency_ms, planning), number == chosen, damage)
        for number, point in enumerate(planning.front, 1)
    ]


def share_of(latency_ms: float, planning: Planning) -> float | None:
    """A latency as a fraction of the original's; None where either is not a number."""
    if not (math.isfinite(latency_ms) and math.isfinite(planning.original_ms)) or planning.original_ms <= 0:
        return None
    return latency_ms / planning.original_ms


def chosen_round(planning: Planning) -> PlanRound | None:
    """The plan that was built and kept; None if no round is marked so."""
    return next((built for built in planning.rounds if built.chosen), None)


def _chosen_number(planning: Planning, record: Record) -> int | None:
    """The number of the plan that was carried out; None where it is not on the front."""
    if planning.picked is not None:
        return planning.picked
    built = chosen_round(planning)
    # Plans that differ only in the kinds of their replacements are told apart by their predicted latency.
    matches = [
        (0.0 if built is None else abs(point.latency_ms - built.latency_guessed_ms), number)
        for number, point in enumerate(planning.front, 1)
        if _same_changes(point, record)
    ]
    return min(matches)[1] if matches else None


def _same_changes(point: FrontPoint, record: Record) -> bool:
    spans = {" + ".join(span) for span in point.replaced}
    return set(point.removed) == set(record.removed) and spans == set(record.replaced)


def with_actions(blocks: Sequence[BlockRecord], point: FrontPoint) -> list[BlockRecord]:
    """The blocks with the actions of this plan."""
    actions = {**dict.fromkeys(point.removed, "removed")}
    actions |= {path: "replaced" for span in point.replaced for path in span if path not in actions}
    return [block.model_copy(update={"action": actions.get(block.path, "kept")}) for block in blocks]


def built_plans(planning: Planning) -> list[BuiltPlan]:
    """The built plans, in the order they were built in."""
    return [
        BuiltPlan(number, built.chosen, _latency(built), _damage(built))
        for number, built in enumerate(planning.rounds, 1)
    ]


def _latency(built: PlanRound) -> tuple[str, str, str]:
    predicted, measured = built.latency_guessed_ms, built.latency_measured_ms
    return numbers.milliseconds(predicted), numbers.milliseconds(measured), numbers.deviation(predicted, measured)


def _damage(built: PlanRound) -> tuple[str, str, str, str]:
    predicted, measured = built.damage_comparison
    return (
        numbers.significant(predicted),
        numbers.significant(measured),
        numbers.deviation(predicted, measured),
        numbers.significant(built.damage_refitted),
    )


def lead(planning: Planning) -> str:
    """How the front came about."""
    return (
        f"{plural(planning.candidates, 'candidate change')} (one block removed, or consecutive blocks replaced by a "
        "fitted layer) were each measured alone. The plans below add up their damage and their savings in latency; "
        "none of them is better than another in both. These are predictions, except for the plans that were built."
    )


def refitting(planning: Planning, *, recovered: bool = False, damage: Damage = KL) -> str:
    """The damage of the chosen plan at each step after it was built, up to recovery, which has its own section."""
    built = chosen_round(planning)
    measured = "" if built is None else f"{damage.figure(built.damage_measured)} as built, "
    refitted, final = numbers.significant(planning.damage_refitted), numbers.significant(planning.damage_final)
    raced = planning.race is not None and planning.race.continued
    end = "after the race" if raced else "in the end, before recovery" if recovered else "in the end"
    return f"Damage of the chosen plan: {measured}{refitted} with its replacements refitted, {final} {end}."


def latency_source(planning: Planning) -> str:
    """Where predicted latencies came from; empty if they were measured in this run."""
    if planning.latency_source == "measured":
        return ""
    return f"The predicted latencies were not measured in this run; source: {planning.latency_source}."


def budget_check(planning: Planning) -> str:
    """Whether the budget of latency was met when the plan was timed once more, in a run of its own."""
    check = planning.budget_check
    if check is None:
        return ""
    at = "; ".join(f"{ratio}" + (f" at batch {ratio.batch}" if len(check.ratios) > 1 else "") for ratio in check.ratios)
    drift = f"; it drifted by {numbers.percent(check.worst.drift)}" if check.worst.rounds else ""
    return (
        f"Timed once more by itself, in {numbers.count(check.worst.rounds)} pairs: {at}; {check.allowed:.3g} was "
        f"allowed: the budget is {'met' if check.met else 'missed'}, {numbers.percent(check.used)} of it used{drift}."
    )


def guess_errors(planning: Planning) -> str:
    """How far predicted damages were off, with and without a refit and pairs; empty where it is not known."""
    errors = planning.guess_errors
    if errors is None:
        return ""
    parts = [
        f"{name} by a factor of {math.exp(error.median_log_ratio):.2f}"
        + (f" (rank correlation {error.spearman:.2f})" if error.spearman is not None else "")
        for name, error in (
            ("sums of damages before a refit are off", errors.raw),
            ("after the cheapest refit", errors.refitted),
            ("with corrections for pairs", errors.corrected),
        )
    ]
    return f"Over {plural(errors.n, 'plan')} that were built and refitted, {', '.join(parts)}, in the median."


def picked(planning: Planning) -> str:
    """The user's own choice of a plan, if any."""
    if planning.picked is None:
        return ""
    return f"Plan {planning.picked} was picked from the front with `--pick {planning.picked}`."


def front_range(plans: Sequence[FrontPlan]) -> str:
    """How many plans there are and how far they reach: `24 plans, 31.0 % to 96.0 % of the latency`."""
    shares = [plan.share for plan in plans if plan.share is not None]
    count = plural(len(plans), "plan")
    if not shares:
        return count
    low, high = numbers.percent(min(shares)), numbers.percent(max(shares))
    return f"{count}, {low}{'' if low == high else f' to {high}'} of the latency"


def prediction_error(planning: Planning) -> str:
    """How well the chosen plan's latency was predicted; empty if nothing was built."""
    built = chosen_round(planning) or next(iter(planning.rounds[-1:]), None)
    if built is None:
        return ""
    predicted, measured, error = _latency(built)
    return f"Predicted {predicted}, measured {measured}{'' if error == numbers.MISSING else f' ({error})'}"
