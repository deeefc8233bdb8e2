"""The race of plans: who contended, how far each was from the original after every rung, and who won."""

from dataclasses import dataclass

from shoal.record import Planning, PlanOrigin, PlanRace, RaceContender
from shoal.report import numbers
from shoal.report.damage import KL, Damage
from shoal.report.text import plural

_ORIGINS: dict[PlanOrigin, str] = {
    "solver": "the solver",
    "most parameters": "the solver, removals only, most parameters kept",
    "removals only": "the solver, removals only",
    "lowest influence": "least block influence",
    "block influence": "in a row, least block influence",
    "last-k": "the last blocks",
    "uniform": "spread evenly",
}


@dataclass(frozen=True)
class RaceRow:
    """One contender: its number, what made it, and the cells behind these."""

    number: int
    origin: str
    cells: list[str]
    chosen: bool
    note: str


@dataclass(frozen=True)
class RaceTable:
    """Everything that a page or a terminal shows of a race."""

    lead: str
    heading: list[str]
    rows: list[RaceRow]
    notes: list[str]


def race_table(planning: Planning, damage: Damage = KL) -> RaceTable | None:
    """The race, the best contender first; None where there was none."""
    race = planning.race
    if race is None:
        return None
    steps = [f"After {plural(rung, 'step')}" for rung in race.rungs]
    heading = ["Latency", "Removed", "Replaced", "Damage", "Before", *steps, *_expected_heading(race)]
    heading += ["Steps", "Outcome"]
    contenders = sorted(race.contenders, key=lambda contender: contender.final_rank)
    return RaceTable(lead(race), heading, [_row(contender, race) for contender in contenders], _notes(race, damage))


def _expected_heading(race: PlanRace) -> list[str]:
    """That of the column of what is expected; older records have none."""
    return ["Expected at the end"] if any(contender.expected for contender in race.contenders) else []


def lead(race: PlanRace) -> str:
    """What was done, at what price, and how well the first rung and the damage foretold the end."""
    what = (
        f"{plural(len(race.contenders), 'plan')} were distilled on the same mini-batches at learning rate "
        f"{numbers.tick(race.rate)}, up to {plural(race.rungs[-1], 'step')}; after each rung the better half went on. "
        f"That took {plural(race.steps, 'step')} and {numbers.duration(race.seconds)}, {numbers.percent(race.share)} "
        f"of the recovery budget of {race.budget}."
    )
    taus = [
        f"{numbers.signed(tau)} between {named} and the final ones"
        for tau, named in ((race.tau, "ranks after the first rung"), (race.tau_damage, "ranks by damage before it"))
        if tau is not None
    ]
    return f"{what} Kendall's tau: {', '.join(taus)}." if taus else what


def _row(contender: RaceContender, race: PlanRace) -> RaceRow:
    after = [numbers.significant(divergence) for divergence in contender.divergences]
    missing = [""] * (len(race.rungs) - len(after))
    expected = [numbers.significant(contender.expected[-1] if contender.expected else None)]
    cells = [
        numbers.percent(contender.latency_ratio),
        str(contender.removed),
        f"{contender.replaced} by {contender.stand_ins}" if contender.stand_ins else "0",
        numbers.significant(contender.damage),
        numbers.significant(contender.divergence_before),
        *after,
        *missing,
        *(expected if _expected_heading(race) else []),
        numbers.count(contender.steps),
        contender.outcome,
    ]
    return RaceRow(contender.plan, _ORIGINS[contender.origin], cells, contender.outcome == "won", contender.note)


def _notes(race: PlanRace, damage: Damage) -> list[str]:
    failed = [f"plan {contender.plan}: {contender.note}" for contender in race.contenders if contender.note]
    went_on = (
        "Recovery went on from what the winner had learned."
        if race.continued
        else "Recovery began with the winner as it was before the race: what it had learned was no better."
    )
    how = (
        "Latency is the share of the original's. Damage is measured on held-back calibration samples, before any step; "
        f"all other figures are divergences ({damage.quantity}) on {plural(race.n, 'validation sample')}."
    )
    if _expected_heading(race):
        how += " What is expected at the end of the recovery follows the last two as a power law; it decides."
    return [*failed, went_on, how]
