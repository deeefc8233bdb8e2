import dataclasses

import pytest

from shoal.errors import UsageError
from shoal.pipeline.goals import (
    Blocks,
    Budget,
    ExactOnly,
    Goal,
    MaxDrop,
    ParetoPoint,
    RemoveBlocks,
    goal_from_dict,
    parse_goal,
)
from shoal.quantities import Cost

ORIGINAL = Cost(latency_ms=40.0, macs=2e9, params=5e6)
# Every goal, and the plain data that records hold, as version 0.1.0 wrote them.
WRITTEN = [
    (RemoveBlocks(2), {"remove": 2}),
    (RemoveBlocks(2, "unit"), {"remove": 2, "grain": "unit"}),
    (MaxDrop(), {"max_drop": 1.0}),
    (MaxDrop(0.0), {"max_drop": 0.0}),
    (MaxDrop(2.5, allow_replacement=True), {"max_drop": 2.5, "replace": True}),
    (MaxDrop(2.5, grain="unit", include=("a*",)), {"max_drop": 2.5, "grain": "unit", "include": ["a*"]}),
    (Blocks(["a", "b"]), {"blocks": ["a", "b"]}),
    (ExactOnly(), {"exact": True}),
    (ExactOnly(include=("a*",), exclude=("b",)), {"exact": True, "include": ["a*"], "exclude": ["b"]}),
    (Budget(latency="12ms", depth=3), {"latency": "12ms", "depth": 3}),
    (Budget(macs=0.5, params="3M"), {"macs": 0.5, "params": "3M"}),
    (Budget(depth=0, exclude=("b",)), {"depth": 0, "exclude": ["b"]}),
    (ParetoPoint(4), {"pick": 4}),
    (ParetoPoint(4, "unit"), {"pick": 4, "grain": "unit"}),
    (Budget(latency=0.5, grain="unit", include="*.mlp"), {"latency": 0.5, "grain": "unit", "include": ["*.mlp"]}),
    (MaxDrop(2.5, True, "unit"), {"max_drop": 2.5, "replace": True, "grain": "unit"}),
]


@pytest.mark.parametrize(("goal", "plain"), WRITTEN)
def test_a_goal_as_plain_data_and_back(goal, plain):
    assert goal.to_dict() == plain
    assert goal_from_dict(plain) == goal
    assert isinstance(goal, Goal)


@pytest.mark.parametrize("goal", [goal for goal, _ in WRITTEN])
def test_goals_are_frozen_and_can_be_compared(goal):
    assert len({goal, dataclasses.replace(goal)}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        goal.include = ("c",)


def test_lists_become_tuples_and_a_lone_string_is_a_single_name():
    assert RemoveBlocks(1, include=["a", "b"]).include == ("a", "b")
    assert Blocks(["a"]) == Blocks(("a",)) == Blocks("a")
    assert RemoveBlocks(1, exclude="blocks.*").exclude == Budget(depth=1, exclude="blocks.*").exclude == ("blocks.*",)
    assert parse_goal({"remove": 1, "include": "layer1"}) == RemoveBlocks(1, include=["layer1"])


@pytest.mark.parametrize("nothing", [{}, {"remove": None, "exact": False, "include": []}])
def test_without_a_goal_it_is_a_drop_of_one_point(nothing):
    assert parse_goal(nothing) == MaxDrop(1.0)
    assert parse_goal({**nothing, "replace": True}) == MaxDrop(1.0, allow_replacement=True)
    assert parse_goal({**nothing, "grain": "unit"}) == MaxDrop(1.0, grain="unit")


def test_what_is_no_part_of_a_goal_is_refused():
    with pytest.raises(UsageError, match="'fold' is no part of a goal"):
        goal_from_dict({"remove": 1, "fold": True})


def test_limits_are_amounts_and_infinite_where_nothing_was_asked():
    assert Budget(latency=0.5, params="3M").limits(ORIGINAL) == Cost(20.0, float("inf"), 3e6)
    assert Budget(macs=0.25).limits(ORIGINAL) == Cost(float("inf"), 5e8, float("inf"))


def test_depth_is_a_number_of_blocks():
    assert Budget(depth=0).bounds == {"depth": 0}
    with pytest.raises(UsageError, match="depth is -1, expected at least 0"):
        Budget(depth=-1)


@pytest.mark.parametrize("name", ["latency", "macs", "params"])
def test_what_cannot_be_read_is_refused_at_once(name):
    with pytest.raises(UsageError, match=f"{name} is 'half', expected a fraction or an amount"):
        Budget(**{name: "half"})


def test_a_budget_bounds_something():
    with pytest.raises(UsageError, match=r"the budget bounds nothing\n.*latency, macs, params, depth"):
        Budget()
