import math

import pytest
from handmade import make_blocks, make_record
from planned import ORIGINAL_MS, make_planning, make_point, planned_record
from recovered import recovered_record

from shoal.record import BudgetCheck, FrontPoint, GuessError, GuessErrors, LatencyRatio, Planning, PlanRound, Record
from shoal.report import plan
from shoal.report.plan import ReplacedSpan, chosen_round, plans_of, share_of, with_actions


def chosen(record: Record) -> list[int]:
    return [plan.number for plan in plans_of(record) if plan.chosen]


def test_a_number_is_the_place_in_the_list() -> None:
    record = planned_record()
    found = plans_of(record)
    assert [plan.number for plan in found] == list(range(1, 25))
    assert [plan.point for plan in found] == record.planning.front
    assert found[-1].share == pytest.approx(0.96)


def test_a_record_without_planning_has_no_plans() -> None:
    assert plans_of(make_record()) == []


def test_the_chosen_plan_is_the_one_that_was_carried_out() -> None:
    assert chosen(planned_record()) == [8]
    assert chosen(planned_record().model_copy(update={"removed": ["stages.0.8"]})) == []
    assert chosen(planned_record().model_copy(update={"replaced": []})) == []


def test_of_plans_that_differ_only_in_kinds_the_tables_tell_the_chosen_one() -> None:
    point = make_point(make_blocks(), 8, 24)
    slower = point.model_copy(update={"kinds": ["conv1", "conv1"], "latency_ms": point.latency_ms + 1})
    assert chosen(planned_record(front=[slower, point])) == [2]
    assert chosen(planned_record(front=[point, slower])) == [1]


def test_what_the_user_picked_is_chosen() -> None:
    assert chosen(planned_record(picked=3)) == [3]


def test_a_share_needs_two_numbers() -> None:
    planning = make_planning(make_blocks())
    assert share_of(ORIGINAL_MS / 2, planning) == pytest.approx(0.5)
    assert share_of(math.inf, planning) is None
    assert share_of(1.0, planning.model_copy(update={"original_ms": 0.0})) is None


def test_only_finite_plans_can_be_drawn() -> None:
    point = make_point(make_blocks(), 8, 24)
    front = [point, point.model_copy(update={"damage": math.nan}), point.model_copy(update={"latency_ms": math.inf})]
    assert [plan.drawable for plan in plans_of(planned_record(front=front))] == [True, False, False]


def test_a_span_without_a_kind_is_a_replacement() -> None:
    point = FrontPoint(
        latency_ms=1.0, damage=0.1, macs=1, params=1, removed=[], replaced=[["a", "b"], ["c"]], kinds=["conv3"]
    )
    (plan,) = plans_of(planned_record(front=[point]))
    assert plan.spans == [ReplacedSpan(["a", "b"], "conv3"), ReplacedSpan(["c"], "a replacement")]


def test_the_chosen_round_is_the_one_that_says_so() -> None:
    planning = make_planning(make_blocks())
    assert chosen_round(planning) == planning.rounds[1]
    assert chosen_round(planning.model_copy(update={"rounds": planning.rounds[:1]})) is None


def test_blocks_get_the_fate_of_the_plan_and_not_that_of_the_record() -> None:
    point = make_point(make_blocks(), 8, 24)
    after = {block.path: block.action for block in with_actions(make_blocks(), point)}
    assert {path for path, action in after.items() if action == "removed"} == set(point.removed)
    assert {path for path, action in after.items() if action == "replaced"} == {
        p for span in point.replaced for p in span
    }


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
    first, second = plan.built_plans(planning(rounds=[one_round(chosen=False), one_round()]))
    assert (first.number, first.chosen, second.number, second.chosen) == (1, False, 2, True)
    assert first.latency == ("52.1 ms", "53.0 ms", "+1.7 %")
    assert first.damage == ("0.0200", "0.0150", "−25.0 %", "–")


def test_the_lead_counts_the_candidates() -> None:
    assert plan.lead(planning(candidates=1312)).startswith("1,312 candidate changes ")


def test_refitting_is_told_in_order() -> None:
    told = plan.refitting(planning(damage_refitted=0.011, damage_final=0.0102))
    assert told == (
        "Damage of the chosen plan: 0.0150 nats as built, 0.0110 with its replacements refitted, 0.0102 in the end."
    )
    assert "as built" not in plan.refitting(planning(rounds=[]))


def test_the_end_of_refitting_is_before_recovery() -> None:
    told = plan.refitting(planning(damage_refitted=0.011, damage_final=0.0102), recovered=True)
    assert told.endswith("0.0110 with its replacements refitted, 0.0102 in the end, before recovery.")


def test_latencies_from_elsewhere_are_said_to_be() -> None:
    assert plan.latency_source(planning()) == ""
    assert "not measured in this run; source: roofline.json" in plan.latency_source(
        planning(latency_source="roofline.json")
    )


def test_how_far_guesses_were_off_is_said() -> None:
    assert plan.guess_errors(planning()) == ""
    errors = GuessErrors(
        n=6,
        raw=GuessError(median_log_ratio=0.9, spearman=0.5),
        refitted=GuessError(median_log_ratio=0.3, spearman=0.94),
        corrected=GuessError(median_log_ratio=0.25),
    )
    assert plan.guess_errors(planning(guess_errors=errors)) == (
        "Over 6 plans that were built and refitted, sums of damages before a refit are off by a factor of 2.46 (rank"
        " correlation 0.50), after the cheapest refit by a factor of 1.35 (rank correlation 0.94), with corrections for"
        " pairs by a factor of 1.28, in the median."
    )


