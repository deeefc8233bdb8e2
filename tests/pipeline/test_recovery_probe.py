import math

import pytest
from footing import batches, planner
from torch import nn

import shoal
import stopwatch
from shoal.errors import FolderError, OutOfMemoryError, UsageError
from shoal.pipeline import CompressConfig, RecoveryConfig, recovery
from shoal.pipeline.goals import Budget
from shoal.pipeline.recovery_probe import RecoveryProbe, sentence
from shoal.plan import Remove, Replace, Replacement
from shoal.recover import DistillConfig

pytestmark = pytest.mark.heavy

CONV = Replacement(kind="conv", layout="channels_first", in_channels=4, out_channels=4, kernel=3)


def test_it_is_said_what_came_of_each():
    trial = RecoveryProbe(2, lambda network, actions: 0.0, "9 steps")
    tried = [([Remove(path="a")], 0.5, 0.25), ([Remove(path="a"), Replace(paths=["b"], stand_in=CONV)], 0.4, 0.3)]
    assert sentence(trial, tried, 0) == (
        "2 plans recovered for 9 steps each: 1 removed and 0 stand-ins 0.5000 → 0.2500; "
        "1 removed and 1 stand-ins 0.4000 → 0.3000; kept: plan 1"
    )


def test_a_plan_that_could_not_be_recovered_is_named():
    trial = RecoveryProbe(2, lambda network, actions: 0.0, "9 steps")
    assert "1 removed and 0 stand-ins 0.5000 → not recovered; kept" in sentence(
        trial, [([Remove(path="a")], 0.5, math.inf)], 0
    )


def test_a_mere_default_that_fails_does_not_stop_the_plan(monkeypatch):
    def failing(error, *, required):
        def fails(*args, **keywords):
            raise error

        monkeypatch.setattr(recovery, "distill", fails)
        config = RecoveryConfig(20, try_plans=2, required=required)
        return recovery.RecoveryTask(config, None, [], [], [], print).probe().recovered(nn.Linear(1, 1), [])

    assert failing(OutOfMemoryError("out of memory"), required=False) == math.inf
    with pytest.raises(OutOfMemoryError, match="out of memory"):
        failing(OutOfMemoryError("out of memory"), required=True)
    with pytest.raises(RuntimeError, match="a fault of the program"):
        failing(RuntimeError("a fault of the program"), required=False)
    with pytest.raises(FolderError):
        failing(FolderError("full"), required=False)


def removals(actions):
    return sum(isinstance(one, Remove) for one in actions)


def test_the_plan_that_recovers_best_is_chosen_within_the_budget():
    seen = []

    def most_removals(network, actions):
        seen.append(list(actions))
        return 1.0 / (1 + removals(actions))

    one = planner(kinds=("linear", "conv3"), longest=2)
    plain = one.solve_budget(Budget(macs=0.6))
    found = one.solve_budget(Budget(macs=0.6), RecoveryProbe(4, most_removals, "2 steps"))
    assert 2 <= len(seen) <= 4
    assert removals(found.actions) == max(removals(actions) for actions in seen) >= removals(plain.actions)
    assert list(seen[0]) == list(plain.actions)  # the best by damage contends first
    assert any("plans recovered for 2 steps each" in note for note in found.notes)
    assert sum(one.chosen for one in found.planning.rounds) == 1
    macs = stopwatch.cost(found.model, batches(12, 3, 8, 8)[0].take(1)).macs
    assert macs <= 0.61 * one.tables.whole.macs


def test_a_single_contender_needs_no_trial():
    one = planner(kinds=("linear",), longest=1)
    trial = RecoveryProbe(1, lambda network, actions: pytest.fail("tried"), "2 steps")
    assert one.solve_budget(Budget(macs=0.6), trial).actions == one.solve_budget(Budget(macs=0.6)).actions


def test_the_best_few_recover_before_one_is_chosen(monkeypatch):
    from test_recovery import confident, data

    stopwatch.install(monkeypatch)
    settings = CompressConfig(images=36, validation_images=36, latency_seconds=0.001, stand_ins=("conv3",), longest=2)
    more = RecoveryConfig(20, DistillConfig(rate=0.05, looks=2), try_plans=2)
    found = shoal.compress(
        confident(), data(), shoal.Budget(macs=0.5), validation=data(50), recovery=more, config=settings
    )
    assert any("2 plans recovered for 2 steps each" in note for note in found.record.notes)
    assert found.record.recovery.steps == 20


def test_a_number_of_plans_below_one_is_refused():
    with pytest.raises(UsageError, match="try_plans is -1"):
        RecoveryConfig("5m", try_plans=-1)
