"""Epsilon held so that a share of the blocks is lost: where it lies, and that a run lands on the share."""

import math
import random
from dataclasses import replace

import pytest
from test_trainer import PLAN, network, same, settings, state

import shoal
from shoal.epsilon.controller import ShareController, checked_share, read_epsilon
from shoal.epsilon.finish import TrainRunInfo, finish
from shoal.epsilon.recipes import RatePlan
from shoal.epsilon.trainer import EpsilonConfig, EpsilonTrainer
from shoal.errors import UsageError

pytestmark = pytest.mark.heavy
AUTO_PLAN = replace(PLAN, epochs=6, rate=RatePlan(0.1, settle=1), freeze_after=1)


@pytest.fixture(scope="module")
def data():
    return shoal.load_data("digits", limit=128, batch_size=64)


def controlled(data, *, folder=None, progress=None, model=None, **changes):
    plan = changes.pop("plan", AUTO_PLAN)
    config = settings(epsilon="auto", plan=plan, **changes)
    extra = {} if progress is None else {"progress": progress}
    run = EpsilonTrainer(model or network(), data, config, folder=folder, **extra)
    run.train()
    return run


@pytest.mark.parametrize("seed", range(40))
def test_just_as_many_responses_lie_below_it_as_are_to_be_closed(seed):
    draw = random.Random(seed)
    responses = [10 ** draw.uniform(-6, 6) for _ in range(draw.randint(1, 30))]
    controller = ShareController(draw.randint(1, 30), hold=1, rise=draw.randint(0, 12))
    epoch = draw.randint(1, 20)
    epsilon = controller.epsilon(epoch, {str(i): value for i, value in enumerate(responses)}, 0)
    assert sum(value <= epsilon for value in responses) == min(controller.num_closed(epoch), len(responses))


def test_the_number_of_closed_blocks_rises_to_the_target_and_stays():
    controller = ShareController(4, hold=2, rise=3)
    assert [controller.num_closed(epoch) for epoch in range(8)] == [0, 0, 1, 2, 3, 4, 4, 4]
    assert [ShareController(4, hold=0, rise=0).num_closed(epoch) for epoch in range(3)] == [0, 4, 4]


@pytest.mark.parametrize(("epochs", "shape"), [(40, (10, 19)), (8, (2, 3)), (5, (1, 2)), (2, (1, 0)), (1, (1, 0))])
def test_by_default_it_leaves_a_quarter_of_the_epochs_before_and_after(epochs, shape):
    controller = ShareController.within(epochs, 4)
    assert (controller.hold, controller.rise) == shape
    reached = next(epoch for epoch in range(99) if controller.num_closed(epoch) == 4)
    assert epochs < 4 or epochs - reached >= epochs // 4 + 1
    assert ShareController.within(40, 4, hold=3, rise=5) == ShareController(4, 3, 5)


def test_lost_blocks_count_and_once_all_are_lost_the_gates_are_open():
    controller = ShareController(2, hold=1, rise=0)
    assert controller.epsilon(5, {"a": 4.0, "b": 1.0, "c": 16.0}, 1) == pytest.approx(math.sqrt(1.0 * 4.0))
    assert controller.epsilon(5, {"a": 4.0, "c": 16.0}, 2) == 0.0
    assert controller.epsilon(0, {}, 0) == 0.0, "nothing was seen yet"
    assert (controller.num_allowed(1), controller.num_allowed(3)) == (1, 0)


@pytest.mark.parametrize(("lose", "lost"), [(0.34, 3), (0.6, 5)])
def test_a_run_lands_on_the_share_and_says_so_epoch_by_epoch(data, lose, lost):
    run = controlled(data, lose=lose)
    assert len(run.prunable.removed) == lost
    assert run.rows[0].epsilon == 0, "responses must have been seen"
    assert run.rows[-1].epsilon == 0, "the last epochs settle"
    before = run.rows[0]
    first = run.rows[1].epsilon
    closing = run.schedule.num_closed(1)
    assert sum(value <= first for value in before.largest.values()) == closing


