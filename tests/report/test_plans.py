import math

import pytest
from handmade import make_blocks, make_record
from planned import ORIGINAL_MS, make_planning, make_point, planned_record

from shoal.record import FrontPoint, Record
from shoal.report.plans import Span, chosen_round, fated, plans, share_of


def chosen(record: Record) -> list[int]:
    return [plan.number for plan in plans(record) if plan.chosen]


def test_a_number_is_the_place_in_the_list() -> None:
    record = planned_record()
    found = plans(record)
    assert [plan.number for plan in found] == list(range(1, 25))
    assert [plan.point for plan in found] == record.planning.front
    assert found[-1].share == pytest.approx(0.96)


def test_a_record_without_planning_has_no_plans() -> None:
    assert plans(make_record()) == []


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
    assert [plan.drawable for plan in plans(planned_record(front=front))] == [True, False, False]


def test_a_span_without_a_kind_is_a_stand_in() -> None:
    point = FrontPoint(
        latency_ms=1.0, damage=0.1, macs=1, params=1, removed=[], replaced=[["a", "b"], ["c"]], kinds=["conv3"]
    )
    (plan,) = plans(planned_record(front=[point]))
    assert plan.spans == [Span(["a", "b"], "conv3"), Span(["c"], "stand-in")]


def test_the_chosen_round_is_the_one_that_says_so() -> None:
    planning = make_planning(make_blocks())
    assert chosen_round(planning) == planning.rounds[1]
    assert chosen_round(planning.model_copy(update={"rounds": planning.rounds[:1]})) is None


def test_blocks_get_the_fate_of_the_plan_and_not_that_of_the_record() -> None:
    point = make_point(make_blocks(), 8, 24)
    after = {block.path: block.fate for block in fated(make_blocks(), point)}
    assert {path for path, fate in after.items() if fate == "removed"} == set(point.removed)
    assert {path for path, fate in after.items() if fate == "replaced"} == {p for span in point.replaced for p in span}
