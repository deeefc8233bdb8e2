"""The part of a page about the plan: the front, what was built, and a picture for every plan."""

from dataclasses import dataclass

from shoal.record import Record
from shoal.report import front_plot, plan_chain, plan_words
from shoal.report.plans import Plan, plans

# A wide drawing for a desk and for paper, a narrow one for a phone: the plot's width and height, then the width of the
# chain, which stands in a frame.
_SIZES = {"wide": (1000.0, 340.0, 970.0), "narrow": (340.0, 320.0, 340.0)}


@dataclass(frozen=True)
class Card:
    """One plan: the facts, the stand-ins as text, its picture in both widths, and the way to its neighbours."""

    plan: Plan
    facts: list[str]
    spans: list[tuple[tuple[str, str, str], str]]
    pictures: dict[str, str]
    before: int | None
    after: int | None


@dataclass(frozen=True)
class PlanPart:
    """All that the template asks for."""

    lead: str
    notes: list[str]
    plots: dict[str, str]
    legend: list[tuple[str, str]]
    rounds: list[plan_words.RoundRow]
    refitting: str
    stocks: list[str]
    signs: list[tuple[str, str]]
    cards: list[Card]


def plan_part(record: Record) -> PlanPart | None:
    """The part in full; None for a record without a planning."""
    seen = record.planning
    if seen is None:
        return None
    found = plans(record)
    recovered = record.recovery is not None
    plots = {
        size: front_plot.plot(found, seen, w, h, f"front-{size}", recovered=recovered)
        for size, (w, h, _) in _SIZES.items()
    }
    # The idents stand at every cell of every picture, so they are short.
    albums = {size: plan_chain.album(record.blocks, found, w, f"p{size[0]}") for size, (_, _, w) in _SIZES.items()}
    return PlanPart(
        lead=plan_words.lead(seen),
        notes=[one for one in (plan_words.picked(seen), plan_words.source(seen)) if one],
        plots=plots if all(plots.values()) else {},
        legend=front_plot.legend(recovered=recovered),
        rounds=plan_words.rounds(seen),
        refitting=plan_words.refitting(seen, recovered=recovered),
        stocks=[one.stock for one in albums.values()],
        signs=plan_chain.legend("plan-legend") if record.blocks else [],
        cards=[_card(i, found, albums) for i in range(len(found))],
    )


def _card(index: int, found: list[Plan], albums: dict[str, plan_chain.Album]) -> Card:
    plan = found[index]
    return Card(
        plan,
        plan_words.facts(plan),
        [(plan_words.covers(span), span.kind) for span in plan.spans],
        {size: one.pictures[index] for size, one in albums.items()},
        found[index - 1].number if index else None,
        found[index + 1].number if index + 1 < len(found) else None,
    )
