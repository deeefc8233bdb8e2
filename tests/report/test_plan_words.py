import math

import pytest
from handmade import make_blocks
from planned import ORIGINAL_MS, make_planning, planned_record

from shoal.record import FrontPoint, Planning, PlanRound
from shoal.report import plan_words
from shoal.report.plans import Span, plans


def one_round(**changes: object) -> PlanRound:
    values = {
        "latency_guessed_ms": 52.1,
        "latency_measured_ms": 53.0,
        "damage_guessed": 0.02,
        "damage_measured": 0.015,
        "chosen": True,
    }
    return PlanRound.model_validate({**values, **changes})


def planning(**changes: object) -> Planning:
    return make_planning(make_blocks(), **{"rounds": [one_round()], **changes})


def test_a_row_holds_the_promise_the_truth_and_the_difference() -> None:
    first, second = plan_words.rounds(planning(rounds=[one_round(chosen=False), one_round()]))
    assert (first.number, first.chosen, second.number, second.chosen) == (1, False, 2, True)
    assert first.latency == ("52.1 ms", "53.0 ms", "+1.7 %")
    assert first.damage == ("0.0200", "0.0150", "−25.0 %", "–")


def test_the_lead_counts_the_candidates() -> None:
    assert plan_words.lead(planning(candidates=1312)).startswith("1,312 candidates")


def test_refitting_is_told_in_order() -> None:
    told = plan_words.refitting(planning(damage_refitted=0.011, damage_final=0.0102))
    assert told == (
        "Damage of the chosen plan: as built 0.0150 nats, with its stand-ins refitted 0.0110, in the end 0.0102 nats."
    )
    assert "as built" not in plan_words.refitting(planning(rounds=[]))


def test_the_end_of_refitting_is_before_recovery() -> None:
    told = plan_words.refitting(planning(damage_refitted=0.011, damage_final=0.0102), recovered=True)
    assert told.endswith("with its stand-ins refitted 0.0110, in the end, before recovery, 0.0102 nats.")


def test_latencies_from_elsewhere_are_said_to_be() -> None:
    assert plan_words.source(planning()) == ""
    assert "not measured in this run; they come from roofline.json" in plan_words.source(
        planning(latency_source="roofline.json")
    )


def test_a_pick_is_said_to_be_one() -> None:
    assert plan_words.picked(planning()) == ""
    assert plan_words.picked(planning(picked=7)) == "Plan 7 was picked from the front with `--pick 7`."


def test_the_front_says_how_far_it_reaches() -> None:
    assert plan_words.front(plans(planned_record())) == "24 plans, 32.4 % to 96.0 % of the latency"
    single = planned_record(front=planned_record().planning.front[-1:])
    assert plan_words.front(plans(single)) == "1 plan, 96.0 % of the latency"
    assert plan_words.front(plans(planned_record(original_ms=0.0))) == "24 plans"


def test_the_surprise_is_that_of_the_chosen_round() -> None:
    other = one_round(latency_guessed_ms=10.0, chosen=False)
    expected = "the tables guessed 52.1 ms, measured 53.0 ms (+1.7 %)"
    assert plan_words.surprise(planning(rounds=[other, one_round(), other])) == expected
    assert plan_words.surprise(planning(rounds=[other, one_round(chosen=False)])) == expected
    assert plan_words.surprise(planning(rounds=[])) == ""
    assert plan_words.surprise(planning(rounds=[one_round(latency_guessed_ms=math.nan)])).endswith("measured 53.0 ms")


def test_facts_of_a_plan() -> None:
    point = FrontPoint(
        latency_ms=ORIGINAL_MS / 2, damage=0.583, macs=57_900_000, params=484_800, removed=[], replaced=[], depth=18
    )
    expected = ["53.1 ms, 50.0 % of the original's", "damage 0.583 nats", "57.9 M MACs", "484.8 k parameters"]
    (plan,) = plans(planned_record(front=[point]))
    assert plan_words.facts(plan) == [*expected, "depth 18"]
    (unknown,) = plans(planned_record(original_ms=0.0, front=[point.model_copy(update={"depth": 0})]))
    assert plan_words.facts(unknown) == ["53.1 ms", *expected[1:]]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["a"], ("a", "", "")),
        (["a", "b"], ("a", "b", "")),
        (["a", "b", "c"], ("a", "c", " (3 in a row)")),
        ([], ("–", "", "")),
    ],
)
def test_a_span_is_named_by_its_ends(paths: list[str], expected: tuple[str, str, str]) -> None:
    assert plan_words.covers(Span(paths, "conv3")) == expected
