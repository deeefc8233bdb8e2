"""A budget counts as met by a timing that had no part in the choice; a plan that misses it is answered by another."""

import pytest
from torch import nn

from shoal.pipeline.budget_check import check_budget, confirmed, expected_ratio, is_settled
from shoal.pipeline.latency_backends import SeveralBatchSizes
from shoal.record import BudgetCheck, LatencyRatio


class Clock:
    """Says of every network what it is told, and remembers how it was asked."""

    source, measures = "told", True

    def __init__(self, ratio, low, high, batch=1):
        self.ratio = LatencyRatio(ratio=ratio, low=low, high=high, rounds=50, batch=batch)
        self.batch_size, self.asked = batch, []

    def time_ratios(self, group, effort="short"):
        self.asked.append((list(group), effort))
        return {name: self.ratio for name in group if name != "whole"}


def checked(ratio, low, high, allowed=0.5):
    return check_budget(Clock(ratio, low, high), nn.Identity(), nn.Identity(), allowed)


@pytest.mark.parametrize(
    ("ratio", "low", "high", "met", "settled"),
    [
        (0.5, 0.497, 0.503, True, True),
        (0.505, 0.500, 0.5099, True, True),  # the upper end is within 1.02 of it
        (0.508, 0.504, 0.512, False, False),  # the ratio is, its interval is not
        (0.49, 0.44, 0.55, False, False),  # nobody knows
        (0.56, 0.55, 0.57, False, False),
        (0.476, 0.474, 0.478, True, True),
        (0.474, 0.472, 0.476, True, False),  # less than 0.95 of it was used
        (0.449, 0.447, 0.451, True, False),
    ],
)
def test_when_a_budget_is_met_and_used(ratio, low, high, met, settled):
    check = checked(ratio, low, high)
    assert (check.met, is_settled(check)) == (met, settled)
    assert check.used == pytest.approx(ratio / 0.5)
    assert (check.allowed, check.attempts) == (0.5, 1)


def test_the_network_is_timed_alone_beside_the_original_with_all_effort():
    clock = Clock(0.5, 0.499, 0.501)
    check_budget(clock, nn.Identity(), nn.Identity(), 0.5)
    assert clock.asked == [(["whole", "compressed"], "confirming")]


def test_the_worst_of_several_batch_sizes_counts():
    clocks = [Clock(0.48, 0.479, 0.481, batch=128), Clock(0.53, 0.528, 0.532, batch=1)]
    check = check_budget(SeveralBatchSizes(clocks), nn.Identity(), nn.Identity(), 0.5)
    assert [ratio.batch for ratio in check.ratios] == [128, 1]
    assert (check.met, check.worst.batch, check.used) == (False, 1, pytest.approx(1.06))
    met = check_budget(SeveralBatchSizes(clocks), nn.Identity(), nn.Identity(), 0.53)
    assert met.met


def test_what_the_tables_are_corrected_by():
    assert expected_ratio(checked(0.4, 0.398, 0.402)) == pytest.approx(0.4)
    assert expected_ratio(checked(0.56, 0.55, 0.565)) == pytest.approx(0.56)
    assert expected_ratio(checked(0.49, 0.43, 0.55)) == pytest.approx(0.55 / 1.02)


class Search:
    """Plans are their ratios; the next is taken from a list."""

    def __init__(self, *more, width=0.004):
        self.more, self.width, self.timed = list(more), width, []

    def check(self, ratio):
        self.timed.append(ratio)
        return checked(ratio, ratio - self.width / 2, ratio + self.width / 2)

    def another(self, plan, check):
        assert check.worst.ratio == plan == self.timed[-1]
        return self.more.pop(0) if self.more else None

    def run(self, plan, rank=lambda plan: -plan):
        return confirmed(plan, self.check, self.another, rank)


@pytest.mark.parametrize(
    ("plans", "expected", "met"),
    [
        ([0.5], 0.5, True),
        ([0.5, 0.49], 0.5, True),  # nothing else is asked for
        ([0.55, 0.5], 0.5, True),
        ([0.359, 0.49], 0.49, True),
        ([0.359, 0.55, 0.48], 0.48, True),
        ([0.359], 0.359, True),  # there is nothing else
        ([0.359, 0.40, 0.44, 0.45], 0.45, True),  # the least damage of those that meet it
        ([0.6, 0.55], 0.55, False),  # the fastest where none does
        ([0.6, 0.4], 0.4, True),
    ],
)
def test_another_plan_is_asked_for(plans, expected, met):
    search = Search(*plans[1:])
    plan, check = search.run(plans[0])
    assert (plan, check.met, check.worst.ratio) == (expected, met, expected)
    assert check.attempts == len(search.timed)


def test_attempts_are_bounded():
    search = Search(*[0.6] * 50)
    _, check = search.run(0.6)
    assert check.attempts == len(search.timed) == 4


def test_what_uses_the_budget_is_preferred_to_what_seems_less_damaged():
    plan, _ = Search(0.49).run(0.36, rank=lambda plan: plan)
    assert plan == 0.49


def test_the_record_keeps_it():
    check = checked(0.5, 0.49, 0.51)
    assert BudgetCheck.model_validate_json(check.model_dump_json()) == check