def test_a_guess_is_compared_with_a_damage_of_its_kind() -> None:
    figures = {"latency_guessed_ms": 1.0, "latency_measured_ms": 1.0, "damage_guessed": 0.3, "damage_measured": 0.9}
    assert PlanRound(**figures).damage_comparison == (0.3, 0.9)
    assert PlanRound(**figures, damage_refitted=0.2).damage_comparison == (0.3, 0.9)
    assert PlanRound(**figures, damage_raw=0.8).damage_comparison == (0.8, 0.9)
    assert PlanRound(**figures, damage_raw=0.8, damage_refitted=0.2).damage_comparison == (0.3, 0.2)


def test_a_pick_is_said_to_be_one() -> None:
    assert plan.picked(planning()) == ""
    assert plan.picked(planning(picked=7)) == "Plan 7 was picked from the front with `--pick 7`."


def test_the_front_says_how_far_it_reaches() -> None:
    assert plan.front_range(plans_of(planned_record())) == "24 plans, 32.4 % to 96.0 % of the latency"
    single = planned_record(front=planned_record().planning.front[-1:])
    assert plan.front_range(plans_of(single)) == "1 plan, 96.0 % of the latency"
    assert plan.front_range(plans_of(planned_record(original_ms=0.0))) == "24 plans"


def test_the_surprise_is_that_of_the_chosen_round() -> None:
    other = one_round(latency_guessed_ms=10.0, chosen=False)
    expected = "Predicted 52.1 ms, measured 53.0 ms (+1.7 %)"
    assert plan.prediction_error(planning(rounds=[other, one_round(), other])) == expected
    assert plan.prediction_error(planning(rounds=[other, one_round(chosen=False)])) == expected
    assert plan.prediction_error(planning(rounds=[])) == ""
    assert plan.prediction_error(planning(rounds=[one_round(latency_guessed_ms=math.nan)])).endswith("measured 53.0 ms")


def test_facts_of_a_plan() -> None:
    point = FrontPoint(
        latency_ms=ORIGINAL_MS / 2, damage=0.583, macs=57_900_000, params=484_800, removed=[], replaced=[], depth=18
    )
    expected = ["53.1 ms, 50.0 % of the original's", "damage 0.583 nats", "57.9 M MACs", "484.8 k parameters"]
    (plan,) = plans_of(planned_record(front=[point]))
    assert plan.facts == [*expected, "depth 18"]
    (unknown,) = plans_of(planned_record(original_ms=0.0, front=[point.model_copy(update={"depth": 0})]))
    assert unknown.facts == ["53.1 ms", *expected[1:]]


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
    assert ReplacedSpan(paths, "conv3").ends == expected


def test_a_record_without_planning_has_no_such_part() -> None:
    assert plan.plan_section(make_record()) is None


def test_every_plan_has_a_card_with_pictures_and_neighbours() -> None:
    part = plan.plan_section(planned_record())
    assert [card.plan.number for card in part.cards] == list(range(1, 25))
    assert [(card.before, card.after) for card in part.cards[:2]] == [(None, 2), (1, 3)]
    assert (part.cards[-1].before, part.cards[-1].after) == (23, None)
    assert [card.chain.ident for card in part.cards] == [f"plan-{n}-chain" for n in range(1, 25)]
    first = part.cards[7].plan.spans[0]
    assert (first.ends, first.kind) == (
        ("stages.1.2", "stages.1.5", " (4 in a row)"),
        "conv3",
    )


def test_without_blocks_the_spans_are_left_as_text() -> None:
    record = planned_record().model_copy(update={"blocks": []})
    part = plan.plan_section(record)
    assert [card.chain for card in part.cards] == [None] * 24
    assert part.signs == []
    assert part.cards[7].plan.spans[1].kind == "conv1"


def test_without_numbers_there_is_no_plot() -> None:
    front = [point.model_copy(update={"damage": math.nan}) for point in planned_record().planning.front]
    part = plan.plan_section(planned_record(front=front))
    assert part.plots == {}
    assert len(part.cards) == 24


def test_notes_are_only_there_for_what_is_unusual() -> None:
    assert plan.plan_section(planned_record()).notes == []
    assert len(plan.plan_section(planned_record(picked=2, latency_source="a file")).notes) == 2


def test_a_plan_that_recovered_says_what_its_end_is() -> None:
    part = plan.plan_section(recovered_record())
    assert "in the end, before recovery" in part.refitting
    assert part.legend[-1][1].endswith("before recovery")
    assert all("The final network, before recovery" in drawn for drawn in part.plots.values())
    assert "recovery" not in plan.plan_section(planned_record()).refitting


def test_the_check_of_the_budget_is_told():
    ratio = LatencyRatio(ratio=0.61, low=0.607, high=0.613, rounds=210, drift=0.004, batch=8)
    check = BudgetCheck(allowed=0.62, ratios=[ratio], met=True, used=0.984)
    planning = make_planning(make_blocks()).model_copy(update={"budget_check": check})
    assert plan.budget_check(planning) == (
        "Timed once more by itself, in 210 pairs: 0.61 (0.607 to 0.613) of the original's latency; 0.62 was allowed:"
        " the budget is met, 98.4 % of it used; it drifted by 0.4 %."
    )
    two = check.model_copy(update={"ratios": [ratio, ratio.model_copy(update={"batch": 1})], "met": False})
    said = plan.budget_check(planning.model_copy(update={"budget_check": two}))
    assert "latency at batch 8; 0.61 (0.607 to 0.613) of the original's latency at batch 1; " in said
    assert "the budget is missed" in said
    assert plan.budget_check(make_planning(make_blocks())) == ""