def test_where_more_were_closed_than_are_asked_for_the_smallest_go(data):
    run = EpsilonTrainer(network(), data, settings(epsilon="auto", lose=0.23, plan=AUTO_PLAN))
    paths = run.prunable.alive
    run.monitor.streaks.update(dict.fromkeys(paths, 5))
    largest = {path: float(9 - number) for number, path in enumerate(paths)}
    assert run._ready_to_prune(largest, last=True) == paths[-2:]


def test_what_is_missing_when_the_gates_end_goes_only_where_epochs_with_open_gates_follow(data):
    for settle, expected in ((1, [0, 4]), (0, [4])):
        plan = replace(AUTO_PLAN, rate=RatePlan(0.1, settle=settle))
        run = EpsilonTrainer(network(), data, settings(epsilon="auto", lose=0.23, plan=plan))
        paths = run.prunable.alive
        run.monitor.streaks[paths[4]] = 1
        largest = {path: float(number) for number, path in enumerate(paths)}
        assert run._ready_to_prune(largest, last=True) == [paths[number] for number in expected]
        assert run._ready_to_prune(largest, last=False) == [paths[4]]


def test_resumed_it_is_bitwise_as_without_interruption(data, tmp_path):
    whole = controlled(data, lose=0.5)

    def stop(stage, done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        controlled(data, lose=0.5, folder=tmp_path, progress=stop)
    resumed = controlled(data, lose=0.5, folder=tmp_path)
    assert same(state(whole), state(resumed))
    assert [row.epsilon for row in resumed.rows] == [row.epsilon for row in whole.rows]
    assert resumed.state.largest == whole.state.largest


def test_the_record_has_target_and_epsilon(data):
    record = finish(controlled(data, lose=0.4, model=network(depth=1)), TrainRunInfo(), seconds=0.01).record
    assert (record.target, len(record.lost), record.settings["lose"]) == (1, 1, 0.4)
    assert record.epsilon == [row.epsilon for row in record.rows if row.epsilon][-1]
    assert record.settled.certificate.verdict == "identical"


def test_a_share_that_is_missed_is_a_remark(data):
    hasty = replace(AUTO_PLAN, epochs=1, rate=RatePlan(0.1))
    run = controlled(data, lose=0.4, model=network(depth=1), plan=hasty, side=False)
    record = finish(run, TrainRunInfo(), seconds=0.01).record
    assert any("0 of 1 blocks that were asked for" in warning for warning in record.warnings)


def test_the_call_takes_a_share(data, monkeypatch):
    class AskedError(Exception):
        pass

    def asked(model, data, config, **_):
        raise AskedError(config.epsilon, config.lose)

    monkeypatch.setattr("shoal.epsilon.api.EpsilonTrainer", asked)
    with pytest.raises(AskedError, match=r"'auto', 0\.4"):
        shoal.train(network(depth=1), data, lose=0.4, config=EpsilonConfig(PLAN, 1.6))
    with pytest.raises(AskedError, match=r"'auto', 0\.2"):
        shoal.train(network(depth=1), "digits", lose=0.2)


@pytest.mark.parametrize("share", [0, 1, -0.3, 30, float("nan"), "0.3", True])
def test_a_share_lies_between_none_and_all(share):
    with pytest.raises(UsageError, match="above 0 and below 1"):
        checked_share(share)
    with pytest.raises(UsageError, match="above 0 and below 1"):
        EpsilonConfig(PLAN, "auto", lose=share)


def test_an_epsilon_by_hand_and_a_share_exclude_each_other():
    with pytest.raises(UsageError, match="one decides the other"):
        EpsilonConfig(PLAN, 2.0, lose=0.3)
    config = EpsilonConfig.by_recipe("digits", lose=0.3)
    assert (config.epsilon, config.lose, config.gated) == ("auto", 0.3, True)
    assert EpsilonConfig(PLAN, "auto").gated


@pytest.mark.parametrize("value", ["automatic", "", None, "2,5"])
def test_what_is_no_epsilon_is_refused(value):
    with pytest.raises(UsageError, match="a number or 'auto'"):
        read_epsilon(value)
    with pytest.raises(UsageError, match="finite number from 0"):
        read_epsilon("-1")
