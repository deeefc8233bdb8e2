from handmade import make_blocks
from planned import make_planning, planned_record

from shoal.record import Planning, PlanRace, RaceContender
from shoal.report import plan, race, render
from shoal.report.terminal import show


def contender(number: int, origin: str, final: int, **changes: object) -> RaceContender:
    values = {
        "plan": number,
        "origin": origin,
        "removed": 3,
        "replaced": 0,
        "stand_ins": 0,
        "latency_ratio": 0.598,
        "damage": 0.5,
        "divergence_before": 0.6,
        "divergences": [0.2],
        "ranks": [final],
        "final_rank": final,
        "steps": 25,
        "seconds": 4.0,
        "outcome": "eliminated",
    }
    return RaceContender.model_validate({**values, **changes})


def make_race(**changes: object) -> PlanRace:
    values = {
        "contenders": [
            contender(
                1, "solver", 2, removed=1, replaced=5, stand_ins=2, damage=0.1, divergences=[0.15, 0.13], steps=50
            ),
            contender(4, "last-k", 1, divergences=[0.14, 0.12], steps=50, outcome="won"),
            contender(5, "uniform", 3, divergences=[None], outcome="diverged", note="NaN in block 'layer2.0'"),
        ],
        "rungs": [25, 50],
        "rate": 0.02,
        "n": 512,
        "tau": 1.0,
        "tau_damage": -0.33,
        "steps": 125,
        "seconds": 75.0,
        "budget": "400 steps",
        "share": 0.3125,
    }
    return PlanRace.model_validate({**values, **changes})


def raced(**changes: object) -> Planning:
    return make_planning(make_blocks(), race=make_race(**changes))


def test_what_a_race_took_and_what_its_ranks_foretold() -> None:
    lead = race.lead(make_race())
    assert lead == (
        "3 plans were distilled on the same mini-batches at learning rate 0.02, up to 50 steps; after each rung the "
        "better half went on. That took 125 steps and 1 min 15 s, 31.2 % of the recovery budget of 400 steps. "
        "Kendall's tau: 1.00 between ranks after the first rung and the final ones, −0.33 between ranks by damage "
        "before it and the final ones."
    )
    assert "tau" not in race.lead(make_race(tau=None, tau_damage=None))


def test_what_decides_is_shown_where_the_record_has_it() -> None:
    """A plan that was behind by then and fell faster; one that diverged is expected nowhere."""
    contenders = [
        contender(1, "solver", 2, divergences=[0.2, 0.15], expected=[0.2, 0.11]),
        contender(2, "most parameters", 1, divergences=[0.9, 0.3], expected=[0.9, 0.05], outcome="won"),
        contender(3, "uniform", 3, divergences=[None], expected=[None], outcome="diverged"),
    ]
    table = race.race_table(raced(contenders=contenders, rungs=[12, 25]))
    assert table is not None
    at = table.heading.index("Expected at the end")
    assert [row.cells[at] for row in table.rows] == ["0.0500", "0.110", "–"]
    assert all(len(row.cells) == len(table.heading) for row in table.rows)
    assert "it decides" in table.notes[-1]


def test_the_best_contender_comes_first_and_who_failed_is_named() -> None:
    table = race.race_table(raced())
    assert table is not None
    assert [row.number for row in table.rows] == [4, 1, 5]
    assert [row.chosen for row in table.rows] == [True, False, False]
    assert table.heading[5:7] == ["After 25 steps", "After 50 steps"]
    assert all(len(row.cells) == len(table.heading) for row in table.rows)
    assert table.rows[0].origin == "the last blocks"
    assert table.rows[0].cells == ["59.8 %", "3", "0", "0.500", "0.600", "0.140", "0.120", "50", "won"]
    assert table.rows[1].cells[2] == "5 by 2"
    assert table.rows[2].cells[5:] == ["–", "", "25", "diverged"]
    assert table.notes[0] == "plan 5: NaN in block 'layer2.0'"
    assert "went on from what the winner had learned" in table.notes[1]
    again = race.race_table(raced(continued=False))
    assert again is not None
    assert "no better" in again.notes[1]
    assert race.race_table(make_planning(make_blocks())) is None


def test_the_end_of_refitting_is_the_race() -> None:
    assert plan.refitting(raced(), recovered=True).endswith("after the race.")
    assert plan.refitting(raced(continued=False), recovered=True).endswith("in the end, before recovery.")


def test_page_and_terminal_show_it() -> None:
    from io import StringIO

    from rich.console import Console

    record = planned_record(race=make_race())
    page = render(record)
    assert '<h3 id="race-title">The race</h3>' in page
    assert "The plans that contended, the best first" in page
    assert "spread evenly" in page
    stream = StringIO()
    show(record, "out", Console(file=stream, width=80))
    lines = stream.getvalue().splitlines()
    assert any(line.startswith("3 plans were distilled on the same mini-batches") for line in lines)
    [winner] = [line for line in lines if line.rstrip().endswith("won")]
    assert "the last blocks" in winner
    assert "race-title" not in render(planned_record())
