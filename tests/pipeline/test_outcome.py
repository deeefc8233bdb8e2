"""What a record says of a goal that held on validation and did not on test, and of one that asked for nothing."""

from types import SimpleNamespace

import pytest

from shoal.pipeline.goals import Budget, MaxDrop, RemoveBlocks
from shoal.pipeline.outcome import _beyond_goal, _within_budget


def lost(points, low, high):
    return SimpleNamespace(top1_drop=points / 100, top1_drop_interval=(low / 100, high / 100))


WITHOUT_LABELS = SimpleNamespace(top1_drop=None, top1_drop_interval=None)
LITTLE, MUCH = lost(0.4, -5.5, 6.3), lost(8.7, 5.5, 12.0)


def test_a_loss_on_test_that_is_surely_beyond_the_goal_is_a_warning():
    [warning] = _beyond_goal(MaxDrop(1.0), SimpleNamespace(validation=LITTLE), MUCH)
    assert "8.7 points of top-1 lost (5.5 to 12) on test, where at most 1 point was asked for" in warning
    assert "0.4 points of top-1 lost (-5.5 to 6.3) on validation" in warning
    [warning] = _beyond_goal(MaxDrop(5.0), SimpleNamespace(validation=WITHOUT_LABELS), MUCH)
    assert "at most 5 points" in warning


@pytest.mark.parametrize(
    ("goal", "validation", "test"),
    [
        (MaxDrop(5.5), LITTLE, MUCH),
        (MaxDrop(1.0), LITTLE, lost(2.0, 0.5, 3.0)),
        (MaxDrop(1.0), LITTLE, WITHOUT_LABELS),
        (MaxDrop(1.0), None, MUCH),
        (RemoveBlocks(2), LITTLE, MUCH),
    ],
)
def test_what_may_be_chance_or_was_no_goal_is_none(goal, validation, test):
    assert _beyond_goal(goal, SimpleNamespace(validation=validation), test) == []


def choice(reached=True, removals=(), replaced=()):
    return SimpleNamespace(reached=reached, removals=list(removals), replaced=list(replaced))


def test_a_budget_that_the_original_meets_is_said_to_be_met_already():
    [warning] = _within_budget(Budget(macs="5G", depth=40), choice())
    assert warning == "the original is within the budget (macs 5G, depth 40) already: nothing had to change"


@pytest.mark.parametrize(
    ("goal", "changes"),
    [
        (Budget(macs=0.5), choice(removals=["layer.1"])),
        (Budget(macs=0.5), choice(replaced=[["layer.1"]])),
        (Budget(macs=0.5), choice(reached=False)),
        (MaxDrop(1.0), choice()),
    ],
)
def test_other_goals_and_networks_that_changed_are_not(goal, changes):
    assert _within_budget(goal, changes) == []
